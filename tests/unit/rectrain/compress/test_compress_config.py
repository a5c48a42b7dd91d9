"""What can be asked of a compression, and settings that would be passed over in silence."""

from __future__ import annotations

from pathlib import Path

import pytest

from rectrain.compress.config import CompressConfig
from rectrain.config import dump_config, load_config
from rectrain.errors import ConfigError

NEEDED = ["--teacher=runs/large", "--output=runs/small"]


def load(*more: str, file: Path | None = None) -> CompressConfig:
    return load_config(CompressConfig, file=file and str(file), overrides=[*NEEDED, *more])


def test_the_run_that_distils_has_the_teacher() -> None:
    assert load().train.teacher == "runs/large"
    assert load("--train.teacher=runs/large", "--train.teacher_sha256=ab").train.teacher_sha256


@pytest.mark.parametrize(
    ("argument", "rule"),
    [
        ("train.teacher=runs/other", "has no effect beside another teacher"),
        ("train.adapter_rank=8", "has no effect without train.adapter"),
        ("train.plateau_factor=0.3", r"has no effect without train.schedule=plateau"),
        ("train.min_delta=0.1", "has no effect without train.early_stopping"),
        ("train.balancer_gradients=encoder", "has no effect without train.balancer"),
        ("train.start_from_sha256=ab", "start_from_sha256 is decided by the steps"),
        ("train.num_epochs=2", "is decided by the steps|give num_steps or num_epochs"),
        ("train.num_steps=null", "train.num_steps"),
        ("tokens_per_micro_batch=3", "tokens_per_micro_batch.*greater than or equal to 16"),
        ("calibration_texts=9", "calibration_texts.*greater than or equal to 50"),
    ],
)
def test_what_would_have_no_effect_or_fail_late_is_refused(argument: str, rule: str) -> None:
    with pytest.raises(ConfigError, match=rule):
        load(f"--{argument}")


def test_without_soft_labels_they_have_no_temperature() -> None:
    with pytest.raises(ConfigError, match=r"distill_temperature.*with train.distill_weight=0"):
        load("--train.distill_weight=0", "--train.distill_temperature=3")


def test_a_stored_configuration_serves_again_also_for_another_teacher(tmp_path: Path) -> None:
    stored = tmp_path / "compress.yaml"
    stored.write_text(dump_config(load("--seed=3")))
    assert load(file=stored).seed == 3
    other = load_config(
        CompressConfig, file=str(stored), overrides=["--teacher=runs/b", "--output=runs/c"]
    )
    assert other.teacher == "runs/b"
