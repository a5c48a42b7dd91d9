"""A search before it begins: what its session accepts and refuses, of a real teacher."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prepared_toy import PRICE, write_encoder, write_prepared
from untrained import write_run

from rectrain.tune.config import SearchConfig
from rectrain.tune.runs import heads_run
from rectrain.tune.session import Session

Opened = Callable[..., Session]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("teacher")
    write_encoder(root / "bert")
    write_prepared(root / "data", tasks={"search_ranking": PRICE, "risk": PRICE})
    model = {"encoder": str(root / "bert"), "dropout": 0, "head_width": 8}
    return write_run(root / "runs" / "large", root / "data", model=model)


@pytest.fixture
def session(teacher: Path, tmp_path: Path) -> Opened:
    def opened(**settings: Any) -> Session:
        given = {"teacher": str(teacher), "output": str(tmp_path / "tune"), **settings}
        return Session(SearchConfig.model_validate(given), say=pytest.fail)

    return opened


@pytest.mark.parametrize(
    ("stage", "balancer"),
    [(3, "static"), (3, "dwa"), (3, "uncertainty"), (2, "pcgrad"), (2, "cagrad"), (2, "upgrad")],
)
def test_a_model_that_is_trained_alone_may_be_trained_as_any_run(
    session: Opened, stage: int, balancer: str
) -> None:
    """Its heads, too, which are trained on a frozen encoder: that is not split, nor balanced."""
    found = session(way="separate", train={"zero_stage": stage, "balancer": balancer})
    assert found.check({"CPU": 2.0}) == 2
    bench = found.bench
    heads = heads_run(bench.config, bench.teacher, bench.data, root=bench.root).train
    assert (heads.freeze, heads.zero_stage, heads.balancer) == ("encoder", 2, "static")
