"""What a run starts from: which parts it takes, what it refuses, and that it goes on without it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from prepared_toy import PRICE, write_encoder, write_prepared
from untrained import write_run

from rectrain.data.encoding import FeatureEncoder
from rectrain.errors import CheckpointError, ConfigError, EncoderError
from rectrain.train.build import Model, load_model, new_model, open_data
from rectrain.train.checkpoint import load_weights, open_checkpoint
from rectrain.train.config import RunConfig
from rectrain.train.preflight import RunPlace, begin, claim, describe, resolve_paths
from rectrain.train.storage import Store

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


def test_experts_under_another_function_are_not_taken(root: Path) -> None:
    experts = {"sharing": "gated_experts", "num_experts": 2}
    write_start(root, change=spread, model=model_section(root, **experts))
    for function, is_taken in (("identity", True), ("tanh", False)):
        settings = model_section(root, expert_activation=function, **experts)
        own = resolve_paths(config(root, model=settings))
        line = start_line(own)
        assert ("sharing (expert_activation)" in line) is not is_taken, line
        fresh = new_model(config(root, start=None, model=settings), open_data(own))
        weight = new_model(own, open_data(own)).sharing.experts.weight
        assert weight.equal(fresh.sharing.experts.weight) is not is_taken


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


@pytest.fixture
def begun(root: Path) -> RunConfig:
    """A run that has begun from another and has a checkpoint."""
    write_start(root)
    own = resolve_paths(config(root))
    store = Store.open(f"{own.output}/{own.name}")
    begin(own, RunPlace(store, None, False))
    write_run(root / "runs" / "heads", root / "data", seed=9, model=model_section(root))
    return own


def move(root: Path) -> None:
    shutil.move(root / "runs" / "joint", root / "moved")


def retrain(root: Path) -> None:
    shutil.rmtree(root / "runs" / "joint")
    write_start(root, seed=8)  # the same step


def go_on(root: Path) -> None:
    checkpoints = root / "runs" / "joint" / "checkpoints"
    write_start(root, seed=8, name="other")
    shutil.move(root / "runs/other/checkpoints/step-00000001", checkpoints / "step-00000002")


def test_a_run_goes_on_from_the_weights_that_it_began_with(root: Path, begun: RunConfig) -> None:
    assert claim(resolve_paths(config(root)), overwrite=False).result is None
    move(root)
    assert claim(resolve_paths(config(root, start="moved")), overwrite=False).result is None


def test_an_encoder_that_nothing_reads_is_no_part_of_a_run(root: Path, begun: RunConfig) -> None:
    other = {**model_section(root), "encoder": "small"}
    assert claim(resolve_paths(config(root, model=other)), overwrite=False).result is None
    with pytest.raises(ConfigError, match=r"another model\.head_width"):
        claim(resolve_paths(config(root, model={**other, "head_width": 4})), overwrite=False)


@pytest.mark.parametrize(
    ("change", "fix"),
    [
        (retrain, "fix: give another --name"),
        (go_on, r"fix: add --train\.start_from=\S+step-00000001,"),
    ],
)
def test_other_weights_at_the_same_path_are_noticed(
    root: Path, begun: RunConfig, change: Callable[[Path], None], fix: str
) -> None:
    change(root)
    with pytest.raises(ConfigError, match=r"a run with another train\.start_from_sha256") as caught:
        claim(resolve_paths(config(root)), overwrite=False)
    caught.match(fix)
    assert "\n" not in str(caught.value)
    assert claim(resolve_paths(config(root), overwrite=True), overwrite=True)


def test_a_worker_that_would_begin_from_other_weights_is_stopped(
    root: Path, begun: RunConfig
) -> None:
    retrain(root)
    with pytest.raises(CheckpointError, match="the run began with another"):
        new_model(begun, open_data(begun))


def test_a_run_goes_on_where_its_start_is_gone(root: Path, begun: RunConfig) -> None:
    shutil.rmtree(root / "runs" / "joint")
    shutil.rmtree(root / "bert")
    for given in ("runs/joint", "runs/joint/checkpoints/step-00000001"):
        assert resolve_paths(config(root, start=given)) == begun
    assert claim(begun, overwrite=False).result is None
    assert start_line(begun) == "start: step 1 of this run"

    folder = Store.open(f"{begun.output}/{begun.name}/checkpoints/step-00000001")
    checkpoint = open_checkpoint(folder)
    model = new_model(begun, open_data(begun), checkpoint=checkpoint)
    load_weights(model, checkpoint)
    assert model.encoder.config.hidden_size == 16


@pytest.mark.parametrize("start", ["runs/joint", "runs/absent"])
def test_a_run_that_begins_needs_its_start(root: Path, begun: RunConfig, start: str) -> None:
    shutil.rmtree(root / "runs" / "joint")
    again = config(root, start=start)
    with pytest.raises(CheckpointError, match="without one that is complete"):
        resolve_paths(again, overwrite=start == "runs/joint")
    with pytest.raises(CheckpointError, match="without one that is complete"):
        resolve_paths(again.model_copy(update={"name": "new"}))


def test_a_run_goes_on_where_its_encoder_is_gone(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(root)
    model = {**model_section(root), "encoder": "bert"}
    own = resolve_paths(config(root, start=None, model=model))
    begin(own, RunPlace(Store.open(f"{own.output}/{own.name}"), None, False))
    write_run(root / "runs" / own.name, root / "data", model=own.model.model_dump())
    shutil.rmtree(root / "bert")
    again = resolve_paths(config(root, start=None, model=model))
    assert start_line(again) == "start: step 1 of this run"
    assert claim(again, overwrite=False).result is None


@pytest.mark.parametrize("way", ["dots", "link"])
def test_a_run_is_not_removed_to_start_from_itself(root: Path, way: str) -> None:
    write_start(root, name="heads")
    (root / "link").symlink_to(root / "runs")
    output = {"dots": root / "data" / ".." / "runs", "link": root / "link"}[way]
    own = config(root, start="runs/heads").model_copy(update={"output": str(output)})
    with pytest.raises(ConfigError, match="can't start from its own checkpoint"):
        claim(resolve_paths(own, overwrite=True), overwrite=True)
