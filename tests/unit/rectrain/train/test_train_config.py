"""Settings that contradict each other are refused; the derived ones follow."""

from __future__ import annotations

import pytest

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


def test_micro_batches_follow_the_most_workers() -> None:
    elastic = load("--train.num_workers=[1,4]").train
    assert (elastic.min_workers, elastic.max_workers, elastic.micro_batches) == (1, 4, 4)
    assert load("--train.num_workers=2", "--train.num_micro_batches=6").train.micro_batches == 6


def test_a_run_is_read_back_as_it_was_written(tmp_path) -> None:
    config = load("--train.num_workers=[1,2]", "--train.loss_weights.risk=2")
    file = tmp_path / "config.yaml"
    file.write_text(dump_config(config))
    assert load_config(RunConfig, file=str(file), overrides=[]) == config
