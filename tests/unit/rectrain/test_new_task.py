"""A new task is one entry in TASKS: docs/new-task.md, run word for word without Ray."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor

from jobs import prepare
from rectrain.data.config import DataConfig
from rectrain.data.fields import Field, FieldTable
from rectrain.data.loader import Loader, catalogues, plan_training
from rectrain.data.shards import Prepared
from rectrain.data.tokenize import load_tokenizer
from rectrain.inference.evaluate import evaluate
from rectrain.inference.predictor import Predictor
from rectrain.inference.rows import RowEncoder, TextLimits
from rectrain.model.multitask import MultiTaskModel
from rectrain.model.spec import TaskSpec
from rectrain.tasks import TASKS
from rectrain.train.build import new_model, open_data
from rectrain.train.config import RunConfig, TrainConfig
from rectrain.train.step import parameter_groups, train_step
from rectrain.train.validate import validate

DOCS = Path(__file__).parents[3] / "docs" / "new-task.md"
NUM_STEPS = 25


class PlainEngine:
    """What DeepSpeed's engine does on one worker at stage 0, in plain torch."""

    device = torch.device("cpu")

    def __init__(self, model: MultiTaskModel) -> None:
        self.module = model.train()
        train = TrainConfig(learning_rate=1e-3, head_learning_rate=1e-3)
        self.optimizer = torch.optim.AdamW(parameter_groups(model, train=train))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def step(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad()

    def train(self, mode: bool = True) -> None:
        self.module.train(mode)

    def eval(self) -> None:
        self.module.eval()

    def get_global_grad_norm(self) -> None:
        return None

    def zero_optimization_stage(self) -> int:
        return 0


@pytest.fixture(autouse=True)
def _one_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Parts are prepared one after the other, and a process group of one trains."""

    def in_turn(function: Callable[[int], Any], numbers: Any, **_: Any) -> list[Any]:
        return [function(number) for number in numbers]

    monkeypatch.setattr("rectrain.data.prepare._parallel", in_turn)
    monkeypatch.chdir(tmp_path)
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def train_on(path: str) -> tuple[MultiTaskModel, Mapping[str, Prepared], dict[str, float]]:
    """The run's model after some steps by the trainer's own code, and what validation says."""
    config = RunConfig.model_validate(
        {"name": "new", "data": {"paths": [path]}, "model": {"encoder": "tiny", "dropout": 0.0}}
    )
    data = open_data(config)
    model = new_model(config, data)
    shards = {task: prepared.shards(task, "train") for task, prepared in data.items()}
    settings = DataConfig(tokens_per_micro_batch=1024)
    plan = plan_training(shards, config=settings, seed=0, num_micro_batches=1)
    engine = PlainEngine(model)
    with Loader(shards, plan=plan, items=catalogues(data), num_steps=NUM_STEPS) as loader:
        for step, batches in loader:
            train_step(
                engine, batches, step=step, seed=0, learning_rate_share=1.0, tasks=list(data)
            )
    return model, data, validate(engine, data, tokens_per_micro_batch=1024, max_rows=500)


def predictor_of(model: MultiTaskModel, data: Mapping[str, Prepared]) -> Predictor:
    features = {task: prepared.features(task) for task, prepared in data.items()}
    limits = {task: TextLimits(64, 8) for task in data}
    rows = RowEncoder(features, load_tokenizer("minilm"), limits)
    return Predictor(model, features=features, rows=rows)


def test_the_documented_task_is_prepared_trained_evaluated_and_predicted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    entry, rows = re.findall(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    spec = eval(entry, {"TaskSpec": TaskSpec, "FieldTable": FieldTable, "Field": Field})
    monkeypatch.setitem(TASKS, spec.name, spec)
    exec(rows, {})
    command = re.search(r"python -m jobs\.prepare (.*)", DOCS.read_text(encoding="utf-8"))
    assert command and prepare.main(command[1].split()) == 0

    model, data, validation = train_on("data/refunds")

    assert list(data) == [spec.name]
    assert validation[spec.name] > 0.85
    predictor = predictor_of(model, data)
    result = evaluate(predictor, ["data/refunds"], num_resamples=50)[spec.name]
    assert list(result.metrics)[:4] == list(spec.metrics)
    assert result.metrics["auc"].model.value > 0.85
    assert set(result.metrics["auc"].baselines) == set(spec.baselines)
    given = pq.read_table("messages.parquet").drop_columns(["label"]).slice(0, 40)
    scores = predictor.score(spec.name, predictor.encode(spec.name, given).prepared)
    assert scores.shape == (40,) and scores.min() >= 0 and scores.max() <= 1


def test_a_task_of_pairs_learns_their_order_beside_another_task() -> None:
    """Two tasks of one directory; half of the pairs have the better row first."""
    won = [n % 2 == 0 for n in range(400)]
    pairs = [["wow, look at this", "a report"] if w else ["a report", "wow, look at this"]
             for w in won]  # fmt: skip
    headlines = pa.table(
        {
            "test_id": [f"t{n}" for n in range(400) for _ in "ab"],
            "item_text": [f"{text} {n % 7}" for n, pair in enumerate(pairs) for text in pair],
            # click rates: only which one is larger counts
            "label": [0.02 if (k == 0) == w else 0.01 for w in won for k in (0, 1)],
        }
    )
    texts = pa.table(
        {
            "page_id": [f"p{n // 2}" for n in range(200)],
            "item_text": [
                f"{'only 2 left' if n % 2 else 'write a review'} {n}" for n in range(200)
            ],
            "label": [n % 2 for n in range(200)],
        }
    )
    pq.write_table(headlines, "headlines.parquet")
    pq.write_table(texts, "texts.parquet")
    given = "ad_headline=headlines.parquet,risk_text=texts.parquet"
    prepare.main(["--source", "parquet", "--input", given, "--output", "both"])

    model, data, validation = train_on("both")

    assert list(data) == ["ad_headline", "risk_text"]
    assert validation["ad_headline"] > 0.9 and validation["risk_text"] > 0.9
    results = evaluate(predictor_of(model, data), ["both"], num_resamples=50)
    found = results["ad_headline"].metrics["pairwise_accuracy"]
    assert found.model.value > 0.9 and "tfidf_difference" in found.baselines
    lists = data["ad_headline"].shards("ad_headline", "test")
    assert results["ad_headline"].num_groups == lists.num_rows // 2


def test_copies_train_and_neither_validation_nor_baselines_see_them() -> None:
    texts = {
        "page_id": [f"p{n}" for n in range(100)],
        "item_text": [f"only {n} mugs are left, hurry up and buy" for n in range(100)],
        "label": [n % 2 for n in range(100)],
    }
    pq.write_table(pa.table(texts), "texts.parquet")
    Path("synonyms.tsv").write_text("mugs\tcups\n")
    argv = ["--source=parquet", "--task=risk_text", "--input=texts.parquet", "--output=prepared"]
    argv += ["--augment.copies=2", "--augment.synonym_swap=1", "--augment.word_drop=0.2"]
    argv += ["--augment.synonyms=synonyms.tsv"]
    prepare.main(argv)
    made = Prepared.open("prepared")
    splits = made.splits("risk_text")
    own = 100 - splits["validation"]["rows"] - splits["test"]["rows"]
    counts = splits["train"]["augmented"]
    assert splits["train"]["rows"] == 3 * own and counts["rows"] == 2 * own
    assert 0.9 * 2 * own < counts["replaced_phrases"] <= 2 * own
    assert 0.15 < counts["dropped_words"] / (2 * own * 8) < 0.25
    given = set(texts["item_text"])
    for split in ("validation", "test"):
        held = made.shards("risk_text", split).table()["item_text"].to_pylist()
        assert {text for (text,) in held} <= given
    originals = made.originals("risk_text")["item_text"].to_pylist()
    assert len(originals) == own and {text for (text,) in originals} <= given
    train = made.shards("risk_text", "train").table().slice(own)
    assert not any("mugs" in text for (text,) in train["item_text"].to_pylist())
    assert len(set(train["list_id"].to_pylist())) == 2 * own
    before = Path("prepared/manifest.json").read_bytes()
    prepare.main(argv)
    assert Path("prepared/manifest.json").read_bytes() == before
    Path("synonyms.tsv").write_text("mugs\tbeakers\n")
    with pytest.raises(Exception, match="other inputs or settings"):
        prepare.main(argv)
