"""Unit tests are pure: starting Ray in one is an error."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NoReturn

import pytest
import ray


@pytest.fixture(autouse=True, scope="session")
def _no_ray() -> Iterator[None]:
    def refuse(*args: object, **kwargs: object) -> NoReturn:
        pytest.fail("a unit test starts Ray: move it to tests/integration", pytrace=True)

    # Ray Data, Ray Train and every auto-start go through ray.init.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ray, "init", refuse)
        yield
