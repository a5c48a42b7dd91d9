"""A process whose models deviate is withdrawn: at its start, and later."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest
import torch

from jobs import publish
from rectrain.errors import PackageError
from rectrain.inference.golden import Deviation, publish_golden
from rectrain.package import Package
from serve.health import Health
from serve.scoring import Engine, ModelFault
from serve.sections import Batching, Golden

SETTINGS = Golden(period_s=30)


@pytest.fixture
def engine(packages: dict[str, Package]) -> Iterator[Engine]:
    made = Engine(Batching(), observe=lambda *_: None)
    made.load("shop", str(packages["large"].path), "torch", 1, 0)
    yield made
    made.close()


def break_weights(engine: Engine, *, by: float = 1.5) -> None:
    with torch.no_grad():
        engine.models["shop"].predictor.model.encoder.embeddings.word_embeddings.weight.mul_(by)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def health(engine: Engine, settings: Golden = SETTINGS) -> tuple[Health, Clock, list[str]]:
    clock, deviations = Clock(), []
    return Health(engine, settings, deviation=deviations.append, clock=clock), clock, deviations


def test_a_sound_model_stays(engine):
    checks, clock, deviations = health(engine)
    for clock.now in (1.0, 31.0, 62.0):
        asyncio.run(checks.check())
    assert engine.is_sound and not deviations


def test_a_deviation_is_found_when_it_is_time_and_stays_one(engine):
    checks, clock, deviations = health(engine)
    break_weights(engine)
    clock.now = 29.0
    asyncio.run(checks.check())  # not yet
    clock.now = 31.0
    with pytest.raises(Deviation):
        asyncio.run(checks.check())
    break_weights(engine, by=1 / 1.5)  # what comes and goes is no better
    with pytest.raises(ModelFault):
        asyncio.run(checks.check())
    assert not engine.is_sound
    assert deviations == ["shop"]


def test_a_model_that_fails_its_golden_requests_is_withdrawn_too(engine, monkeypatch):
    checks, clock, deviations = health(engine)

    def fails(*args: object, **kwargs: object) -> None:
        raise RuntimeError("the engine is gone")

    monkeypatch.setattr("rectrain.inference.golden.Golden.check", fails)
    clock.now = 31.0
    with pytest.raises(ModelFault, match="engine is gone"):
        asyncio.run(checks.check())
    assert (engine.is_sound, deviations) == (False, ["shop"])


def test_a_score_that_is_no_number_brings_the_check_forward(engine):
    checks, clock, _ = health(engine)
    break_weights(engine)
    engine.is_suspect, clock.now = True, 1.0
    with pytest.raises(Deviation):
        asyncio.run(checks.check())


def test_all_who_ask_meanwhile_get_the_verdict(engine):
    checks, _, _ = health(engine)
    break_weights(engine)
    engine.is_suspect = True

    async def ask() -> list[BaseException | None]:
        return await asyncio.gather(*(checks.check() for _ in range(3)), return_exceptions=True)

    assert [type(one) for one in asyncio.run(ask())] == [Deviation, ModelFault, ModelFault]


@pytest.mark.parametrize("is_broken", [False, True])
def test_a_suspicion_outlives_a_client_that_leaves_during_the_check(engine, is_broken):
    checks, _, _ = health(engine)
    if is_broken:
        break_weights(engine)

    async def leave() -> None:
        computes, engine.is_suspect = threading.Event(), True
        busy = asyncio.create_task(engine.call_async(computes.wait))
        await asyncio.sleep(0)
        asking = asyncio.create_task(checks.check())
        for _ in range(5):
            await asyncio.sleep(0)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        assert engine.is_suspect
        computes.set()
        await busy
        while engine.is_suspect and engine.is_sound:  # what was begun goes on
            await asyncio.sleep(0.001)

    asyncio.run(asyncio.wait_for(leave(), 60))
    assert engine.is_sound != is_broken


def test_a_model_that_deviates_from_its_package_never_starts(engine, packages):
    publish_golden(packages["large"])
    fresh = Engine(Batching(), observe=lambda *_: None)
    fresh.load("shop", str(packages["large"].path), "torch", 1, 0)
    break_weights(fresh)
    with pytest.raises(Deviation):
        health(fresh)
    fresh.close()


def test_golden_requests_can_be_required(packages):
    fresh = Engine(Batching(), observe=lambda *_: None)
    fresh.load("shop", str(packages["small"].path), "torch", 1, 0)
    with pytest.raises(PackageError, match="no golden requests") as mistake:
        health(fresh, Golden(required=True))
    fresh.close()
    flag = str(mistake.value).split("jobs.publish ")[1].split()[0]
    assert flag in publish._parser().format_help()
