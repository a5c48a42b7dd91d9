"""The tasks of a shop: one entry each. A new task is one entry here and its test."""

from __future__ import annotations

from rectrain.data.tables import (
    AD_CTR,
    AD_HEADLINE,
    RECOMMENDATION,
    RISK,
    RISK_TEXT,
    SEARCH_RANKING,
)
from rectrain.model.spec import TaskSpec

__all__ = ["TASKS", "TaskSpec"]

_RANKING = ("ndcg@10", "mrr", "hr@10", "recall@10")
_BINARY = ("auc", "gauc", "pr_auc", "log_loss", "ece")

TASKS: dict[str, TaskSpec] = {
    spec.name: spec
    for spec in (
        TaskSpec(
            name="recommendation",
            fields=RECOMMENDATION,
            query=("history",),
            item=("item_text",),
            head="two_tower",
            loss="in_batch_softmax",
            metrics=_RANKING,
            primary="ndcg@10",
            baselines=("popularity", "item_knn"),
        ),
        TaskSpec(
            name="search_ranking",
            fields=SEARCH_RANKING,
            query=("query",),
            item=("item_text",),
            head="bi_encoder",
            loss="listwise_softmax",
            metrics=("ndcg@10", "mrr"),
            primary="ndcg@10",
            baselines=("bm25", "gbdt", "both"),
        ),
        TaskSpec(
            name="ad_ctr",
            fields=AD_CTR,
            query=("history", "context"),
            item=("item_text",),
            head="pair",
            loss="bce",
            metrics=(*_BINARY, "ctr"),
            primary="auc",
            baselines=("gbdt", "tfidf", "both"),
        ),
        TaskSpec(
            name="risk",
            fields=RISK,
            query=(),
            item=("item_text",),
            head="single",
            loss="bce",
            metrics=(*_BINARY, "recall@fpr0.01", "conversion"),
            primary="auc",
            baselines=("gbdt", "tfidf", "both"),
        ),
        TaskSpec(
            name="ad_headline",
            fields=AD_HEADLINE,
            query=(),
            item=("item_text",),
            head="single",
            loss="pairwise_logistic",
            metrics=("pairwise_accuracy", "ndcg@10"),
            primary="pairwise_accuracy",
            baselines=("tfidf_difference",),
        ),
        TaskSpec(
            name="risk_text",
            fields=RISK_TEXT,
            query=(),
            item=("item_text",),
            head="single",
            loss="bce",
            metrics=(*_BINARY, "recall@fpr0.01"),
            primary="auc",
            baselines=("tfidf", "tfidf_c10"),
        ),
    )
}
