"""The shop's customers, what they like, and their purchase log."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from rectrain.data.simulate import vocabulary as words
from rectrain.data.simulate.catalogue import Catalogue, missing
from rectrain.data.simulate.columns import Floats, Ints, gumbel, ids, stream

__all__ = ["START", "Users", "make_purchases", "make_users", "propensity"]

START = np.datetime64("2024-01-01T00:00:00", "us")
_YEAR_S = 365 * 86_400

NUM_INTERESTS = 2
_MAX_BASKETS = 8
_MAX_BASKET = 4

# Log odds that an item of the liked category, style, … gains over others.
_LIKES = {"category": 3.0, "style": 3.0, "material": 1.5, "colour": 1.5}
_PRICE_PULL = 0.5


@dataclass(frozen=True, slots=True)
class Users:
    """The users of a chunk; arrays have one entry a user, or one a user and interest.

    Attributes:
        number: position of the user in the whole shop; its id is "u" and this number.
        category, style, material, colour: int [users, interests], what each interest likes.
        share: [users, interests], share of the baskets that an interest fills; sums to 1.
        price_level: the log price (standardised) a user likes best.
        country: position in the list of countries.
        joined_day: days before `START` that the account was opened; below 0: after it.
    """

    number: Ints
    category: Ints
    style: Ints
    material: Ints
    colour: Ints
    share: Floats
    price_level: Floats
    country: Ints
    joined_day: Floats

    def __len__(self) -> int:
        return len(self.number)


def make_users(number: Ints, *, seed: int, chunk: int, num_countries: int) -> Users:
    """The users of one chunk, the same for every part of the simulation that asks."""
    rng = stream("users", seed=seed, chunk=chunk)
    shape = (len(number), NUM_INTERESTS)
    first = rng.uniform(0.5, 0.9, len(number))
    return Users(
        number=number,
        category=rng.integers(0, len(words.CATEGORIES), shape),
        style=rng.integers(0, len(words.STYLES), shape),
        material=rng.integers(0, len(words.MATERIALS), shape),
        colour=rng.integers(0, len(words.COLOURS), shape),
        share=np.stack([first, 1 - first], axis=1),
        price_level=0.8 * rng.standard_normal(len(number)),
        country=rng.choice(num_countries, len(number), p=_country_shares(num_countries)),
        joined_day=rng.exponential(400.0, len(number)) - 300.0,
    )


def _country_shares(num_countries: int) -> Floats:
    shares: Floats = 1.0 / np.arange(1, num_countries + 1)
    result: Floats = shares / shares.sum()
    return result


def _logits(users: Users, catalogue: Catalogue) -> Floats:
    """Log odds of a purchase, float32 [users, interests, items]."""
    logits = np.zeros((len(users), NUM_INTERESTS, len(catalogue)), np.float32)
    for name, gain in _LIKES.items():
        has = catalogue.category_code if name == "category" else getattr(catalogue, name)
        logits += np.float32(gain) * (getattr(users, name)[:, :, None] == has)
    distance = users.price_level[:, None] - catalogue.price_z[None, :]
    shared = catalogue.popularity[None, :] - _PRICE_PULL * distance**2
    logits += shared.astype(np.float32)[:, None, :]
    return logits


def propensity(users: Users, catalogue: Catalogue) -> Floats:
    """The probability that a user's next purchase is each item, float32 [users, items].

    p(i) = Σ_k share_k · softmax_i(logits_k) over the user's interests k; rows sum to 1.
    """
    logits = _logits(users, catalogue)
    odds = np.exp(logits - logits.max(axis=2, keepdims=True))
    odds /= odds.sum(axis=2, keepdims=True)
    mixed: Floats = np.einsum("uk,uki->ui", users.share.astype(np.float32), odds)
    return mixed


def make_purchases(
    users: Users, catalogue: Catalogue, *, mean_purchases: float, seed: int, chunk: int
) -> pa.Table:
    """The purchase log of a chunk's users, in the fields of recommendation.

    A basket follows one interest of its user. Its items are draws without replacement: the
    largest of logits + Gumbel noise, so that an interest buys a thing once.
    """
    rng = stream("purchases", seed=seed, chunk=chunk)
    user, interest, session, day_s = _lines(rng, users, mean_purchases=mean_purchases)
    items = _draw(rng, users, catalogue, user=user, interest=interest)
    p_true = propensity(users, catalogue)[user, items]
    chosen = pa.array(items)
    return pa.table(
        {
            "user_id": ids("u", users.number[user]),
            "session_id": ids(f"s{chunk}-", session),
            "item_id": catalogue.item_id.take(chosen),
            "item_text": catalogue.text.take(chosen),
            "price": missing(rng, catalogue.price[items], share=0.03),
            "category": catalogue.category.take(chosen),
            "rating": missing(rng, catalogue.rating[items], share=0.03),
            "timestamp": pa.array(START + day_s.astype("timedelta64[s]"), pa.timestamp("us")),
            "row_id": ids(f"purchase-{chunk}-", np.arange(len(items))),
            "p_true": pa.array(p_true.astype(np.float64)),
        }
    )


def _lines(
    rng: np.random.Generator, users: Users, *, mean_purchases: float
) -> tuple[Ints, Ints, Ints, Ints]:
    """User, interest, basket and second of the year of every purchase, by user and time."""
    mean_basket = (1 + _MAX_BASKET) / 2
    wanted = np.clip(rng.poisson(mean_purchases / mean_basket, len(users)), 1, _MAX_BASKETS * 2)
    basket_user = np.repeat(np.arange(len(users)), wanted)
    interest = (rng.random(len(basket_user)) >= users.share[basket_user, 0]).astype(np.int64)
    second = rng.integers(0, _YEAR_S, len(basket_user))
    order = np.lexsort((second, basket_user))
    lines = np.repeat(order, rng.integers(1, _MAX_BASKET + 1, len(basket_user)))
    return basket_user[lines], interest[lines], lines, second[lines]


def _draw(
    rng: np.random.Generator, users: Users, catalogue: Catalogue, *, user: Ints, interest: Ints
) -> Ints:
    """The item of every line: an interest's lines take its most wanted items in turn."""
    wants = _logits(users, catalogue)
    wants += gumbel(rng, wants.shape)
    flat = user * NUM_INTERESTS + interest
    order = np.argsort(flat, kind="stable")
    starts = np.searchsorted(flat[order], np.arange(len(users) * NUM_INTERESTS))
    turn = np.empty(len(flat), np.int64)
    turn[order] = np.arange(len(flat)) - starts[flat[order]]
    most = min(int(turn.max()) + 1, len(catalogue))
    best = np.argpartition(-wants, most - 1, axis=2)[:, :, :most]
    ranks = np.argsort(-np.take_along_axis(wants, best, axis=2), axis=2)
    return np.take_along_axis(best, ranks, axis=2)[user, interest, turn % most]
