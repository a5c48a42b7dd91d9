"""jobs.calibrate on two packages of the marketplace: its table and files, and what it refuses."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from untrained import write_run

import rectrain
from jobs import calibrate, publish
from jobs.cli import exit_status
from rectrain.cascade import Budget, decide, merge, read_policy
from rectrain.cascade.scores import score_held_out
from rectrain.data.shards import Prepared
from rectrain.inference.evaluate import MODEL, judged_systems
from rectrain.inference.packaged import PackagedModel
from rectrain.metrics import metric
from rectrain.package import open_package

TASKS = ("recommendation", "search_ranking", "ad_ctr", "risk")


def publish_run(run: Path) -> Path:
    publish.main([f"--checkpoint={run}", f"--output={run / 'package'}"])
    return run / "package"


@pytest.fixture(scope="module")
def packages(
    marketplace: Path, untrained_run: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """Small and large: two models that know nothing, and differ."""
    other = write_run(tmp_path_factory.mktemp("runs") / "other", marketplace, seed=1)
    return publish_run(other), publish_run(untrained_run)


@pytest.fixture(scope="module")
def models(packages: tuple[Path, Path]) -> tuple[PackagedModel, PackagedModel]:
    small, large = (rectrain.load(path, backend="torch") for path in packages)
    return small, large


def arguments(packages: tuple[Path, Path], data: Path, *more: str) -> list[str]:
    small, large = packages
    return [
        f"--small={small}", f"--large={large}", f"--data={data}", "--backend=torch",
        "--num-resamples=50", *more,
    ]  # fmt: skip


def test_a_dry_run_checks_and_writes_nothing(
    packages: tuple[Path, Path], marketplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = dict(open_package(packages[0]).files)
    assert exit_status(calibrate.main, arguments(packages, marketplace, "--dry-run")) == 0
    printed = capsys.readouterr().out
    assert all(f"calibrate: {task}: " in printed for task in TASKS)
    assert open_package(packages[0]).files == before


def test_a_policy_is_written_into_the_small_package_and_serves(
    packages: tuple[Path, Path], marketplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    version = open_package(packages[0]).version
    assert exit_status(calibrate.main, arguments(packages, marketplace, "--budget=0.25")) == 0
    printed = capsys.readouterr().out
    assert all(f"| {task} |" in printed for task in TASKS) and "25.0%" in printed
    small, large = (rectrain.load(path, backend="torch") for path in packages)
    assert small.version == version
    assert (small.package.path / "calibration.png").stat().st_size > 10_000
    policy = read_policy(small.package, large=large.package)
    assert policy is not None and set(policy.tasks) == set(TASKS)
    risk = policy.tasks["risk"]
    assert risk.rate == pytest.approx(0.25, abs=0.02) and risk.calibration is not None
    rows = Prepared.open(str(marketplace)).shards("risk", "test").table()
    first, second = (
        model.predictor.score("risk", model.predictor.tokenised("risk", rows))
        for model in (small, large)
    )
    budget = Budget(risk)
    decision = decide(risk, first, budget=budget.state)
    asked = second[list(decision.candidates)]
    answer = merge(decision.candidates, calibration=risk.calibration, small=first, large=asked)
    assert decision.defer and ((answer > 0) & (answer < 1)).all()
    budget.feed(decision.confidences, deferred=decision.num_deferred)
    assert budget.state.credit < Budget(risk).state.credit


def test_too_few_rows_for_the_bound_are_told(
    packages: tuple[Path, Path], marketplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert calibrate.main(arguments(packages, marketplace, "--tasks", "risk")) == 0
    printed = capsys.readouterr().out
    assert re.search(r"^risk: \d+ held-out groups can't prove .* or --budget$", printed, re.M)
    assert calibrate.main(arguments(packages, marketplace, "--tasks=risk", "--budget=0.9")) == 0
    assert "can't prove" not in capsys.readouterr().out


def test_an_altered_policy_is_refused(packages: tuple[Path, Path], marketplace: Path) -> None:
    assert calibrate.main(arguments(packages, marketplace, "--tasks", "risk")) == 0
    path = packages[0] / "policy.json"
    content = path.read_bytes()
    path.write_bytes(content.replace(b'"threshold": ', b'"threshold":  ', 1))
    with pytest.raises(rectrain.PackageError, match=r"policy\.json"):
        open_package(packages[0])
    path.write_bytes(content)


def test_other_tasks_keep_their_policy_for_the_same_two_models(
    packages: tuple[Path, Path],
    marketplace: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    small = shutil.copytree(packages[0], tmp_path / "small")
    path, pair = small / "policy.json", (small, packages[1])
    assert calibrate.main(arguments(pair, marketplace, "--budget=0.25")) == 0
    before = json.loads(path.read_text())["tasks"]
    capsys.readouterr()
    assert calibrate.main(arguments(pair, marketplace, "--tasks", "risk", "--budget=0.1")) == 0
    others = [task for task in before if task != "risk"]
    assert f"keeps there what it decides for {', '.join(others)}\n" in capsys.readouterr().out
    after = json.loads(path.read_text())["tasks"]
    assert set(after) == set(TASKS) and after["risk"] != before["risk"]
    assert {task: after[task] for task in others} == {task: before[task] for task in others}
    another = publish_run(write_run(tmp_path / "another", marketplace, seed=2))
    assert calibrate.main(arguments((small, another), marketplace, "--tasks=risk")) == 0
    assert list(json.loads(path.read_text())["tasks"]) == ["risk"]  # the others were another pair's


@pytest.mark.parametrize("task", TASKS)
def test_both_ends_of_the_cascade_are_the_evaluation_s_models(
    models: tuple[PackagedModel, PackagedModel], marketplace: Path, task: str
) -> None:
    small, large = (model.predictor for model in models)
    prepared = Prepared.open(str(marketplace))
    primary = small.spec(task).primary
    scores = score_held_out(small, large, prepared, task=task, split="validation")
    for predictor, deferred in ((small, False), (large, True)):
        alone = judged_systems(
            predictor, prepared, task=task, split="validation", baselines=False
        )[MODEL]  # fmt: skip
        if hasattr(scores, "judged"):
            mask = np.full(scores.judged.num_units, deferred)
            value = metric(primary)(scores.judged.answered(mask))
        else:
            own = scores.large if deferred else scores.small
            value = metric(primary)(type(alone)(label=scores.labels, score=own))
        assert value == pytest.approx(metric(primary)(alone), abs=1e-9)


def test_a_head_of_the_catalogue_is_ordered_as_large_scores_it(
    models: tuple[PackagedModel, PackagedModel], marketplace: Path
) -> None:
    small, large = (model.predictor for model in models)
    scores = score_held_out(
        small, large, Prepared.open(str(marketplace)), task="recommendation", split="validation"
    )
    judged, head = scores.judged, 5
    for row, (user, place) in enumerate(zip(judged.lists, judged.small, strict=True)):
        if place > head:
            assert judged.large[head][row] == place
            continue
        own = scores.lists == user  # small's best first
        best = scores.large[own][:head]
        assert judged.large[head][row] == 1 + (best > best[place - 1]).sum()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--max-loss=0.1", "--budget=0.1"], "not allowed with"),
        (["--max-loss=2"], "no share"),
        (["--confidence=1"], "0.5 to 1"),
        (["--tasks", "ad_headline"], "ad_headline"),
        (["--large={small}"], "a cascade has two models"),
        (["--large=nowhere"], "no such folder"),
        (["--data=nowhere"], "prepared"),
        (["--backend=abacus"], "abacus"),
    ],
)
def test_a_mistake_is_one_line(
    packages: tuple[Path, Path], marketplace: Path, capsys: pytest.CaptureFixture[str],
    change: list[str], message: str,
) -> None:  # fmt: skip
    given = [one.format(small=packages[0]) for one in change]
    assert exit_status(calibrate.main, arguments(packages, marketplace, *given)) == 2
    printed = capsys.readouterr().err
    assert message in printed and printed.count("\n") == 1
