"""Search queries that say products in other words, and graded lists of products for them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from rectrain.data.simulate import vocabulary as words
from rectrain.data.simulate.catalogue import Catalogue, missing
from rectrain.data.simulate.columns import (
    Floats,
    Ints,
    choose_words,
    gumbel,
    ids,
    join,
    sigmoid,
    stream,
)
from rectrain.data.simulate.users import START

__all__ = ["make_search"]

# What a product gains when it has what the query asks for; "category" counts for other types.
_GAINS = {"kind": 2.0, "category": 0.8, "style": 1.4, "material": 0.9, "colour": 0.9}
_PRICE_GAIN = 1.1
_RATING_GAIN = 0.8
_NOISE = 0.35
# Utilities above which a product is graded at least 1, 2, 3.
_THRESHOLDS = np.array([1.2, 2.6, 4.0])
_MAX_GAIN = 7.0  # 2^3 - 1
_TYPO_SHARE = 0.08
_CATALOGUE_WORD_SHARE = 0.25


@dataclass(frozen=True, slots=True)
class _Queries:
    """What the queries of a chunk ask for; -1 where a query says nothing of it."""

    number: Ints
    kind: Ints
    style: Ints
    material: Ints
    colour: Ints
    price_word: Ints


def make_search(
    catalogue: Catalogue, number: Ints, *, list_size: int, seed: int, chunk: int
) -> pa.Table:
    """Lists of `list_size` products for each query of a chunk, in the fields of search_ranking.

    The grade of a product is the number of thresholds below its utility plus logistic noise;
    `p_true` is the expected gain E[2^grade - 1] / 7, which orders a list best.
    """
    rng = stream("queries", seed=seed, chunk=chunk)
    queries = _ask(rng, number)
    texts = _texts(rng, queries)
    items = _candidates(rng, queries, catalogue, list_size=list_size)
    utility = _utility(queries, catalogue, items).reshape(-1)
    noisy = utility + _NOISE * rng.logistic(size=len(utility))
    grade = (noisy[:, None] > _THRESHOLDS).sum(axis=1)
    flat = items.reshape(-1)
    chosen = pa.array(flat)
    row = pa.array(np.repeat(np.arange(len(number)), items.shape[1]))
    brands = pa.array([brand.catalogue[0] for brand in words.BRANDS])
    second = rng.integers(0, 365 * 86_400, len(number)).astype("timedelta64[s]")
    return pa.table(
        {
            "query_id": ids("q", number).take(row),
            "query": texts.take(row),
            "item_id": catalogue.item_id.take(chosen),
            "item_text": catalogue.text.take(chosen),
            "price": missing(rng, catalogue.price[flat], share=0.03),
            "category": catalogue.category.take(chosen),
            "brand": brands.take(pa.array(catalogue.brand[flat])),
            "rating": missing(rng, catalogue.rating[flat], share=0.03),
            "label": pa.array(grade.astype(np.float64)),
            "timestamp": pa.array(START + second, pa.timestamp("us")).take(row),
            "row_id": ids(f"search-{chunk}-", np.arange(len(flat))),
            "p_true": pa.array(_expected_gain(utility) / _MAX_GAIN),
        }
    )


def _expected_gain(utility: Floats) -> Floats:
    """E[2^grade - 1] of utilities [n]: Σ_g 2^(g-1) · P(grade >= g)."""
    at_least = sigmoid((utility[:, None] - _THRESHOLDS) / _NOISE)
    gain: Floats = at_least @ np.array([1.0, 2.0, 4.0])
    return gain


def _ask(rng: np.random.Generator, number: Ints) -> _Queries:
    count = len(number)

    def maybe(choices: int, share: float) -> Ints:
        return np.where(rng.random(count) < share, rng.integers(0, choices, count), -1)

    return _Queries(
        number=number,
        kind=rng.integers(0, len(words.TYPES), count),
        style=maybe(len(words.STYLES), 0.8),
        material=maybe(len(words.MATERIALS), 0.5),
        colour=maybe(len(words.COLOURS), 0.5),
        price_word=rng.choice(len(words.PRICE_WORDS), count, p=[0.4, 0.2, 0.4]),
    )


def _texts(rng: np.random.Generator, queries: _Queries) -> pa.Array:
    """Query texts such as "affordable pot for tea made of wood nostalgic"."""
    price = choose_words(rng, [p.shopper for p in words.PRICE_WORDS], queries.price_word)
    kind = _say(rng, tuple(kind.words for kind in words.TYPES), queries.kind)
    style = _say(rng, words.STYLES, queries.style)
    material = _say(rng, words.MATERIALS, queries.material)
    colour = _say(rng, words.COLOURS, queries.colour)
    swap = rng.random(len(kind)) < 0.5
    texts = join(
        price, np.where(swap, style, colour), material, kind, np.where(swap, colour, style)
    )
    return _with_typos(rng, texts)


def _say(
    rng: np.random.Generator, phrases: tuple[words.Phrase, ...], values: Ints
) -> npt.NDArray[np.object_]:
    """Words for the values; "" for -1. Mostly the shopper's, sometimes the catalogue's."""
    said = np.maximum(values, 0)
    shopper = choose_words(rng, [phrase.shopper for phrase in phrases], said)
    catalogue = choose_words(
        rng, [tuple(word.lower() for word in phrase.catalogue) for phrase in phrases], said
    )
    spoken = np.where(rng.random(len(values)) < _CATALOGUE_WORD_SHARE, catalogue, shopper)
    return np.where(values >= 0, spoken, "").astype(object)


def _with_typos(rng: np.random.Generator, texts: pa.Array) -> pa.Array:
    """Swaps two neighbouring letters in a share of the texts."""
    out = texts.to_pylist()
    for row in np.flatnonzero(rng.random(len(out)) < _TYPO_SHARE):
        text = out[row]
        at = int(rng.integers(1, len(text) - 1))
        out[row] = text[:at] + text[at + 1] + text[at] + text[at + 2 :]
    return pa.array(out, pa.string())


def _matches(queries: _Queries, catalogue: Catalogue, items: Ints | None = None) -> Floats:
    """Gain of what was asked and is there, [queries, items]; every item where `items` is None."""

    def has(name: str) -> Ints:
        values: Ints = getattr(catalogue, name)
        return values[None, :] if items is None else values[items]

    same_kind = queries.kind[:, None] == has("kind")
    category = np.array([kind.category for kind in words.TYPES])[queries.kind]
    same_category = category[:, None] == has("category_code")
    gain: Floats = _GAINS["kind"] * same_kind + _GAINS["category"] * (same_category & ~same_kind)
    for name in ("style", "material", "colour"):
        gain = gain + _GAINS[name] * (getattr(queries, name)[:, None] == has(name))
    return gain


def _candidates(
    rng: np.random.Generator, queries: _Queries, catalogue: Catalogue, *, list_size: int
) -> Ints:
    """Distinct products for each query, drawn with odds exp(1.5 × gain), int [queries, list]."""
    wants = 1.5 * _matches(queries, catalogue) + gumbel(rng, (len(queries.number), len(catalogue)))
    size = min(list_size, len(catalogue))
    drawn = np.argpartition(-wants, size - 1, axis=1)[:, :size]
    return rng.permuted(drawn, axis=1)


def _utility(queries: _Queries, catalogue: Catalogue, items: Ints) -> Floats:
    """What each listed product is worth to its query's asker, [queries, list]."""
    wish = words.column(words.PRICE_WORDS)[queries.price_word][:, None]
    worth: Floats = (
        _matches(queries, catalogue, items)
        + _PRICE_GAIN * wish * catalogue.price_z[items]
        + _RATING_GAIN * (catalogue.rating[items] - 3.9) / 0.6
    )
    return worth
