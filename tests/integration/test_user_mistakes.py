"""The table of user mistakes: each ends in status 2 and one line with cause and fix, nothing lost.

Every case runs the job's own main as `python -m jobs.X` would, on real files.
"""

from __future__ import annotations

import importlib
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from transformers import BertConfig, BertTokenizerFast
from untrained import write_run

from jobs.cli import exit_status
from rectrain.config import dump_config, load_config
from rectrain.train.config import RunConfig
from rectrain.train.zero import DeviceFacts

ROOT = Path(__file__).resolve().parents[2]
WORDS = "red blue green steel cotton mug shirt lamp chair cable small large old new soft hard"


def risk_rows(rows: int = 400) -> pa.Table:
    """Order lines of the risk task, all of them right."""
    rng = np.random.default_rng(0)
    words = WORDS.split()
    texts = [" ".join(rng.choice(words, size=4)) for _ in range(rows)]
    return pa.table(
        {
            "user_id": [f"u{i % 80}" for i in range(rows)],
            "item_id": texts,
            "item_text": texts,
            "price": rng.uniform(1, 50, rows),
            "hour": rng.integers(0, 24, rows).astype(float),
            "label": rng.integers(0, 2, rows),
            "row_id": [f"r{i}" for i in range(rows)],
        }
    )


def changed(table: pa.Table, name: str, values: object) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, pa.array(values))


def write_tokenizer(folder: Path, words: str) -> Path:
    folder.mkdir()
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words.split(), *"abcdefghij"]
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    BertTokenizerFast(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    return folder


@dataclass(frozen=True)
class Things:
    """What a user has before the mistake: rows, prepared data, a trained run."""

    root: Path

    def __getattr__(self, name: str) -> Path:
        return self.root / name


def run(job: str, *arguments: str) -> int:
    return exit_status(importlib.import_module(f"jobs.{job}").main, list(arguments))


@pytest.fixture(scope="module")
def things(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Things]:
    have = Things(tmp_path_factory.mktemp("user"))
    table = risk_rows()
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        pq.write_table(table, have.rows)
        have.empty.mkdir()
        write_tokenizer(have.tokenizer, WORDS)
        write_tokenizer(have.other_tokenizer, WORDS + " gold")
        assert run("prepare", *prepare(have, output="prepared")) == 0
        other = prepare(have, "--task=ad_ctr", output="elsewhere", tokenizer="other_tokenizer")
        assert run("prepare", *other) == 0
        write_run(have.runs / "good", have.prepared)
        yield have
    finally:
        ray.shutdown()


def prepare(
    have: Things, *more: str, rows: str = "rows", output: str = "new", tokenizer: str = "tokenizer"
) -> list[str]:
    return [
        "--source=parquet", "--task=risk", f"--input={have.root / rows}",
        f"--output={have.root / output}", f"--encoder={have.root / tokenizer}", *more,
    ]  # fmt: skip


def train(have: Things, *more: str, name: str = "bad") -> list[str]:
    return [
        f"--data.paths={have.prepared}", f"--output={have.runs}", f"--name={name}",
        "--model.encoder=tiny", "--train.num_steps=2", "--tracking.mlflow=off", *more,
    ]  # fmt: skip


def score(have: Things, *more: str, checkpoint: str = "runs/good") -> list[str]:
    return [f"--checkpoint={have.root / checkpoint}", *more]


def rows(have: Things, table: pa.Table) -> list[str]:
    pq.write_table(table, have.wrong)
    return prepare(have, rows="wrong")


def file(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def copy(have: Things, name: str) -> Path:
    """A copy of a folder that a case may spoil."""
    shutil.copytree(have.root / name, have.spoiled)
    return have.spoiled


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def labels(share: float) -> pa.Table:
    table = risk_rows()
    bad = int(share * table.num_rows)
    return changed(table, "label", [7] * bad + [1] * (table.num_rows - bad))


def spoil_data(have: Things) -> Path:
    folder = copy(have, "prepared")
    cut(next(folder.glob("risk/train-*.arrow")))
    return folder


def bert_without_weights(have: Things) -> Path:
    have.spoiled.mkdir()
    BertConfig(vocab_size=40, hidden_size=32, num_attention_heads=2).save_pretrained(have.spoiled)
    return have.spoiled


def spoil_run(have: Things) -> Path:
    folder = copy(have, "runs/good")
    cut(next(folder.glob("checkpoints/*/model-*.safetensors")))
    return next(folder.glob("checkpoints/*"))


def started(have: Things) -> Path:
    config = load_config(RunConfig, file=None, overrides=train(have))
    file(have.spoiled / "bad" / "config.yaml", dump_config(config))
    return have.spoiled


def lacking(have: Things) -> list[str]:
    pq.write_table(risk_rows().drop(["item_text"]), have.wrong)
    return ["--task=risk"]


# What was done wrong -> the job, its arguments, and words of the line: the cause, then the fix.
Case = tuple[str, Callable[[Things], list[str]], str, str]
PREPARE: dict[str, Case] = {
    "missing column": (
        "prepare", lambda h: rows(h, risk_rows().drop(["item_text"])),
        "column item_text of risk: got only", "fix: add item_text",
    ),
    "wrong type": (
        "prepare", lambda h: rows(h, changed(risk_rows(), "label", ["yes"] * 400)),
        "column label of risk: got string", "fix: cast the column",
    ),
    "empty file": (
        "prepare", lambda h: rows(h, risk_rows().slice(0, 0)),
        "without a row", "fix: give a file with rows",
    ),
    "labels out of range beyond the share": (
        "prepare", lambda h: rows(h, labels(0.2)),
        "bad rows of risk: got 20.0%", "fix: mend the rows, or raise --max_reject_share",
    ),
    "not a Parquet file": (
        "prepare", lambda h: prepare(h, rows=file(h.wrong, "user_id,label\nu,1\n").name),
        "must be a readable Parquet file", "fix: write it again, or convert it",
    ),
    "a path that is not there": (
        "prepare", lambda h: prepare(h, rows="absent.parquet"),
        "no such file or directory", "fix: check the path",
    ),
    "unknown source": (
        "prepare", lambda h: prepare(h, "--source=parket"),
        "source: got parket; must be one of simulated", "fix: use parquet",
    ),
    "unknown task": (
        "prepare", lambda h: prepare(h, "--task=fraud"),
        "task: got fraud; known tasks are recommendation", "fix: name one of them",
    ),
    "output holds other data": (
        "prepare", lambda h: prepare(h, "--max_length=32", output="prepared"),
        "nothing is overwritten", "fix: add --overwrite",
    ),
    "no tokenizer in the encoder directory": (
        "prepare", lambda h: prepare(h, tokenizer="empty"),
        "tokenizer in", "fix: give a directory with",
    ),
    "unknown key": (
        "prepare", lambda h: prepare(h, "--max_lenght=32"),
        "max_lenght on the command line: got an unknown key", "fix: did you mean max_length?",
    ),
    "wrong value type": (
        "prepare", lambda h: prepare(h, "--max_length=long"),
        "got 'long'; should be a valid integer", "fix: set max_length as int",
    ),
    "splits that leave nothing to train on": (
        "prepare", lambda h: prepare(h, "--split.test_share=0.6", "--split.validation_share=0.5"),
        "must be below 1", "fix: leave rows to train on",
    ),
    "an own feature of an unknown kind": (
        "prepare",
        lambda h: prepare(h, f"--features={file(h.wrong, 'risk: {age: {kind: number}}')}"),
        "age", "fix: write {kind: numeric",
    ),
}  # fmt: skip
TRAIN: dict[str, Case] = {
    "unknown key in the file": (
        "train", lambda h: ["--config", str(file(h.wrong, "train: {zero_stge: 2}")), *train(h)],
        "train.zero_stge in", "fix: did you mean train.zero_stage?",
    ),
    "a configuration file that is not there": (
        "train", lambda h: ["--config=absent.yaml"],
        "--config: got absent.yaml; must be a readable", "fix: give the path",
    ),
    "zero_stage 7": (
        "train", lambda h: train(h, "--train.zero_stage=7"),
        "train.zero_stage on the command line: got 7", "fix: set train.zero_stage as 0|1|2|3",
    ),
    "negative learning rate": (
        "train", lambda h: train(h, "--train.learning_rate=-1e-4"),
        "should be greater than 0", "fix: set train.learning_rate as float",
    ),
    "fewest workers above most": (
        "train", lambda h: train(h, "--train.num_workers=2,1"),
        "got [2, 1]; the fewest workers must not exceed the most", "fix: set train.num_workers",
    ),
    "more workers than CPUs": (
        "train", lambda h: train(h, "--train.num_workers=64"), "64", "fix: ",
    ),
    "bf16 on a CPU without it": (
        "train", lambda h: train(h, "--train.precision=bf16"),
        "train.precision: got bf16 on a cpu", "fix: set train.precision to auto or fp32",
    ),
    "offload without ZeRO": (
        "train", lambda h: train(h, "--train.zero_stage=0", "--train.offload=optimizer"),
        "offload needs zero_stage 1, 2 or 3", "fix: ",
    ),
    "a task that the data lacks": (
        "train", lambda h: train(h, "--train.tasks=ad_ctr"), "ad_ctr", "fix: ",
    ),
    "no data": ("train", lambda h: ["--name=bad"], "data: got nothing", "--data.paths="),
    "data that is not prepared": (
        "train", lambda h: train(h, f"--data.paths={h.empty}"),
        "without manifest.json", "fix: ",
    ),
    "data prepared with different tokenizers": (
        "train", lambda h: train(h, f"--data.paths={h.prepared},{h.elsewhere}"),
        "tokenizer", "fix: ",
    ),
    "a prepared file that was cut": (
        "train", lambda h: train(h, f"--data.paths={spoil_data(h)}"),
        "must be as it was written", "fix: prepare the data again",
    ),
    "an encoder directory without weights": (
        "train", lambda h: train(h, f"--model.encoder={bert_without_weights(h)}"),
        "weights in", "fix: save the model",
    ),
    "a mixing weight of a task that is not trained": (
        "train", lambda h: train(h, "--data.mixing_weights.ad_ctr=2"), "data.mixing_weights",
        "fix: ",
    ),
    "a loss weight of a task that is not trained": (
        "train", lambda h: train(h, "--train.loss_weights.ad_ctr=2"), "ad_ctr", "fix: ",
    ),
}  # fmt: skip
SCORE: dict[str, Case] = {
    "a checkpoint that is not there": (
        "evaluate", lambda h: score(h, checkpoint="absent"), "absent", "fix: ",
    ),
    "a foreign checkpoint": (
        "evaluate", lambda h: score(h, checkpoint="tokenizer"), "tokenizer", "fix: ",
    ),
    "a checkpoint that was cut": (
        "evaluate", lambda h: [f"--checkpoint={spoil_run(h)}"], "model-", "fix: ",
    ),
    "an unknown split": ("evaluate", lambda h: score(h, "--split=exam"), "exam", "fix: "),
    "rows to score that lack a column": (
        "predict", lambda h: score(h, f"--input={h.wrong}", f"--output={h.new}", *lacking(h)),
        "column item_text of risk", "fix: add item_text",
    ),
}  # fmt: skip
CASES = {**PREPARE, **TRAIN, **SCORE}


@pytest.fixture
def unchanged(things: Things) -> Iterator[None]:
    """Nothing that the user has is changed or lost, and nothing half-made is left."""
    before = contents(things.root)
    yield
    shutil.rmtree(things.spoiled, ignore_errors=True)
    things.wrong.unlink(missing_ok=True)
    assert contents(things.root) == before


def contents(root: Path) -> dict[str, tuple[int, int]]:
    found = (path for path in root.rglob("*") if path.is_file())
    return {str(p): (p.stat().st_size, p.stat().st_mtime_ns) for p in found}


def assert_one_line(printed: str, cause: str, fix: str) -> None:
    lines = [line for line in printed.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, printed
    assert cause in lines[0] and fix in lines[0].partition(cause)[2], lines[0]
    assert lines[0] == printed.splitlines()[-1]
    assert "Traceback" not in printed


@pytest.mark.parametrize("mistake", CASES)
def test_a_mistake_is_one_line(mistake, things, unchanged, capfd, monkeypatch):
    # Some machines that run this have bf16 units.
    monkeypatch.setattr("rectrain.train.preflight.device_facts", lambda: DeviceFacts("cpu", False))
    job, arguments, cause, fix = CASES[mistake]
    given = arguments(things)
    capfd.readouterr()
    assert run(job, *given) == 2
    assert_one_line(capfd.readouterr().err, cause, fix)


@pytest.mark.parametrize("mistake", ["missing column", "unknown key"])
def test_a_real_process_ends_alike(mistake, things, unchanged):
    job, arguments, cause, fix = CASES[mistake]
    command = [sys.executable, "-m", f"jobs.{job}", *arguments(things)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert_one_line(done.stderr, cause, fix)


def test_the_table_is_long_enough():
    assert len(CASES) >= 20
