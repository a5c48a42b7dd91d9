"""UCI Online Retail: a shop's order lines -> recommendation and return risk.

Read as published (InvoiceNo, StockCode, Description, Quantity, InvoiceDate, UnitPrice,
CustomerID, Country; xlsx or csv) or as Parquet; without StockCode the Description is the item.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from rectrain.data.config import PrepareConfig
from rectrain.data.fields import SET_ASIDE
from rectrain.data.sources.source import Part, Source, find_all, read_one, require_columns
from rectrain.errors import DataError

__all__ = ["SOURCE", "convert_order_lines"]

NO_CUSTOMER = "no customer"
INCOMPLETE = "no time or no quantity"
RETURNED = "a returned or cancelled line"
NO_PRICE = "no price: not a sale"
UNKNOWN_OUTCOME = "outcome not yet known at the end of the log"
RETURN_DAYS = 30
_DAY_US = 86_400_000_000
_COLUMNS = ("Description", "Quantity", "InvoiceDate", "UnitPrice", "CustomerID", "Country")
_DATE_FORMATS = ("%m/%d/%Y %H:%M", "%Y-%m-%d %H:%M:%S", "%d/%m/%Y %H:%M")

Ints = npt.NDArray[np.int64]


def convert_order_lines(lines: pa.Table) -> dict[str, pa.Table]:
    """Turn order lines into purchases and into lines with a return label.

    recommendation: lines of customers with a positive quantity.
    risk: such lines with a positive price whose outcome is known; label 1 if the same customer
    has a negative line of the same product after the line and within 30 days of it. A line's
    outcome is known when the log's last day is later than 30 days after the line's day.
    account_age_days, num_past_orders and num_past_returns count what lies before the line.

    Args:
        lines: order lines in the published columns.

    Returns:
        The rows of both tasks, every line in each: those that are not for a task are set aside.

    Raises:
        DataError: no lines, a missing column, or times that can't be read.
    """
    _check(lines)
    times = _times(lines["InvoiceDate"])
    customers = _customers(lines["CustomerID"])
    text = pc.utf8_trim_whitespace(lines["Description"].cast(pa.string()))
    coded = "StockCode" in lines.column_names
    item_id = (lines["StockCode"] if coded else lines["Description"]).cast(pa.string())
    quantity, price = lines["Quantity"].cast(pa.float64()), lines["UnitPrice"].cast(pa.float64())
    row_id = pa.array([f"line-{n}" for n in range(lines.num_rows)])
    whole = pc.and_(pc.is_valid(times), pc.fill_null(pc.is_finite(quantity), False))
    not_bought = pc.if_else(
        pc.is_null(customers),
        NO_CUSTOMER,
        pc.if_else(whole, pc.if_else(pc.less_equal(quantity, 0), RETURNED, None), INCOMPLETE),
    )
    shared = {
        "user_id": customers, "item_id": item_id, "item_text": text,
        "price": pc.if_else(pc.less(price, 0), None, price),
        "timestamp": times, "row_id": row_id,
    }  # fmt: skip
    purchases = pa.table({**shared, SET_ASIDE: not_bought})
    # A line without a time or a quantity is nobody's: it is no order and no return of anyone.
    owners = pc.if_else(whole, customers, None)
    users, items, when, positive = _keys(owners, item_id, times, quantity)
    history = _past(users, when, positive)
    known = when // _DAY_US + RETURN_DAYS < when.max() // _DAY_US
    not_risk = pc.coalesce(
        not_bought,
        pc.if_else(pc.greater(price, 0), None, NO_PRICE),
        pc.if_else(pa.array(known), None, UNKNOWN_OUTCOME),
    )
    risk = {
        **shared,
        "amount": pc.multiply(quantity, price),
        "quantity": quantity,
        "hour": pc.hour(times),
        "weekday": pc.day_of_week(times),
        **{name: pa.array(values) for name, values in history.items()},
        "country": lines["Country"].cast(pa.string()),
        "label": pa.array(_returned(users, items, when, positive)),
        SET_ASIDE: not_risk,
    }
    return {"recommendation": purchases, "risk": pa.table(risk)}


def _check(lines: pa.Table) -> None:
    require_columns(lines, _COLUMNS, what="Online Retail")
    if not lines.num_rows:
        raise DataError(
            what="Online Retail", got="a table without a line", rule="at least one is needed",
            fix="give a file with order lines",
        )  # fmt: skip


def _times(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Timestamps in microseconds, read from text where a CSV holds text."""
    if pa.types.is_timestamp(column.type):
        return column.cast(pa.timestamp("us"), safe=False)
    text = column.cast(pa.string())
    for form in _DATE_FORMATS:
        try:
            return pc.strptime(text, format=form, unit="us")
        except pa.ArrowInvalid:
            continue
    raise DataError(
        what="column InvoiceDate",
        got=text[0],
        rule=f"must be a time like {_DATE_FORMATS[0]}",
        fix="give the file as published, or timestamps",
    )


def _customers(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Customer ids as text: the published 17850.0 is 17850."""
    if pa.types.is_floating(column.type):
        column = pc.if_else(pc.is_nan(column), None, column).cast(pa.int64())
    return column.cast(pa.string())


def _keys(
    customers: pa.ChunkedArray, items: pa.ChunkedArray, times: pa.ChunkedArray,
    quantity: pa.ChunkedArray,
) -> tuple[Ints, Ints, Ints, npt.NDArray[np.bool_]]:  # fmt: skip
    """Numbers of customer (-1: none) and item, microseconds, and whether the line is positive."""

    def number(column: pa.ChunkedArray) -> Ints:
        codes = column.combine_chunks().dictionary_encode().indices
        return np.asarray(pc.fill_null(codes, -1), dtype=np.int64)

    when = pc.fill_null(times.cast(pa.int64()), 0).to_numpy()
    return number(customers), number(items), when, pc.fill_null(quantity, 0.0).to_numpy() > 0


def _returned(
    users: Ints, items: Ints, when: Ints, positive: npt.NDArray[np.bool_]
) -> npt.NDArray[np.int8]:
    """1 where the pair's next negative line comes within the days a return may take."""
    pair = users * (items.max() + 2) + items
    # by pair and time; of lines at one time the negative first, as it must come later to count
    order = np.lexsort((positive, when, pair))
    negative_time = np.where(positive[order], np.iinfo(np.int64).max, when[order])
    label = np.zeros(len(users), dtype=np.int8)
    ends = np.flatnonzero(np.diff(pair[order], append=pair.min() - 1)) + 1
    start = 0
    for end in ends.tolist():
        times = negative_time[start:end]
        # the earliest negative line from each place on
        nearest = np.minimum.accumulate(times[::-1])[::-1]
        delay = np.where(nearest == np.iinfo(np.int64).max, -1, nearest - when[order[start:end]])
        label[order[start:end]] = (delay > 0) & (delay <= RETURN_DAYS * _DAY_US)
        start = end
    label[~positive | (users < 0)] = 0
    return label


def _past(
    users: Ints, when: Ints, positive: npt.NDArray[np.bool_]
) -> dict[str, npt.NDArray[np.float64]]:
    """What is known of the customer before each line; nothing of the line's own moment counts."""
    order = np.lexsort((when, users))
    u, t = users[order], when[order]
    new_user = np.diff(u, prepend=u[0] - 1 if len(u) else 0) != 0
    new_moment = new_user | (np.diff(t, prepend=t[0] if len(t) else 0) != 0)
    moment = np.cumsum(new_moment) - 1
    sells = np.zeros(moment[-1] + 1, dtype=np.int64)
    np.maximum.at(sells, moment, positive[order].astype(np.int64))
    returns = np.bincount(moment, weights=~positive[order]).astype(np.int64)
    first = np.flatnonzero(new_user)
    first_row = first[np.cumsum(new_user) - 1]  # each row's user's first row
    orders_before = np.cumsum(sells) - sells
    returns_before = np.cumsum(returns) - returns
    begun = moment[first_row]
    values = {
        "account_age_days": (t - t[first_row]) / _DAY_US,
        "num_past_orders": orders_before[moment] - orders_before[begun],
        "num_past_returns": returns_before[moment] - returns_before[begun],
    }
    result = {}
    for name, value in values.items():
        result[name] = np.empty(len(users), dtype=np.float64)
        result[name][order] = value
    return result


def _read(files: Sequence[str]) -> dict[str, pa.Table]:
    return convert_order_lines(read_one(files, what="Online Retail"))


def _parts(config: PrepareConfig) -> Sequence[Part]:
    """One part: a return is found by looking over all lines."""
    suffixes = (".parquet", ".csv", ".xlsx")
    return [partial(_read, find_all(config, suffixes=suffixes, example="online_retail.parquet"))]


# A purchase log shows that a line was bought, not that it came back: recommendation may train on
# lines whose return is risk's test. What a customer bought last is recommendation's secret, so
# risk never trains on it.
SOURCE = Source(
    _parts,
    splits={"risk": {"by": "time", "test_start": "2011-09-01", "gap_days": RETURN_DAYS}},
    holdouts=("recommendation",),
)
