"""JSON that any program reads."""

from __future__ import annotations

import json
import math
from types import MappingProxyType

import pytest

from rectrain.strict_json import finite, number, strict_json

NAN, INF = math.nan, math.inf


def test_what_is_no_number_is_null_at_any_depth_and_all_else_stays() -> None:
    value = {"a": [NAN, 1.5, (INF, -INF)], "b": MappingProxyType({"c": NAN, "d": "NaN"}), "e": None}
    found = {"a": [None, 1.5, [None, None]], "b": {"c": None, "d": "NaN"}, "e": None}
    assert json.loads(strict_json(value), parse_constant=pytest.fail) == finite(value) == found
    same = {"z": 1, "a": [True, 0.1, "é", [], {}], "m": 2**70}
    assert strict_json(same) == json.dumps(same, indent=1) + "\n"


def test_null_is_read_back() -> None:
    assert math.isnan(number(None)) and number(0.5) == 0.5
