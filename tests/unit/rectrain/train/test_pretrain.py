"""Pre-training as a run: its settings, its folder, its validation."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pretrain_toy import random_texts, write_texts

from rectrain.config import load_config
from rectrain.errors import ConfigError
from rectrain.model.masked import MaskedLanguageModel
from rectrain.train.build import new_model, open_data
from rectrain.train.config import PretrainConfig, RunConfig
from rectrain.train.preflight import (
    RunPlace,
    begin,
    claim,
    describe,
    resolve_micro_batch,
    resolve_paths,
)
from rectrain.train.storage import Store
from rectrain.train.validate import validate


def config(
    data: Path, *more: str, kind: type[RunConfig] = PretrainConfig, name: str = "pretrain"
) -> Any:
    return resolve_paths(
        load_config(
            kind,
            file=None,
            overrides=[
                f"--data.paths={data}", f"--output={data.parent / 'runs'}", f"--name={name}",
                "--model.encoder=tiny", "--data.tokens_per_micro_batch=64", *more,
            ],
        )
    )  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_texts(
        tmp_path_factory.mktemp("pretrain") / "data",
        train=random_texts(60, seed=1),
        validation=random_texts(30, seed=2),
    )


@pytest.fixture(scope="module", autouse=True)
def _one_process() -> Iterator[None]:
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize(
    ("setting", "rule"),
    [
        ("--train.freeze=encoder", "leave out train.freeze"),
        ("--train.start_from=runs/a", "model.encoder=RUN/encoder"),
        ("--train.adapter=lora", "leave out train.adapter"),
        ("--train.watch=risk", "no tasks to watch"),
        ("--mask_share=0", "greater than 0"),
        ("--mask_shar=0.2", "mask_share"),
    ],
)
def test_a_setting_that_makes_no_sense_is_told_in_one_line(
    data: Path, setting: str, rule: str
) -> None:
    with pytest.raises(ConfigError, match=rule) as caught:
        config(data, setting)
    assert "\n" not in str(caught.value)


def test_the_plan_names_texts_and_what_guesses_need(data: Path) -> None:
    text = describe(config(data, "--train.num_steps=8"))
    assert "run pretrain: 8 steps" in text
    assert "guesses 0" in text
    (row,) = [line.split() for line in text.splitlines() if line.startswith("mlm")]
    assert row[1] == str(len(set(random_texts(60, seed=1))))


def test_settings_of_heads_do_not_stand_in_the_way(data: Path) -> None:
    shared = ["--train.balancer=upgrad", "--model.sharing=ple", "--train.loss_weights.risk=2"]
    found = config(data, *shared)
    assert isinstance(new_model(found, open_data(found)), MaskedLanguageModel)


@pytest.mark.parametrize("kind", [PretrainConfig, RunConfig])
def test_training_and_pretraining_keep_out_of_one_anothers_folder(
    data: Path, kind: type[RunConfig]
) -> None:
    other = RunConfig if kind is PretrainConfig else PretrainConfig
    before = config(data, kind=other, name=f"of_{kind.__name__}")
    after = config(data, kind=kind, name=f"of_{kind.__name__}")

    store = Store.open(f"{before.output}/{before.name}")
    begin(before, RunPlace(store, None, False))
    job = "pretrain" if kind is RunConfig else "train"
    auto = config(data, "--data.tokens_per_micro_batch=auto", kind=kind, name=f"of_{kind.__name__}")
    with pytest.raises(ConfigError, match=rf"a run of jobs\.{job}"):
        claim(after, overwrite=False)
    with pytest.raises(ConfigError, match=rf"a run of jobs\.{job}"):
        resolve_micro_batch(auto, overwrite=False)


def test_another_share_is_another_run(data: Path) -> None:
    first = config(data, name="share")
    store = Store.open(f"{first.output}/{first.name}")
    begin(first, RunPlace(store, None, False))
    assert claim(first, overwrite=False).result is None
    with pytest.raises(ConfigError, match="a run with another mask_share"):
        claim(config(data, "--mask_share=0.2", name="share"), overwrite=False)


class Plain:
    """What validation uses of an engine."""

    device = torch.device("cpu")

    def __init__(self, module: torch.nn.Module) -> None:
        self.module = module

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)

    def train(self) -> None:
        self.module.train()

    def eval(self) -> None:
        self.module.eval()


def test_validation_is_the_same_however_it_is_cut(data: Path) -> None:
    found = config(data, "--mask_share=0.4")
    corpus = open_data(found)
    engine: Any = Plain(new_model(found, corpus))
    whole, cut = (
        validate(engine, corpus, tokens_per_micro_batch=budget, max_rows=20)
        for budget in (10_000, 20)
    )
    assert whole == pytest.approx(cut, rel=1e-6)
    assert whole["loss"] == pytest.approx(math.log(16), rel=0.3)  # fresh weights know nothing
    assert whole["perplexity"] == pytest.approx(math.exp(whole["loss"]))


def test_no_text_of_its_own_leaves_validation_out(tmp_path: Path) -> None:
    texts = random_texts(10, seed=1)
    found = config(write_texts(tmp_path / "data", train=texts, validation=texts[:3]))
    corpus = open_data(found)
    engine: Any = Plain(new_model(found, corpus))
    values = validate(engine, corpus, tokens_per_micro_batch=64, max_rows=20)
    assert all(math.isnan(value) for value in values.values())

    watching = ["--train.early_stopping=2", "--train.evaluate_interval=5"]
    with pytest.raises(ConfigError, match="none that training does not have") as caught:
        describe(config(tmp_path / "data", *watching))
    assert "\n" not in str(caught.value)
