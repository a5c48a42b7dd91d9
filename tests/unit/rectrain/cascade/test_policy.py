"""The policy as a file: round trip, and one line for whatever is wrong with it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cascade_toy import DECILES, LISTS, PLAIN, ROWS, changed

from rectrain.cascade import Calibration, Calibrations, Policy, read_policy
from rectrain.errors import PackageError
from rectrain.package import Package

STEPS = Calibration("isotonic", 2.0, 0.1, ((-1.0, -2.0), (1.0, 2.0)))
POLICY = Policy(
    small="a" * 64,
    large="b" * 64,
    tasks={
        "risk": changed(ROWS, calibration=Calibrations(small=STEPS, large=PLAIN)),
        "search_ranking": LISTS,
    },
)


def test_a_policy_comes_back_as_it_was():
    data = POLICY.to_json()
    assert Policy.from_json(data) == POLICY
    assert json.loads(data)["tasks"]["search_ranking"]["head"] == 3


def edited(change) -> str:
    content = json.loads(POLICY.to_json())
    change(content)
    return json.dumps(content)


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c.update(extra=1),
        lambda c: c.update(format=2),
        lambda c: c.pop("large"),
        lambda c: c["tasks"]["risk"].update(threshold="0.5"),
        lambda c: c["tasks"]["risk"].update(threshold=float("nan")),
        lambda c: c["tasks"]["risk"].update(threshold=3.0),
        lambda c: c["tasks"]["risk"].update(budget=1.5),
        lambda c: c["tasks"]["risk"].update(head=4),
        lambda c: c["tasks"]["risk"].update(calibration=None),
        lambda c: c["tasks"]["risk"].update(task="ad_ctr"),
        lambda c: c["tasks"]["risk"].update(deciles=[0.5]),
        lambda c: c["tasks"]["risk"].update(deciles=list(DECILES)[::-1]),
        lambda c: c["tasks"]["risk"]["doubt"].update(scale=0),
        lambda c: c["tasks"]["risk"]["doubt"].update(kind="margin"),
        lambda c: c["tasks"]["risk"]["calibration"]["large"].update(temperature=-1),
        lambda c: c["tasks"]["search_ranking"].update(head=-1),
        lambda c: c["tasks"]["search_ranking"]["doubt"].update(noise=None),
    ],
)
def test_a_wrong_policy_is_one_line(change):
    with pytest.raises(PackageError, match=r"policy p\.json") as caught:
        Policy.from_json(edited(change), where="p.json")
    assert "\n" not in str(caught.value) and "jobs.calibrate" in str(caught.value)


@pytest.mark.parametrize("data", [b"", b"[]", b"{", b"\xff", b"null"])
def test_what_is_no_policy_at_all_is_one_line_too(data):
    with pytest.raises(PackageError):
        Policy.from_json(data)


def package(path: Path, version: str, *files: str) -> Package:
    return Package(path, {"version": version, "files": {name: {} for name in files}})


def test_a_policy_counts_for_the_two_models_that_it_was_made_for(tmp_path):
    (tmp_path / "policy.json").write_bytes(POLICY.to_json())
    small = package(tmp_path, "a" * 64, "policy.json")
    large = package(tmp_path, "b" * 64)
    assert read_policy(small) == read_policy(small, large=large) == POLICY
    assert read_policy(large) is None
    with pytest.raises(PackageError, match="made for a large model"):
        read_policy(small, large=package(tmp_path, "c" * 64))
    with pytest.raises(PackageError, match="made for a small model"):
        read_policy(package(tmp_path, "c" * 64, "policy.json"))
