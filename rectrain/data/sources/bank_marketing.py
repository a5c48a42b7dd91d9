"""UCI Bank Marketing: who takes up an offer made by telephone -> ad_ctr.

Read as published: bank-full.csv or bank-additional-full.csv, separated by ";", with the outcome
in `y` (or `deposit`). `duration` is known only after the call and is never a feature.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rectrain.data.config import PrepareConfig
from rectrain.data.sources.source import (
    Part,
    Source,
    find_all,
    numbers,
    read_one,
    require_columns,
)
from rectrain.errors import DataError

__all__ = ["SOURCE", "convert_contacts"]

_OFFER = "bank term deposit"
_TEST_SHARE = 0.2
_NEVER_CONTACTED = (-1.0, 999.0)  # pdays of bank-full, and of bank-additional
_NUMERIC = (
    "age", "balance", "day", "campaign", "pdays", "previous", "emp.var.rate", "cons.price.idx",
    "cons.conf.idx", "euribor3m", "nr.employed",
)  # fmt: skip
_CATEGORICAL = (
    "job", "marital", "education", "default", "housing", "loan", "contact", "month", "day_of_week",
    "poutcome",
)  # fmt: skip
_REQUIRED = ("age", "job", "marital", "education", "campaign", "pdays", "poutcome")


def convert_contacts(contacts: pa.Table, *, seed: int) -> pa.Table:
    """Rows of ad_ctr, one a contact, with the file's columns as features.

    No customer is named, so each contact is its own user; there is one offer, and its name is all
    the text. A fifth of the contacts is test, stratified by the outcome, as scikit-learn's
    train_test_split draws it.

    Args:
        contacts: as published; columns of the other published form may be missing.
        seed: of the split.

    Raises:
        DataError: a missing column, or too few outcomes of a kind to split.
    """
    require_columns(contacts, _REQUIRED, what="Bank Marketing")
    outcome = "y" if "y" in contacts.column_names else "deposit"
    require_columns(contacts, (outcome,), what="Bank Marketing")
    n = contacts.num_rows
    answer = contacts[outcome].cast(pa.string())
    known = pc.is_in(answer, pa.array(["yes", "no"]))
    ids = pa.array([f"contact-{row}" for row in range(n)])
    columns: dict[str, Any] = {
        "user_id": ids,
        "item_id": pa.array([_OFFER] * n),
        "item_text": pa.array([_OFFER] * n),
        "label": pc.if_else(known, pc.equal(answer, "yes"), None),
        "row_id": ids,
        "split": _stratified(answer, seed=seed),
    }  # fmt: skip
    for name in _NUMERIC:
        if name in contacts.column_names:
            columns[_field(name)] = numbers(contacts[name])
    never = pc.is_in(columns["pdays"], pa.array(_NEVER_CONTACTED))
    columns["pdays"] = pc.if_else(never, None, columns["pdays"])
    for name in _CATEGORICAL:
        if name in contacts.column_names:
            columns[name] = contacts[name].cast(pa.string())
    return pa.table(columns)


def _field(name: str) -> str:
    return name.replace(".", "_")


def _stratified(answer: pa.ChunkedArray, *, seed: int) -> pa.Array:
    """train or test of each contact."""
    from sklearn.model_selection import train_test_split

    classes = pc.fill_null(pc.equal(answer, "yes"), False).to_numpy()
    try:
        _, test = train_test_split(
            np.arange(len(classes)), test_size=_TEST_SHARE, stratify=classes, random_state=seed
        )
    except ValueError as error:
        raise DataError(
            what="Bank Marketing", got=error, rule="both outcomes are needed in train and test",
            fix="give more rows, or all of the file",
        ) from error  # fmt: skip
    split = np.full(len(classes), "train", dtype=object)
    split[test] = "test"
    return pa.array(split, pa.string())


def _read(files: Sequence[str], seed: int) -> dict[str, pa.Table]:
    return {"ad_ctr": convert_contacts(read_one(files, what="Bank Marketing"), seed=seed)}


def _parts(config: PrepareConfig) -> Sequence[Part]:
    """One part: the split is drawn over all contacts."""
    files = find_all(config, suffixes=(".csv",), example="bank-full.csv")
    return [partial(_read, files, config.seed)]


SOURCE = Source(
    _parts,
    features={
        "ad_ctr": {
            **{_field(name): {"kind": "numeric"} for name in _NUMERIC},
            **{name: {"kind": "categorical"} for name in _CATEGORICAL},
        }
    },
)
