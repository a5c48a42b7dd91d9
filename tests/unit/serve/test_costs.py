"""What an answer costs is told where it is asked for and known, and never of other packages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import pytest

from rectrain.errors import PackageError
from serve.costs import read_costs
from serve.schemas import Answer, Item, Versions

CONTENT = {
    "currency": "EUR",
    "versions": {"small": "s" * 64, "large": "l" * 64},
    "answers": {
        "small": {"small": {"search_ranking": [0.125, 0.0625]}},
        "large": {"large": {"search_ranking": [1.0, 0.75]}},
        "pair": {
            "small": {"search_ranking": [0.25, 0.125], "ad_ctr": [0.5, 0.5]},
            "large": {"search_ranking": [2.0, 1.5]},
        },
    },
    "routes": {"what": "other readers want"},
}
PAIR = {"small": "s" * 64, "large": "l" * 64}


def written(folder: Path, **changed: Any) -> str:
    path = folder / "cost.json"
    path.write_text(json.dumps({**CONTENT, **changed}))
    return str(path)


def answer(*by: Literal["small", "large"], **facts: Any) -> Answer:
    """An answer with an item by each of these."""
    items = tuple(Item(index=place, score=0.5, by=one) for place, one in enumerate(by))
    given = {"deferred": "large" in by, "reason": "confident", "confidence": 0.5, **facts}
    return Answer(items=items, model="shop", versions=Versions(small="s", large=None), **given)


@pytest.mark.parametrize(
    ("by", "facts", "expected"),
    [
        (["small"], {}, 0.25 + 0.125),
        (["small"] * 4, {}, 0.25 + 4 * 0.125),
        (["small"] * 4, {"reason": "over_budget"}, 0.25 + 4 * 0.125),
        # The small model answers first, and the large one scores what is deferred.
        (["large", "small", "small"], {}, 0.25 + 3 * 0.125 + 2.0 + 1.5),
        (["large"] * 3, {"reason": "asked"}, 0.25 + 3 * 0.125 + 2.0 + 3 * 1.5),
        (["large"] * 3, {"cached": True}, 0.0),
    ],
)
def test_an_answer_costs_what_scoring_its_candidates_takes(by, facts, expected, tmp_path):
    told = read_costs(written(tmp_path), **PAIR).of("rank", answer(*by, **facts))
    assert told is not None and (told.currency, told.per_1000) == ("EUR", expected)


def test_of_a_task_that_was_not_priced_nothing_is_told(tmp_path):
    costs = read_costs(written(tmp_path), **PAIR)
    assert costs.of("risk", answer("small")) is None
    assert costs.of("ctr", answer("small")) is not None
    assert costs.of("ctr", answer("large")) is None


@pytest.mark.parametrize(("version", "expected"), [("s" * 64, 0.25), ("l" * 64, 2.5)])
def test_one_of_a_pair_that_serves_alone_costs_what_it_does_alone(version, expected, tmp_path):
    told = read_costs(written(tmp_path), small=version, large=None).of(
        "rank", answer(*["small"] * 2)
    )
    assert told is not None and told.per_1000 == expected


def test_a_model_that_was_priced_alone_tells_its_costs_where_it_serves_alone(tmp_path):
    alone = {"large": {"large": {"search_ranking": [4.0, 0.0]}}}
    path = written(tmp_path, versions={"large": "l" * 64}, answers=alone)
    told = read_costs(path, small="l" * 64, large=None).of("rank", answer("small"))
    assert told is not None and told.per_1000 == 4.0
    for other in ({**PAIR, "large": None}, PAIR):
        with pytest.raises(PackageError, match="of a small model of version none"):
            read_costs(path, **other)


def test_where_no_plan_keeps_the_limits_nothing_is_told(tmp_path):
    for served in (PAIR, {**PAIR, "large": None}):
        costs = read_costs(written(tmp_path, answers={}), **served)
        assert costs.of("rank", answer("small")) is None


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"versions": {"small": "x" * 64, "large": "l" * 64}}, "of a small model of version xxxx"),
        ({"versions": {"small": "s" * 64}}, "of a large model of version none"),
        ({"answers": {"pair": {"small": {"risk": [-1.0, 0.0]}}}}, "must be a cost.json"),
        ({"answers": {"pair": {"small": {"risk": 1.0}}}}, "must be a cost.json"),
        ({"currency": None}, "must be a cost.json"),
    ],
)
def test_costs_of_other_packages_or_of_another_form_are_refused(changed, said, tmp_path):
    with pytest.raises(PackageError, match=said):
        read_costs(written(tmp_path, **changed), **PAIR)
    with pytest.raises(PackageError, match=r"cost\.json"):
        read_costs(str(tmp_path / "nowhere.json"), small="s" * 64, large=None)


def test_answers_tell_it_where_it_is_asked_for(graph, tmp_path):
    from served_toy import search

    silent = graph()
    asked = {**search(), "options": {"cost": True}}
    assert silent.post("/v1/rank", asked).json()["cost"] is None
    versions = {"small": silent.answerer.small.version, "large": silent.answerer.large_version}
    costs = read_costs(written(tmp_path, versions=versions), **versions)
    served = graph(costs=costs)
    assert served.post("/v1/rank", search()).json()["cost"] is None
    for count in (1, 4):
        told = served.post("/v1/rank", {**asked, **search(count)}).json()["cost"]
        assert told == {"currency": "EUR", "per_1000": 0.25 + count * 0.125}
