"""Advertisements shown to users: who sees what where, and the probability of a click."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from rectrain.data.simulate import vocabulary as words
from rectrain.data.simulate.catalogue import Catalogue, missing
from rectrain.data.simulate.columns import Ints, choose_words, ids, join, sigmoid, stream
from rectrain.data.simulate.users import NUM_INTERESTS, START, Users

__all__ = ["make_ads"]

DEVICES = ("desktop", "mobile", "tablet")
_NUM_POSITIONS = 6

_BASE = -1.3
_STYLE_GAIN = 1.1
_CATEGORY_GAIN = 1.0
_PRICE_GAIN = 0.7
_POSITION_LOSS = 0.25
# Rows: copies (urgent, social, discount, craft); columns: devices. Rows and columns sum to 0.
_COPY_DEVICE = np.array([[-0.9, 0.9, 0.0], [0.0, -0.9, 0.9], [0.0, 0.9, -0.9], [0.9, -0.9, 0.0]])
# Columns: night, morning, afternoon, evening.
_COPY_DAYPART = np.array(
    [[0.8, -0.8, -0.4, 0.4], [-0.4, 0.8, 0.4, -0.8], [0.4, 0.4, -0.8, 0.0], [-0.8, -0.4, 0.8, 0.4]]
)


def make_ads(
    users: Users, catalogue: Catalogue, *, mean_ads: float, seed: int, chunk: int
) -> pa.Table:
    """Impressions of a chunk's users, in the fields of ad_ctr, by user and time.

    logit p = base + style and category match of the context with the product
    + price wish × price - position + copy × device + copy × time of day + rating.
    """
    rng = stream("ads", seed=seed, chunk=chunk)
    user = np.repeat(np.arange(len(users)), rng.poisson(mean_ads, len(users)))
    count = len(user)
    second = rng.integers(0, 365 * 86_400, count)
    hour = second // 3600 % 24
    device = rng.integers(0, len(DEVICES), count)
    position = rng.integers(0, _NUM_POSITIONS, count)
    copy = rng.integers(0, len(words.COPIES), count)
    interest = rng.integers(0, NUM_INTERESTS, count)
    style, category = users.style[user, interest], users.category[user, interest]
    wish = rng.integers(0, len(words.PRICE_WORDS), count)
    items = _targeted(rng, catalogue, style=style, category=category)
    logit = (
        _BASE
        + _STYLE_GAIN * (catalogue.style[items] == style)
        + _CATEGORY_GAIN * (catalogue.category_code[items] == category)
        + _PRICE_GAIN * words.column(words.PRICE_WORDS)[wish] * catalogue.price_z[items]
        - _POSITION_LOSS * position
        + words.column(words.COPIES)[copy]
        + _COPY_DEVICE[copy, device]
        + _COPY_DAYPART[copy, hour // 6]
        + 0.3 * (catalogue.rating[items] - 3.9) / 0.6
    )
    p_true = sigmoid(logit)
    chosen = pa.array(items)
    slogan = choose_words(rng, [phrase.catalogue for phrase in words.COPIES], copy)
    product = np.asarray(catalogue.text.take(chosen).to_pylist(), dtype=object)
    table = pa.table(
        {
            "user_id": ids("u", users.number[user]),
            "context": _contexts(rng, style=style, category=category, wish=wish),
            "item_id": catalogue.item_id.take(chosen),
            "item_text": join(slogan, product),
            "price": missing(rng, catalogue.price[items], share=0.03),
            "category": catalogue.category.take(chosen),
            "position": pa.array(position.astype(np.float64)),
            "hour": pa.array(hour.astype(np.float64)),
            "device": pa.array(DEVICES).take(pa.array(device)),
            "rating": missing(rng, catalogue.rating[items], share=0.03),
            "label": pa.array((rng.random(count) < p_true).astype(np.float64)),
            "timestamp": pa.array(START + second.astype("timedelta64[s]"), pa.timestamp("us")),
            "row_id": ids(f"ad-{chunk}-", np.arange(count)),
            "p_true": pa.array(p_true),
        }
    )
    return table.take(pa.array(np.lexsort((second, user))))


def _contexts(rng: np.random.Generator, *, style: Ints, category: Ints, wish: Ints) -> pa.Array:
    """What the user looks for at the moment, such as "cheap seaside gadgets"."""
    return join(
        choose_words(rng, [phrase.shopper for phrase in words.PRICE_WORDS], wish),
        choose_words(rng, [phrase.shopper for phrase in words.STYLES], style),
        choose_words(rng, [phrase.shopper for phrase in words.CATEGORIES], category),
    )


def _targeted(
    rng: np.random.Generator, catalogue: Catalogue, *, style: Ints, category: Ints
) -> Ints:
    """The advertised product: any, or one that shares the context's style or category."""
    count = len(style)
    items = rng.integers(0, len(catalogue), count)
    aim = rng.random(count)
    for wanted, has, low, high in (
        (style, catalogue.style, 0.0, 0.3),
        (category, catalogue.category_code, 0.3, 0.6),
    ):
        rows = np.flatnonzero((aim >= low) & (aim < high))
        items[rows] = _any_with(rng, has, wanted[rows], fallback=items[rows])
    return items


def _any_with(rng: np.random.Generator, has: Ints, wanted: Ints, *, fallback: Ints) -> Ints:
    """A random product whose attribute is the wanted one; the fallback where none is."""
    order = np.argsort(has, kind="stable")
    first = np.searchsorted(has[order], wanted)
    last = np.searchsorted(has[order], wanted, side="right")
    picks = first + np.floor(rng.random(len(wanted)) * (last - first)).astype(np.int64)
    return np.where(last > first, order[np.minimum(picks, len(has) - 1)], fallback)
