"""A simulated marketplace whose true probabilities are known: the data a fresh install runs on.

Rows are made in chunks of `CHUNK_USERS` users. A chunk is a pure function of the size, the seed
and its number, so any number of processes writes the same rows. See docs/simulation.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from rectrain.data.simulate.ads import make_ads
from rectrain.data.simulate.catalogue import make_catalogue
from rectrain.data.simulate.columns import Floats, Ints
from rectrain.data.simulate.orders import COUNTRIES, make_orders
from rectrain.data.simulate.queries import make_search
from rectrain.data.simulate.users import Users, make_purchases, make_users, propensity
from rectrain.errors import DataError

__all__ = [
    "CHUNK_USERS",
    "SIZES",
    "Size",
    "num_chunks",
    "purchase_propensity",
    "simulate",
]

CHUNK_USERS = 250


@dataclass(frozen=True, slots=True)
class Size:
    """How large a marketplace is; every count is at least 1.

    Attributes:
        num_users, num_items, num_queries: counts of the whole marketplace.
        list_size: products of one query's list.
        purchases, ads, orders: mean rows of one user.
    """

    num_users: int = 2_000
    num_items: int = 4_000
    num_queries: int = 1_000
    list_size: int = 12
    purchases: float = 12.5
    ads: float = 15.0
    orders: float = 12.5

    def __post_init__(self) -> None:
        for name in self.__slots__:
            if not getattr(self, name) >= 1:
                raise DataError(
                    what=f"simulated.{name}",
                    got=getattr(self, name),
                    rule="every count of the simulated marketplace is at least 1",
                    fix="give a larger number",
                )


SIZES: Mapping[str, Size] = {
    "tiny": Size(num_users=100, num_items=200, num_queries=50, list_size=8, purchases=8.0,
                 ads=6.0, orders=6.0),
    "demo": Size(),
    "large": Size(num_users=100_000, num_items=20_000, num_queries=50_000, list_size=16),
}  # fmt: skip


def num_chunks(size: Size) -> int:
    """How many chunks make the whole marketplace."""
    return -(-size.num_users // CHUNK_USERS)


def simulate(size: Size, *, seed: int, chunk: int | None = None) -> dict[str, pa.Table]:
    """Rows of the four tasks, in each task's fields, with the truth in `p_true`.

    Args:
        size: of the whole marketplace; see `SIZES`.
        seed: 0 or more; another seed is another shop.
        chunk: 0 <= chunk < num_chunks(size), or None for all of them, in order.

    Returns:
        task -> table. `p_true` is the probability of a click (ad_ctr) or of fraud (risk), the
        expected gain / 7 of a product (search_ranking), the probability that the user's next
        purchase is this item (recommendation).
    """
    if chunk is None:
        parts = [simulate(size, seed=seed, chunk=number) for number in range(num_chunks(size))]
        return {task: pa.concat_tables([part[task] for part in parts]) for task in parts[0]}
    catalogue = make_catalogue(size.num_items, seed=seed)
    users = _users(size, seed=seed, chunk=chunk)
    return {
        "recommendation": make_purchases(
            users, catalogue, mean_purchases=size.purchases, seed=seed, chunk=chunk
        ),
        "search_ranking": make_search(
            catalogue, _share(size.num_queries, size, chunk=chunk), list_size=size.list_size,
            seed=seed, chunk=chunk,
        ),
        "ad_ctr": make_ads(users, catalogue, mean_ads=size.ads, seed=seed, chunk=chunk),
        "risk": make_orders(users, catalogue, mean_orders=size.orders, seed=seed, chunk=chunk),
    }  # fmt: skip


def purchase_propensity(
    user_ids: Sequence[str], size: Size, *, seed: int
) -> tuple[list[str], Floats]:
    """The truth of recommendation: what each user is likely to buy next.

    The best possible ranking for a user sorts the items by it, without those already bought.

    Args:
        user_ids: ids of the simulated log, any order; ask for some thousands at a time, for the
            result holds every item for each.
        size, seed: of the simulation that wrote the log.

    Returns:
        The ids of all items, and float32 [users, items], each row a distribution.
    """
    catalogue = make_catalogue(size.num_items, seed=seed)
    numbers = np.array([int(user.removeprefix("u")) for user in user_ids], np.int64)
    result = np.empty((len(numbers), len(catalogue)), np.float32)
    for chunk in np.unique(numbers // CHUNK_USERS):
        rows = np.flatnonzero(numbers // CHUNK_USERS == chunk)
        users = _users(size, seed=seed, chunk=int(chunk))
        result[rows] = propensity(users, catalogue)[numbers[rows] % CHUNK_USERS]
    return catalogue.item_id.to_pylist(), result


def _users(size: Size, *, seed: int, chunk: int) -> Users:
    first = chunk * CHUNK_USERS
    number = np.arange(first, min(first + CHUNK_USERS, size.num_users))
    return make_users(number, seed=seed, chunk=chunk, num_countries=len(COUNTRIES))


def _share(total: int, size: Size, *, chunk: int) -> Ints:
    """The numbers of a chunk when `total` things are dealt evenly over the chunks."""
    chunks = num_chunks(size)
    return np.arange(total * chunk // chunks, total * (chunk + 1) // chunks)
