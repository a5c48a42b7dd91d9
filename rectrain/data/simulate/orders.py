"""Orders and the probability that one is fraud: product, amount and account age together."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from rectrain.data.simulate import vocabulary as words
from rectrain.data.simulate.catalogue import Catalogue, missing
from rectrain.data.simulate.columns import Floats, ids, sigmoid, stream
from rectrain.data.simulate.users import START, Users

__all__ = ["COUNTRIES", "make_orders"]

COUNTRIES = ("GB", "DE", "FR", "NL", "ES", "IT", "PL", "SE")
PAYMENTS = ("card", "invoice", "voucher", "transfer")
_PAYMENT_SHARES = (0.5, 0.2, 0.15, 0.15)
_PAYMENT_RISK = np.array([0.0, 0.3, 0.5, -0.5])
_DAY_S = 86_400

_BASE = -3.2


def make_orders(
    users: Users, catalogue: Catalogue, *, mean_orders: float, seed: int, chunk: int
) -> pa.Table:
    """Order lines of a chunk's users, in the fields of risk, by user and time."""
    rng = stream("orders", seed=seed, chunk=chunk)
    user = np.repeat(np.arange(len(users)), rng.poisson(mean_orders, len(users)))
    count = len(user)
    second = rng.integers(0, 365 * _DAY_S, count)
    order = np.lexsort((second, user))
    user, second = user[order], second[order]
    first = np.searchsorted(user, user)
    # New accounts come in all the year: one opened after this order is taken as new.
    age_days = np.maximum(users.joined_day[user] + second / _DAY_S, 0) + rng.exponential(3.0, count)
    hour = second // 3600 % 24
    payment = rng.choice(len(PAYMENTS), count, p=_PAYMENT_SHARES)
    quantity = np.ceil(rng.exponential(2.0, count))
    items = rng.integers(0, len(catalogue), count)
    amount = np.round(catalogue.price[items] * quantity, 2)
    past_orders = np.arange(count) - first
    logit = _logit(
        catalogue.resale[items],
        festive=words.column(words.STYLES)[catalogue.style[items]],
        amount_z=(np.log(amount) - 3.7) / 1.0,
        young=1.0 - np.log1p(age_days) / 3.0,
        night=((hour < 6) | (hour >= 22)) * 1.0,
        payment=_PAYMENT_RISK[payment],
    )
    p_true = sigmoid(logit)
    chosen = pa.array(items)
    days = (START + second.astype("timedelta64[s]")).astype("datetime64[D]")
    return pa.table(
        {
            "user_id": ids("u", users.number[user]),
            "item_text": catalogue.text.take(chosen),
            "amount": pa.array(amount),
            "quantity": pa.array(quantity),
            "price": missing(rng, catalogue.price[items], share=0.03),
            "hour": pa.array(hour.astype(np.float64)),
            "weekday": pa.array(((days.astype(np.int64) + 3) % 7).astype(np.float64)),
            "account_age_days": pa.array(np.round(age_days, 1)),
            "num_past_orders": pa.array(past_orders.astype(np.float64)),
            "country": pa.array(COUNTRIES).take(pa.array(users.country[user])),
            "payment": pa.array(PAYMENTS).take(pa.array(payment)),
            "category": catalogue.category.take(chosen),
            "label": pa.array((rng.random(count) < p_true).astype(np.float64)),
            "timestamp": pa.array(START + second.astype("timedelta64[s]"), pa.timestamp("us")),
            "row_id": ids(f"order-{chunk}-", np.arange(count)),
            "item_id": catalogue.item_id.take(chosen),
            "p_true": pa.array(p_true),
        }
    )


def _logit(
    resale: Floats,
    *,
    festive: Floats,
    amount_z: Floats,
    young: Floats,
    night: Floats,
    payment: Floats,
) -> Floats:
    """Log odds of fraud: what sells on, in large amounts, from new accounts."""
    logit: Floats = (
        _BASE
        + 0.4 * resale
        + 0.3 * festive
        + 0.3 * amount_z
        + 0.5 * young
        + payment
        + 0.4 * night
        + 1.0 * resale * young
        + 0.7 * resale * amount_z
        + 0.7 * festive * np.where(payment > 0, 1.0, -1.0)
        + 0.3 * young * amount_z
    )
    return logit
