"""Where a job would run: said without starting anything."""

from __future__ import annotations

import pytest
import ray

from rectrain.cluster import connect, resources
from rectrain.errors import ResourceError


@pytest.mark.parametrize("address", [None, "local"])
def test_without_a_cluster_this_machine_is_counted_and_nothing_is_started(
    monkeypatch: pytest.MonkeyPatch, address: str | None
) -> None:
    if address is not None:
        monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setattr("ray._private.utils.get_num_cpus", lambda **given: 3)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert resources() == ("one started on this machine", {"CPU": 3.0})
    assert not ray.is_initialized()


def test_a_cluster_that_is_given_is_joined_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    joined: list[str] = []
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.setattr(ray, "init", lambda **given: joined.append(given["address"]))
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 64.0, "GPU": 8.0})
    assert resources() == ("10.0.0.1:6379", {"CPU": 64.0, "GPU": 8.0})
    assert joined == ["10.0.0.1:6379"]


def test_a_cluster_that_does_not_answer_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**given: object) -> None:
        raise ConnectionError("no GCS there")

    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.setattr(ray, "init", refuse)
    with pytest.raises(ResourceError, match=r"RAY_ADDRESS: got 10\.0\.0\.1:6379 \(no GCS there\)"):
        connect()
