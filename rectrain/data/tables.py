"""The field tables of the tasks: data only."""

from __future__ import annotations

from rectrain.data.fields import Field, FieldTable

__all__ = ["AD_CTR", "AD_HEADLINE", "RECOMMENDATION", "RISK", "RISK_TEXT", "SEARCH_RANKING"]

_IMAGE = Field("image", "vector", description="any vector of the item: an image, a graph")
_PRICE = Field("price", "numeric", low=0, description="price of one unit, any one currency")
_CATEGORY = Field("category", "categorical", description="the item's category")
_RATING = Field("rating", "numeric", low=0, high=5, description="mean rating of the item, stars")
_HOUR = Field("hour", "numeric", low=0, high=23, description="hour of the day")
_ITEM_ID = Field("item_id", "id", required=True, description="the item")
_ITEM_TEXT = Field("item_text", "text", required=True, description="title and description")
_USER = Field("user_id", "group", required=True, description="the user")
_CLICK = Field("label", "label", required=True, low=0, high=1, description="1: clicked")
_WEIGHT = Field("weight", "weight", low=0, description="weight of the row's loss; 1 if missing")
_TIME = Field("timestamp", "timestamp", description="when it happened, UTC")
_ROW = Field("row_id", "id", description="the event; the same event in two tasks has the same id")
_SPLIT = Field("split", "split", description="where the row belongs, if that is settled")
_TRUTH = Field("p_true", "oracle", low=0, description="simulated truth; never a model's input")

RECOMMENDATION = FieldTable(
    "recommendation",
    1,
    (
        _USER,
        Field("session_id", "id", description="the basket; the timestamp if missing"),
        _ITEM_ID,
        _ITEM_TEXT,
        _PRICE,
        _CATEGORY,
        _RATING,
        _IMAGE,
        _WEIGHT,
        Field("timestamp", "timestamp", required=True, description="when it was bought, UTC"),
        _ROW,
        _TRUTH,
    ),
)

SEARCH_RANKING = FieldTable(
    "search_ranking",
    1,
    (
        Field("query_id", "group", required=True, description="the query, or one search"),
        Field("query", "text", required=True, description="what was typed"),
        _ITEM_ID,
        _ITEM_TEXT,
        _PRICE,
        _CATEGORY,
        Field("brand", "categorical", description="maker or supplier"),
        _RATING,
        _IMAGE,
        Field("label", "label", required=True, low=0, high=10, description="grade of relevance"),
        _WEIGHT,
        _TIME,
        _ROW,
        _SPLIT,
        _TRUTH,
    ),
)

AD_CTR = FieldTable(
    "ad_ctr",
    1,
    (
        _USER,
        Field("context", "text", description="page or query the ad stands beside"),
        Field("history", "text_list", description="texts of past purchases, newest last"),
        _ITEM_ID,
        _ITEM_TEXT,
        _PRICE,
        _CATEGORY,
        Field("position", "numeric", low=0, description="place on the page, 0 first"),
        _HOUR,
        Field("device", "categorical", description="phone, tablet, desktop, …"),
        _RATING,
        _IMAGE,
        _CLICK,
        _WEIGHT,
        _TIME,
        _ROW,
        _SPLIT,
        _TRUTH,
    ),
)

RISK = FieldTable(
    "risk",
    1,
    (
        _USER,
        _ITEM_TEXT,
        Field("amount", "numeric", description="total of the order line"),
        Field("quantity", "numeric", description="units ordered"),
        _PRICE,
        _HOUR,
        Field("weekday", "numeric", low=0, high=6, description="0: Monday"),
        Field("account_age_days", "numeric", low=0, description="days since the account began"),
        Field("num_past_orders", "numeric", low=0, description="orders before this one"),
        Field("num_past_returns", "numeric", low=0, description="returns before this order"),
        Field("country", "categorical", description="where it is shipped"),
        Field("payment", "categorical", description="means of payment"),
        _CATEGORY,
        _IMAGE,
        Field("label", "label", required=True, low=0, high=1, description="1: fraud or returned"),
        _WEIGHT,
        _TIME,
        _ROW,
        _SPLIT,
        Field("item_id", "id", description="the item"),
        _TRUTH,
    ),
)

AD_HEADLINE = FieldTable(
    "ad_headline",
    1,
    (
        Field("test_id", "group", required=True, description="the A/B test"),
        Field("item_text", "text", required=True, description="the headline, or the ad's text"),
        Field("item_id", "id", description="the variant"),
        _CATEGORY,
        _IMAGE,
        Field(
            "label", "label", required=True, low=0,
            description="clicks won, or click rate: only its order within a test counts",
        ),
        _WEIGHT,
        _TIME,
        _ROW,
        _SPLIT,
        Field("split_group", "id", description="tests that stay in one split; test_id if missing"),
        _TRUTH,
    ),
)  # fmt: skip

RISK_TEXT = FieldTable(
    "risk_text",
    1,
    (
        Field("page_id", "group", required=True, description="the page, or the seller"),
        Field("item_text", "text", required=True, description="a piece of text on the page"),
        _CATEGORY,
        Field("label", "label", required=True, low=0, high=1, description="1: deceptive"),
        _WEIGHT,
        _TIME,
        _ROW,
        _SPLIT,
        _TRUTH,
    ),
)
