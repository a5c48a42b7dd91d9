"""Whether a process may answer: its models give the golden requests the stored answers."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from rectrain.errors import PackageError
from rectrain.inference.golden import Deviation, Golden, answered, made_up, read_golden
from rectrain.inference.packaged import PackagedModel
from serve.scoring import Engine, ModelFault
from serve.sections import Golden as GoldenSettings

__all__ = ["Health"]

_log = logging.getLogger("ray.serve")


class Health:
    """Runs golden requests: all of them now, which a broken model does not survive, then by turns.

    Now the answers must be those of the publication, as near as another machine's can be; from then
    on the ones that this process gave now, so that what changes later is seen to the last digits.

    Args:
        engine: with its models loaded.
        settings: how often and how near.
        deviation: told the name of a model that deviates.
        clock: seconds that only grow.

    Raises:
        Deviation: a model gives other answers than when it was published.
        PackageError: see `read_golden`; none there, where they are required.
    """

    def __init__(
        self,
        engine: Engine,
        settings: GoldenSettings,
        *,
        deviation: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine = engine
        self._settings = settings
        self._deviation = deviation
        self._clock = clock
        self._turn = asyncio.Lock()
        self._golden = engine.call(
            lambda: {name: self._of(model) for name, model in engine.models.items()}
        )
        engine.call(self._check)
        self._golden = engine.call(
            lambda: {name: one.own(engine.models[name]) for name, one in self._golden.items()}
        )
        self._checked_at = clock()

    async def check(self) -> None:
        """Runs the golden requests if it is time, or if a score was no number.

        Raises:
            Deviation: now.
            ModelFault: now, where the model fails in another way; and at every call from then on,
                until Serve has replaced the process.
        """
        # A client that leaves meanwhile takes nothing with it: the verdict is of the process.
        await asyncio.shield(self._checked_in_turn())

    async def _checked_in_turn(self) -> None:
        async with self._turn:  # who comes while one runs wants its verdict
            self._engine.require_sound()
            now = self._clock()
            is_due = now - self._checked_at >= self._settings.period_s
            if not self._engine.is_suspect and not is_due:
                return
            self._checked_at = now
            try:
                await self._engine.call_async(self._check)
            except Deviation:
                raise
            except Exception as error:
                raise ModelFault(f"withdrawn: {error}") from error
            self._engine.is_suspect = False

    def _check(self) -> None:
        for name, golden in self._golden.items():
            try:
                golden.check(self._engine.models[name], tolerance=self._settings.tolerance)
            except Exception as error:  # as an engine that fails: it may not answer either
                self._engine.is_sound = False
                self._deviation(name)
                _log.error(f"withdrawn: {error}", extra={"event": "golden_deviation"})
                raise

    def _of(self, model: PackagedModel) -> Golden:
        """The package's golden requests, or ones made now: these show what changes later."""
        golden, backend = read_golden(model.package), model.engine.encoder.name
        if golden is not None and golden.has(backend):
            return golden
        if self._settings.required:
            raise PackageError(
                what=f"package {model.package.path}",
                got=f"no golden requests with answers of {backend}",
                rule="golden.required asks for them",
                fix=f"python -m jobs.publish --refresh-golden --output {model.package.path}",
            )
        return answered(made_up(model), model)
