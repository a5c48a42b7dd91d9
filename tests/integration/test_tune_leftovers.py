"""CPUs that a training reserved whose trial was killed, in a cluster without a dashboard."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
import ray
from ray.util.placement_group import placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from rectrain.tune.leftovers import remove_leftovers


def controller() -> Any:
    """An actor that reserves a CPU for a worker of its own, as Ray Train's does."""

    class Worker:
        def ready(self) -> bool:
            return True

    class Controller:
        def start(self) -> bool:
            self.group = placement_group([{"CPU": 1}])
            ray.get(self.group.ready())
            place = PlacementGroupSchedulingStrategy(self.group)
            kind: Any = ray.remote(Worker).options(num_cpus=1, scheduling_strategy=place)
            self.worker = kind.remote()
            return bool(ray.get(self.worker.ready.remote()))

    found: Any = ray.remote(Controller)
    return found.options(num_cpus=0).remote()


@pytest.fixture
def cluster() -> Iterator[None]:
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def free_cpus() -> float:
    return float(ray.available_resources().get("CPU", 0.0))


def wait_for_cpus(expected: float) -> None:
    until = time.monotonic() + 60
    while free_cpus() != expected:
        assert time.monotonic() < until, f"{free_cpus()} CPUs are free"
        time.sleep(0.2)


def test_the_cpus_of_a_training_are_free_after_its_death_and_not_before(cluster: None) -> None:
    controllers = [controller() for _ in range(2)]
    assert all(ray.get([one.start.remote() for one in controllers]))
    wait_for_cpus(0.0)
    assert remove_leftovers() == 0
    ray.kill(controllers[0])
    until = time.monotonic() + 60
    while remove_leftovers() == 0:
        assert time.monotonic() < until
        time.sleep(0.2)
    wait_for_cpus(1.0)
    assert remove_leftovers() == 0
