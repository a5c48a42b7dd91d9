"""The training benchmark: its figures, and that the peer trains the very same model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from benchmarks.hf_trainer import JointModel, Units, collate
from benchmarks.loop import Measurement
from benchmarks.table import paired_ratio, print_table, write_figures
from benchmarks.train import _figures
from rectrain.data.batch import build_micro_batch, empty_table
from rectrain.data.config import DataConfig
from rectrain.data.encoding import FeatureEncoder
from rectrain.data.loader import plan_training
from rectrain.data.shards import Shards, file_entry, write_shard
from rectrain.model.config import ModelConfig
from rectrain.model.encoder import load_encoder
from rectrain.model.multitask import MultiTaskModel
from rectrain.tasks import TASKS as EVERY

ISSUED = ("T1/padded", "T1/grouped", "T2/zero1", "T2/zero2", "T2/zero3", "T3", "T2/state_bytes")
TASKS = {task: EVERY[task] for task in ("recommendation", "search_ranking", "ad_ctr", "risk")}
FEATURES = FeatureEncoder({"price": (0.0, 1.0, 2.0)}, {}, {})


def rows(task: str, *, num_rows: int = 24) -> pa.Table:
    random = np.random.default_rng(len(task))
    texts = [random.integers(1, 50, size).tolist() for size in random.integers(2, 9, 10)]

    def some(count: int) -> list[list[int]]:
        return [texts[place] for place in random.integers(0, len(texts), count)]

    num_queries = {"recommendation": 3, "search_ranking": 1, "ad_ctr": 2, "risk": 0}[task]
    query = [some(num_queries) for _ in range(num_rows)]
    item = [some(1) for _ in range(num_rows)]
    list_size = 4 if task == "search_ranking" else 1
    columns = {
        "query": query,
        "item": item,
        "numeric": random.random((num_rows, 1)).tolist(),
        "categorical": [[]] * num_rows,
        "label": random.integers(0, 2, num_rows).astype(float).tolist(),
        "weight": [1.0] * num_rows,
        "log_q": [-3.0] * num_rows,
        "item_key": list(range(num_rows)),
        "group_key": [row // 2 for row in range(num_rows)],
        "list_id": [row // list_size for row in range(num_rows)],
        "num_tokens": [sum(map(len, q + i)) for q, i in zip(query, item, strict=True)],
    }
    schema = empty_table(num_numeric=1, num_categorical=0, vector_sizes={}).schema
    schema = schema.append(pa.field("num_tokens", pa.int32()))
    return pa.table({name: columns[name] for name in schema.names}, schema=schema)


@pytest.fixture
def shards(tmp_path: Path) -> dict[str, Shards]:
    made = {}
    for task in TASKS:
        path = tmp_path / f"{task}.arrow"
        write_shard(path, rows(task))
        made[task] = Shards(tmp_path, [file_entry(path, root=tmp_path)])
    return made


def test_the_padded_peer_has_the_same_loss_and_gradients(shards: dict[str, Shards]) -> None:
    model = MultiTaskModel(
        load_encoder("tiny", vocab_size=50, dropout=0.0),
        tasks=TASKS,
        features=dict.fromkeys(TASKS, FEATURES),
        config=ModelConfig(encoder="tiny", dropout=0.0),
    ).train()
    config = DataConfig(tokens_per_micro_batch=300)
    plan = plan_training(shards, config=config, seed=0, num_micro_batches=1)
    units = Units(shards, plan=plan, steps=range(1))
    padded = collate([units[number] for number in range(len(units))], empty=units.empty)
    ours = build_micro_batch(
        {task: shards[task].take(plan.slot(0, task=task, micro_batch=0)) for task in TASKS},
        counts={task: plan.count(0, task=task) for task in TASKS},
    )

    expected, _ = model(ours)
    expected.backward()
    gradients = {name: value.grad.clone() for name, value in model.named_parameters()}
    model.zero_grad()
    peer = JointModel(model)
    loss = peer(**padded)["loss"]
    loss.backward()

    assert peer.num_tokens == ours.num_tokens > padded["item"].shape[0]
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    for name, value in model.named_parameters():
        torch.testing.assert_close(value.grad, gradients[name], rtol=1e-4, atol=1e-6, msg=name)


def test_ratios_are_taken_round_by_round() -> None:
    figure = paired_ratio(
        "T1/padded",
        ours=[20.0, 33.0, 10.0],
        peer=[10.0, 11.0, 10.0],
        unit="tokens/s",
        peer_name="p",
    )
    assert (figure.value, figure.low, figure.high, figure.n) == (2.0, 1.0, 3.0, 3)


def test_every_figure_is_written_with_its_peer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    speeds = {"zero1": 95.0, "zero2": 100.0, "zero3": 70.0, "ddp": 100.0, "ray": 98.0}
    speeds |= {"trainer_padded": 50.0, "trainer_grouped": 80.0}
    state = {"zero1": 101, "zero2": 100, "zero3": 93}
    found = {
        variant: [Measurement(speed, state.get(variant, 0), 100)] * 5
        for variant, speed in speeds.items()
    }

    figures = _figures(found, goals=("T1", "T2", "T3"))  # type: ignore[arg-type]
    write_figures(tmp_path / "bench" / "train.json", figures)
    print_table(figures)

    written = json.loads((tmp_path / "bench" / "train.json").read_text())
    assert tuple(row["id"] for row in written) == ISSUED
    assert {key for row in written for key in row} == {
        *("id", "value", "unit", "peer", "low", "high", "n")
    }
    assert [row["value"] for row in written] == [2.0, 1.25, 0.95, 1.0, 0.7, 0.98, 0.93]
    assert "| T2/zero3 | 0.700 |" in capsys.readouterr().out
