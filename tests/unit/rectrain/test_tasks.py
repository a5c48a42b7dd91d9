from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from rectrain.inference.baselines import CATALOGUE_BASELINES, ROW_BASELINES
from rectrain.metrics import metric
from rectrain.tasks import TASKS


def test_the_shops_four_tasks_come_first_and_all_have_their_own_names() -> None:
    assert list(TASKS)[:4] == ["recommendation", "search_ranking", "ad_ctr", "risk"]
    assert all(name == spec.name == spec.fields.task for name, spec in TASKS.items())


@pytest.mark.parametrize("task", TASKS)
def test_every_metric_of_a_task_is_known_and_its_primary_one_has_a_direction(task: str) -> None:
    assert all(metric(name).name == name for name in TASKS[task].metrics)
    assert metric(TASKS[task].primary).higher_is_better is not None


@pytest.mark.parametrize("task", TASKS)
def test_every_baseline_of_a_task_is_known(task: str) -> None:
    known = CATALOGUE_BASELINES if TASKS[task].has_catalogue else ROW_BASELINES
    assert TASKS[task].baselines and set(TASKS[task].baselines) <= set(known)


@pytest.mark.parametrize("task", TASKS)
def test_the_simulated_truth_is_never_an_input(task: str) -> None:
    spec = TASKS[task]
    inputs = {*spec.query, *spec.item, *spec.fields.names("numeric", "categorical", "vector")}
    assert not inputs & set(spec.fields.names("oracle", "label", "weight", "id", "group", "split"))


@pytest.mark.parametrize(
    "changes",
    [
        {"item": ()},
        {"item": ("price",)},
        {"query": ("nowhere",)},
        {"head": "single"},
        {"loss": "in_batch_softmax"},
        {"head": "bi_encoder"},
        {"primary": "gauc@3"},
    ],
)
def test_an_inconsistent_spec_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(AssertionError):
        replace(TASKS["ad_ctr"], **changes)
