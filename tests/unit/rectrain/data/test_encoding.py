from __future__ import annotations

import json
from itertools import pairwise

import numpy as np
import pyarrow as pa

from rectrain.data.encoding import FeatureEncoder
from rectrain.data.fields import Field, FieldTable

TABLE = FieldTable(
    "t",
    1,
    (
        Field("price", "numeric"),
        Field("colour", "categorical"),
        Field("image", "vector"),
        Field("unused", "numeric"),
    ),
)


def rows(price: list[float | None], colour: list[str | None], image: list[list[float] | None]):  # type: ignore[no-untyped-def]
    return pa.table(
        {
            "price": pa.array(price, pa.float64()),
            "colour": pa.array(colour, pa.string()),
            "image": pa.array(image, pa.list_(pa.float32())),
            "unused": pa.nulls(len(price), pa.float64()),
        }
    )


TRAIN = rows(
    [*map(float, range(1000)), None], ["red"] * 600 + ["blue"] * 400 + ["once"],
    [[1.0, 2.0]] + [None] * 1000,
)  # fmt: skip


def test_fit_keeps_what_has_values_and_encode_marks_what_is_missing() -> None:
    encoder = FeatureEncoder.fit(TRAIN, TABLE)
    assert encoder.numeric_names == ("price",) and encoder.vectors == {"image": 2}
    assert encoder.categorical == {"colour": ("red", "blue")} and encoder.cardinalities == (4,)
    found = encoder.encode(rows([None, 5.0], [None, "blue"], [[3.0, 4.0], None]))
    np.testing.assert_array_equal(found.numeric, np.array([[np.nan], [5.0]], np.float32))
    np.testing.assert_array_equal(found.categorical, [[0], [3]])
    np.testing.assert_array_equal(found.vectors["image"], [[3.0, 4.0], [np.nan, np.nan]])
    # a value seen once, or never, is "other": a model learns what to do with one
    found = encoder.encode(rows([1.0, 1.0], ["once", "green"], [None, None]))
    np.testing.assert_array_equal(found.categorical, [[1], [1]])


def test_bin_edges_are_quantiles_that_ascend_and_leave_the_tails() -> None:
    edges = FeatureEncoder.fit(TRAIN, TABLE).numeric["price"]
    assert len(edges) == 17 and all(a < b for a, b in pairwise(edges))
    np.testing.assert_allclose(edges, np.quantile(np.arange(1000), np.linspace(0.002, 0.998, 17)))


def test_a_constant_and_a_two_valued_feature_have_a_bin_to_stand_in() -> None:
    for values in ([3.0] * 5, [0.0, 0.0, 1.0, 1.0]):
        table = rows(list(values), [None] * len(values), [None] * len(values))
        edges = FeatureEncoder.fit(table, TABLE).numeric["price"]
        assert len(edges) >= 2 and edges[0] <= min(values) and max(values) <= edges[-1]


def test_columns_that_are_not_there_are_missing() -> None:
    found = FeatureEncoder.fit(TRAIN, TABLE).encode(pa.table({"other": [1, 2]}))
    assert np.isnan(found.numeric).all() and (found.categorical == 0).all()
    assert np.isnan(found.vectors["image"]).all()


def test_json_brings_back_the_same_encoder_also_from_a_writer_that_sorts_keys() -> None:
    encoder = FeatureEncoder(
        numeric={"price": (0.0, 1.0), "amount": (0.0, 2.0)},
        categorical={"category": ("a",), "brand": ("b", "c")},
        vectors={"image": 3, "graph": 2},
    )
    text = json.dumps(encoder.to_json(), sort_keys=True)
    back = FeatureEncoder.from_json(json.loads(text))
    assert back == encoder
    assert back.numeric_names == ("price", "amount")
    assert back.categorical_names == ("category", "brand") and back.cardinalities == (3, 4)
    assert list(back.vectors) == ["image", "graph"]
