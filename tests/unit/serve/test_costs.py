"""What an answer costs is told where it is asked for and known, and never of other packages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rectrain.errors import PackageError
from serve.costs import read_costs
from serve.schemas import Answer, Versions

CONTENT = {
    "currency": "EUR",
    "versions": {"small": "s" * 64, "large": "l" * 64},
    "answers_per_1000": {"search_ranking": {"small": 0.5, "large": 4.0, "deferred": 1.5}},
    "routes": {"what": "other readers want"},
}


def written(folder: Path, **changed: Any) -> str:
    path = folder / "cost.json"
    path.write_text(json.dumps({**CONTENT, **changed}))
    return str(path)


def answer(**facts: Any) -> Answer:
    given = {"deferred": False, "reason": "confident", "confidence": 0.5, **facts}
    return Answer(items=(), model="shop", versions=Versions(small="s", large=None), **given)


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ({}, 0.5),
        ({"deferred": True, "reason": "doubtful"}, 1.5),
        ({"reason": "over_budget"}, 0.5),
        ({"deferred": True, "reason": "asked"}, 4.5),  # the small model answers first
        ({"deferred": True, "reason": "doubtful", "cached": True}, 0.0),
    ],
)
def test_an_answer_costs_what_the_models_that_gave_it_do(facts, expected, tmp_path):
    costs = read_costs(written(tmp_path), small="s" * 64, large="l" * 64)
    told = costs.of("rank", answer(**facts))
    assert told is not None and (told.currency, told.per_1000) == ("EUR", expected)


def test_of_a_task_that_was_not_priced_nothing_is_told(tmp_path):
    costs = read_costs(written(tmp_path), small="s" * 64, large=None)
    assert costs.of("risk", answer()) is None


def test_a_model_that_was_priced_alone_tells_its_costs_where_it_serves_alone(tmp_path):
    alone = {"versions": {"large": "l" * 64}, "answers_per_1000": {"search_ranking": {"large": 4.0}}}
    path = written(tmp_path, **alone)
    told = read_costs(path, small="l" * 64, large=None).of("rank", answer(reason="no_large"))
    assert told is not None and told.per_1000 == 4.0
    for other in ({"small": "s" * 64, "large": None}, {"small": "s" * 64, "large": "l" * 64}):
        with pytest.raises(PackageError, match="of a small model of version none"):
            read_costs(path, **other)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"versions": {"small": "x" * 64, "large": "l" * 64}}, "of a small model of version xxxx"),
        ({"versions": {"small": "s" * 64}}, "of a large model of version none"),
        ({"answers_per_1000": {"risk": {"small": -1.0}}}, "must be a cost.json"),
        ({"currency": None}, "must be a cost.json"),
    ],
)
def test_costs_of_other_packages_or_of_another_form_are_refused(changed, said, tmp_path):
    with pytest.raises(PackageError, match=said):
        read_costs(written(tmp_path, **changed), small="s" * 64, large="l" * 64)
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
    assert served.post("/v1/rank", asked).json()["cost"] == {"currency": "EUR", "per_1000": 0.5}
