"""Settings that contradict each other are refused; the derived ones follow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from rectrain.config import dump_config, load_config
from rectrain.errors import ConfigError
from rectrain.train.config import RunConfig


def load(*overrides: str) -> RunConfig:
    return load_config(RunConfig, file=None, overrides=["--data.paths=a,b", *overrides])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["--train.num_steps=5", "--train.num_epochs=1"], "not both"),
        (["--train.offload=optimizer", "--train.zero_stage=0"], "zero_stage 1, 2 or 3"),
        (["--train.offload=all", "--train.zero_stage=2"], "zero_stage 3"),
        (["--train.balancer=pcgrad", "--train.zero_stage=3"], "zero_stage 0, 1 or 2: at stage 3"),
        (["--train.freeze=encoder", "--data.tokens_per_micro_batch=auto"], "give a number"),
        (["--train.freeze=encoder", "--train.layer_decay=0.9"], "an encoder that trains"),
        (["--train.optimizer=adafactor"], "flat piece of many matrices"),
        (["--train.optimizer=adafactor", "--train.zero_stage=0", "--train.decay=l2"], "alone"),
        (["--train.adapter=lora", "--train.freeze=encoder"], "train beside the encoder"),
        (["--train.adapter=adalora"], "lora works at every stage"),
        (["--train.adapter_targets=[]"], "train.adapter_targets"),
        (
            [
                "--train.adapter=adalora",
                "--train.zero_stage=0",
                "--train.evaluate_interval=5",
                "--train.early_stopping=2",
            ],
            "seven tenths",
        ),
        (["--train.early_stopping=2"], "evaluate_interval"),
        (["--train.schedule=plateau"], "evaluate_interval"),
        (["--train.num_workers=[3,2]"], "fewest"),
        (["--train.zero_stage=4"], "train.zero_stage"),
        (["--name=../up"], "name"),
        (["--train.zero_stages=1"], "did you mean train.zero_stage"),
    ],
)
def test_contradictions_are_one_line(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(*overrides)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("train.adapter_rank=8", "has no effect without train.adapter"),
        ("train.adapter_targets=query", "has no effect without train.adapter"),
        ("train.balancer_gradients=encoder", "without train.balancer=pcgrad"),
        ("train.plateau_factor=0.1", "without train.schedule=plateau"),
        ("train.min_delta=0.1", "without train.early_stopping or train.schedule=plateau"),
        ("train.activation_checkpointing=true", "with train.freeze=encoder"),
        ("model.encoder=small", "with train.start_from"),
        ("model.num_levels=3", "without model.sharing=ple"),
    ],
)
def test_settings_without_effect_are_refused(tmp_path: Path, setting: str, message: str) -> None:
    key, _, value = setting.partition("=")
    more = ["--train.freeze=encoder", "--train.start_from=runs/before"]
    with pytest.raises(ConfigError, match=f"{key} on the command line.*{message}") as caught:
        load(*more, f"--{setting}")
    assert "\n" not in str(caught.value)

    if value in ("8", "query"):  # the default, or one of several
        return
    section, name = key.split(".")
    file = tmp_path / "run.yaml"
    own: dict[str, Any] = {"freeze": "encoder", "start_from": "runs/before"}
    content: dict[str, dict[str, Any]] = {"data": {"paths": ["a"]}, "train": own, "model": {}}
    content[section][name] = yaml.safe_load(value)
    file.write_text(yaml.safe_dump(content))
    with pytest.raises(ConfigError, match=f"{key} in the file.*{message}"):
        load_config(RunConfig, file=str(file), overrides=[])


def test_one_file_serves_runs_that_the_command_line_tells_apart(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(
        "data: {paths: [a]}\nmodel: {encoder: small}\n"
        "train: {adapter: lora, adapter_rank: 16, activation_checkpointing: true}\n"
    )
    second = ["--train.start_from=runs/joint", "--train.freeze=encoder", "--train.adapter=none"]
    found = load_config(RunConfig, file=str(file), overrides=second)
    assert found.train.freeze == "encoder"
    file.write_text(dump_config(load("--train.start_from=runs/before")))  # holds every setting
    assert load_config(RunConfig, file=str(file), overrides=[]).train.adapter_rank == 8


def test_rates_follow_what_trains() -> None:
    def rates(*overrides: str) -> tuple[float, float]:
        train = load(*overrides).train
        return train.encoder_rate, train.head_rate

    assert rates() == (5e-5, pytest.approx(5e-4))
    assert rates("--train.learning_rate=1e-4") == (1e-4, pytest.approx(1e-3))
    assert rates("--train.adapter=lora") == (1e-3, pytest.approx(5e-4))
    assert rates("--train.adapter=lora", "--train.learning_rate=1e-4")[0] == 1e-4


def test_micro_batches_follow_the_most_workers() -> None:
    elastic = load("--train.num_workers=[1,4]").train
    assert (elastic.min_workers, elastic.max_workers, elastic.micro_batches) == (1, 4, 4)
    assert load("--train.num_workers=2", "--train.num_micro_batches=6").train.micro_batches == 6


def test_a_run_is_read_back_as_it_was_written(tmp_path) -> None:
    config = load("--train.num_workers=[1,2]", "--train.loss_weights.risk=2")
    file = tmp_path / "config.yaml"
    file.write_text(dump_config(config))
    assert load_config(RunConfig, file=str(file), overrides=[]) == config
