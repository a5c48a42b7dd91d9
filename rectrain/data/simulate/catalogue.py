"""The products of the simulated shop: attributes, readable texts, prices, ratings."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pyarrow as pa

from rectrain.data.simulate import vocabulary as words
from rectrain.data.simulate.columns import Floats, Ints, choose_words, ids, join, stream

__all__ = ["Catalogue", "make_catalogue", "missing"]

_TYPE_CATEGORY = np.array([kind.category for kind in words.TYPES])
_TYPE_RESALE = np.array([kind.words.effect for kind in words.TYPES])


@dataclass(frozen=True, slots=True)
class Catalogue:
    """Every product; all arrays have one entry a product.

    Attributes:
        item_id, text, category: strings.
        kind, style, material, colour, brand: positions in the lists of `vocabulary`.
        category_code: position in `vocabulary.CATEGORIES`.
        price: in the shop's currency; always known to the simulation.
        price_z: log of the price, standardised over the catalogue.
        rating: 1–5.
        popularity: the part of the log of the purchase odds that every user shares.
        resale: how easily sold on, -1 to 1; only the text shows it.
    """

    item_id: pa.Array
    text: pa.Array
    category: pa.Array
    category_code: Ints
    kind: Ints
    style: Ints
    material: Ints
    colour: Ints
    brand: Ints
    price: Floats
    price_z: Floats
    rating: Floats
    popularity: Floats
    resale: Floats

    def __len__(self) -> int:
        return len(self.kind)


@lru_cache(maxsize=4)
def make_catalogue(num_items: int, *, seed: int) -> Catalogue:
    """The catalogue of a seed: every chunk of every process makes the same one."""
    rng = stream("catalogue", seed=seed)
    kind, style, material, colour, brand, size = (
        rng.integers(0, len(choices), num_items)
        for choices in (
            words.TYPES, words.STYLES, words.MATERIALS, words.COLOURS, words.BRANDS, words.SIZES
        )
    )  # fmt: skip
    category = _TYPE_CATEGORY[kind]
    log_price = (
        words.column(words.CATEGORIES)[category]
        + words.column(words.MATERIALS)[material]
        + words.column(words.BRANDS)[brand]
        + words.column(words.SIZES)[size]
        + 0.6 * rng.standard_normal(num_items)
    )
    price_z = (log_price - log_price.mean()) / log_price.std()
    rating = np.clip(np.round(3.9 + 0.6 * rng.standard_normal(num_items), 1), 1.0, 5.0)
    popularity = (
        0.8 * (rating - 3.9) / 0.6
        + 0.5 * rng.standard_normal(len(words.TYPES))[kind]
        + 0.4 * rng.standard_normal(num_items)
    )
    names = pa.array([phrase.catalogue[0] for phrase in words.CATEGORIES])
    return Catalogue(
        item_id=ids("i", np.arange(num_items)),
        text=_texts(rng, kind=kind, style=style, material=material, colour=colour, brand=brand,
                    size=size),
        category=names.take(pa.array(category)),
        category_code=category,
        kind=kind,
        style=style,
        material=material,
        colour=colour,
        brand=brand,
        price=np.round(np.exp(log_price), 2),
        price_z=price_z,
        rating=rating,
        popularity=popularity,
        resale=_TYPE_RESALE[kind],
    )  # fmt: skip


def _texts(
    rng: np.random.Generator,
    *,
    kind: Ints,
    style: Ints,
    material: Ints,
    colour: Ints,
    brand: Ints,
    size: Ints,
) -> pa.Array:
    """Product texts in one of two orders, such as "Willow retro blue oak teapot small"."""
    said = {
        name: choose_words(rng, [phrase.catalogue for phrase in phrases], values)
        for name, phrases, values in (
            ("kind", tuple(kind.words for kind in words.TYPES), kind),
            ("style", words.STYLES, style),
            ("material", words.MATERIALS, material),
            ("colour", words.COLOURS, colour),
            ("brand", words.BRANDS, brand),
            ("size", words.SIZES, size),
        )
    }
    first = ("brand", "style", "colour", "material", "kind", "size")
    second = ("size", "colour", "style", "kind", "material", "brand")
    swap = rng.random(len(kind)) < 0.5
    return join(*(np.where(swap, said[b], said[a]) for a, b in zip(first, second, strict=True)))


def missing(rng: np.random.Generator, values: Floats, *, share: float) -> pa.Array:
    """The values with a share of them null: shops don't know everything of every row."""
    return pa.array(values, pa.float64(), mask=rng.random(len(values)) < share)
