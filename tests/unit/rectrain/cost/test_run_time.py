"""Device-seconds of a run from those of others: the fit, and what is refused."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from rectrain.cost import run_time
from rectrain.cost.linear import relative_nnls
from rectrain.cost.run_time import RecordedRun, RunSize, fit_time, recorded_run
from rectrain.errors import DataError
from rectrain.train.usage import Usage

MACHINE = ("Xeon", 1, 1)
TRUE = (4.0, 2e-11, 3e-6, 0.02, 1e-9)


def size(width: int, tokens: int, steps: int) -> RunSize:
    """Of an encoder whose products and parameters grow with the square of its width."""
    parameters = 1_000_000 + 12 * width**2
    return RunSize(72.0 * width**2 * tokens * steps, float(tokens * steps), steps, parameters)


def run(one: RunSize, seconds: float | None = None) -> RecordedRun:
    taken = float(np.dot(TRUE, one.terms)) if seconds is None else seconds
    return RecordedRun(one, taken, MACHINE)


SHORT = [
    size(width, tokens, steps)
    for width in (128, 256)
    for tokens, steps in ((1024, 20), (1024, 80), (4096, 40))
]


def test_a_longer_run_of_another_size_follows_from_short_ones():
    time = fit_time([run(one) for one in SHORT])
    longer = size(192, 2048, 1000)
    assert time.seconds(longer) == pytest.approx(float(np.dot(TRUE, longer.terms)), rel=1e-6)


def test_noise_of_some_per_cent_stays_some_per_cent():
    random = np.random.default_rng(0)
    longer = size(256, 2048, 200)
    errors = []
    for _ in range(50):
        noisy = [run(one, run(one).device_seconds * random.normal(1, 0.02)) for one in SHORT]
        errors.append(fit_time(noisy).seconds(longer) / run(longer).device_seconds - 1)
    assert float(np.sqrt(np.mean(np.square(errors)))) < 0.1


def test_runs_of_one_encoder_and_budget_predict_no_other():
    # Their FLOPs, tokens and steps are proportional, but for what texts differ by.
    random = np.random.default_rng(2)
    alike = []
    for steps in (10, 30, 80):
        one = size(128, 1024, steps)
        noisy = one._replace(tokens=one.tokens * random.normal(1, 0.01))
        alike.append(run(noisy._replace(flops=noisy.flops * random.normal(1, 0.01))))
    time = fit_time(alike)
    longer = size(128, 1024, 1000)
    assert time.seconds(longer) == pytest.approx(run(longer).device_seconds, rel=0.05)
    for other in (size(1280, 1024, 80), size(256, 1024, 80), size(128, 4096, 80)):
        with pytest.raises(DataError, match="runs of another encoder"):
            time.seconds(other)


def test_nothing_is_ever_gained_by_a_larger_run():
    # The longer run of the two took less: an unbounded fit would say that steps save time.
    odd = [run(SHORT[0], 5.0), run(SHORT[1], 4.0), run(SHORT[2], 6.0)]
    assert min(fit_time(odd).coefficients) >= 0


@pytest.mark.parametrize(
    "runs",
    [
        [run(one) for one in SHORT[:2]],
        [run(SHORT[0])] * 5,
        [*map(run, SHORT), RecordedRun(SHORT[0], 1.0, ("EPYC", 1, 1))],
    ],
    ids=["two", "one size", "two chips"],
)
def test_what_tells_nothing_is_refused(runs: list[RecordedRun]):
    with pytest.raises(DataError, match="different sizes, all on the same chip"):
        fit_time(runs)


def test_terms_of_any_size_are_told_apart():
    random = np.random.default_rng(1)
    known = random.uniform(0.1, 1, (20, 3)) * np.array([1.0, 1e15, 1e-9])
    true = np.array([3.0, 2e-14, 5e8])
    assert relative_nnls(known, known @ true) == pytest.approx(true, rel=1e-6)
    assert (relative_nnls(known, np.zeros(20)) == 0).all()


def life(**changes: object) -> Usage:
    values: dict[str, object] = {
        "work": "train", "label": "r", "device": "cpu", "chip": "Xeon", "num_devices": 1, "rank": 0,
        "world_size": 1, "start": "2026-01-01T00:00:00.000+00:00",
        "end": "2026-01-01T00:01:00.000+00:00", "seconds": 60.0, "peak_memory_bytes": 1,
        "finished": True,
    }  # fmt: skip
    return Usage(**{**values, **changes})  # type: ignore[arg-type]


def write(folder: Path, lives: list[Usage]) -> str:
    (folder / "usage").mkdir()
    (folder / "config.yaml").write_text("name: r\ndata: {paths: [nowhere]}\n")
    for number, one in enumerate(lives):
        content = {"format": "rectrain-usage", "version": 1, **asdict(one)}
        (folder / "usage" / f"{number}.json").write_text(json.dumps(content))
    return str(folder)


def test_a_recorded_run_is_all_its_lives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(run_time, "run_size", lambda config: SHORT[0])
    folder = write(tmp_path, [life(seconds=10.0), life()])
    assert recorded_run(folder) == RecordedRun(SHORT[0], 70.0, MACHINE)


@pytest.mark.parametrize(
    "lives",
    [[], [life(finished=False)], [life(finished=False), life()], [life(), life(chip="EPYC")]],
    ids=["none", "not ended", "killed once", "two chips"],
)
def test_a_run_that_can_not_be_compared_is_refused(tmp_path: Path, lives: list[Usage]):
    with pytest.raises(DataError, match="must have ended"):
        recorded_run(write(tmp_path, lives))
