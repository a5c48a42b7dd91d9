"""What a run starts from: which parts it takes, what it refuses, and that it goes on without it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from prepared_toy import PRICE, write_encoder, write_prepared
from untrained import write_run

from rectrain.data.encoding import FeatureEncoder
from rectrain.errors import EncoderError
from rectrain.train.build import Model, load_model, new_model, open_data
from rectrain.train.config import RunConfig
from rectrain.train.launch import describe, resolve_paths

BOTH = {"search_ranking": PRICE, "risk": PRICE}
OTHER_BINS = FeatureEncoder({"price": (0.0, 5.0)}, {}, {})


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_encoder(tmp_path / "bert")
    write_prepared(tmp_path / "data", tasks=BOTH)
    return tmp_path


def model_section(root: Path, **more: Any) -> dict[str, Any]:
    return {"encoder": str(root / "bert"), "dropout": 0, "head_width": 8, **more}


def write_start(root: Path, *, seed: int = 7, name: str = "joint", **more: Any) -> Path:
    more.setdefault("model", model_section(root))
    return write_run(root / "runs" / name, root / "data", seed=seed, **more)


def config(
    root: Path,
    *,
    data: str = "data",
    start: str | None = "runs/joint",
    model: dict[str, Any] | None = None,
    name: str = "heads",
    **train: Any,
) -> RunConfig:
    return RunConfig.model_validate(
        {
            "name": name,
            "output": str(root / "runs"),
            "data": {"paths": [str(root / data)]},
            "model": model or model_section(root),
            "train": {
                "num_steps": 4, "start_from": None if start is None else str(root / start), **train,
            },
        }
    )  # fmt: skip


def start_line(config: RunConfig) -> str:
    lines = [line for line in describe(config).splitlines() if line.startswith("start: ")]
    (line,) = lines
    return line


def spread(model: Model) -> None:
    """Gives everything a value of its own, what starts at zero too."""
    for number, tensor in enumerate(model.state_dict().values()):
        if tensor.is_floating_point():
            tensor.copy_(torch.full_like(tensor, 0.01 * (number + 1)))


CASES: dict[str, tuple[dict[str, FeatureEncoder], dict[str, Any], dict[str, Any], str]] = {
    "the same": (
        BOTH, {"sharing": "mmoe"}, {},
        "taken: encoder, heads.search_ranking, heads.risk, sharing, balancer; fresh: nothing",
    ),
    "other features of one task": (
        {**BOTH, "risk": OTHER_BINS}, {}, {},
        "taken: encoder, heads.search_ranking, balancer; fresh: heads.risk (features)",
    ),
    "another task": (
        {"ad_ctr": PRICE, "risk": PRICE}, {"sharing": "mmoe"}, {},
        "taken: encoder, heads.risk; fresh: heads.ad_ctr (new), sharing (tasks), balancer (tasks)",
    ),
    "wider heads": (
        BOTH, {"head_width": 12}, {},
        "taken: encoder, balancer; fresh: heads.search_ranking (shape), heads.risk (shape)",
    ),
    "a new sharing layer, and a balancer that learns no weights": (
        BOTH, {"sharing": "gated_experts"}, {"balancer": "dwa"},
        "taken: encoder, heads.search_ranking, heads.risk; fresh: sharing (shape)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_the_plan_names_what_is_taken_and_nothing_else_is(root: Path, case: str) -> None:
    tasks, sizes, train, parts = CASES[case]
    write_start(
        root, change=spread, model=model_section(root, sharing="mmoe"),
        train={"balancer": "uncertainty"},
    )  # fmt: skip
    write_prepared(root / "other", tasks=tasks)
    settings = {"model": model_section(root, **sizes), "balancer": "uncertainty", **train}
    own = resolve_paths(config(root, data="other", **settings))
    assert start_line(own) == f"start: {own.train.start_from} ({parts})"

    taken = {part.replace("heads.", "tasks.") for part in parts[7:].split("; ")[0].split(", ")}
    start = load_model(str(root / "runs" / "joint")).model.state_dict()
    fresh = new_model(config(root, data="other", start=None, **settings), open_data(own))
    before, after = fresh.state_dict(), new_model(own, open_data(own)).state_dict()
    for name, tensor in after.items():
        is_taken = any(name.startswith(f"{part}.") for part in taken)
        expected = start if is_taken else before
        assert tensor.equal(expected[name]), name


def test_another_balancers_history_stays_with_its_run(root: Path) -> None:
    def remember(model: Model) -> None:
        for _ in range(3):
            model.balancer.observe(torch.tensor([1.0, 2.0]))  # type: ignore[operator]

    write_start(root, change=remember, train={"balancer": "dwa"})
    own = config(root, balancer="dwa")
    state = new_model(own, open_data(own)).balancer.state_dict()
    assert set(state) == {"means", "sums", "num_steps"}
    assert not any(tensor.any() for tensor in state.values())


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"more_words": ("gold",)}, "another tokenizer than the data of search_ranking"),
        ({"max_length": 9}, "got 8; must hold the data's longest text of 9 tokens"),
    ],
)
def test_a_start_that_can_not_read_the_data_is_refused_in_one_line(
    root: Path, data: dict[str, Any], message: str
) -> None:
    write_start(root)
    write_prepared(root / "other", tasks=BOTH, **data)
    with pytest.raises(EncoderError, match=message) as caught:
        describe(resolve_paths(config(root, data="other")))
    assert "train.start_from" in str(caught.value) and "\n" not in str(caught.value)
