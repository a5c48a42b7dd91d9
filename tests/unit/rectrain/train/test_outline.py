"""What the plan of a run says and warns of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from prepared_toy import PRICE, write_encoder, write_prepared
from untrained import write_run

from rectrain.train.config import RunConfig
from rectrain.train.outline import repetitions
from rectrain.train.preflight import describe, resolve_paths


def activations(root: Path) -> int:
    config = RunConfig.model_validate(
        {
            "data": {"paths": [str(root / "data")]},
            "model": {"encoder": str(root / "bert"), "dropout": 0},
            "train": {"num_steps": 1, "activation_checkpointing": True},
        }
    )
    (line,) = [line for line in describe(config).splitlines() if "activations" in line]
    return int(line.partition("activations, at most ")[2].split(",")[0].split(")")[0])


def test_the_plan_counts_texts_as_long_as_the_data_has_them(tmp_path: Path) -> None:
    write_prepared(tmp_path / "data", tasks={"risk": PRICE}, num_rows=3000)
    write_encoder(tmp_path / "bert")
    few = activations(tmp_path)
    write_encoder(tmp_path / "bert", num_positions=4096)
    assert 0 < activations(tmp_path) == few


def warnings(root: Path, *, encoder: str = "tiny", tokens: int = 32, **train: Any) -> list[str]:
    config = RunConfig.model_validate(
        {
            "data": {"paths": [str(root / "data")], "tokens_per_micro_batch": tokens},
            "model": {"encoder": encoder},
            "train": train,
        }
    )
    lines = describe(resolve_paths(config)).splitlines()
    return [line.split(": ")[1] for line in lines if line.startswith("warning: ")]


def test_an_encoder_that_stays_random_is_told(tmp_path: Path) -> None:
    data = write_prepared(tmp_path / "data", tasks={"risk": PRICE})
    bert, start = write_encoder(tmp_path / "bert"), write_run(tmp_path / "start", data)
    for fixed in ({"adapter": "lora"}, {"freeze": "encoder"}):
        train: dict[str, Any] = {"num_steps": 3, **fixed}
        assert warnings(tmp_path, **train) == ["random encoder"]
        assert warnings(tmp_path, encoder=str(bert), **train) == []
        assert warnings(tmp_path, start_from=str(start), **train) == []
    assert warnings(tmp_path, num_steps=3) == []


def test_few_steps_that_nobody_asked_for_are_told(tmp_path: Path) -> None:
    write_prepared(tmp_path / "data", tasks={"risk": PRICE}, num_rows=600)  # 3,300 tokens or so
    assert warnings(tmp_path, tokens=100_000) == warnings(tmp_path, tokens=300) == ["few steps"]
    assert warnings(tmp_path, tokens=32) == warnings(tmp_path, tokens=100_000, num_steps=1) == []


def test_a_balancer_with_nothing_to_weigh_is_told(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    write_prepared(one / "data", tasks={"risk": PRICE})
    write_prepared(two / "data", tasks={"risk": PRICE, "search_ranking": PRICE})
    assert warnings(one, num_steps=9, balancer="dwa") == ["balancer=dwa weighs nothing"]
    assert warnings(two, num_steps=2, balancer="dwa") == ["balancer=dwa weighs nothing"]
    assert warnings(two, num_steps=9, balancer="dwa") == warnings(one, num_steps=9) == []


def test_too_few_validations_to_decide_by_are_told(tmp_path: Path) -> None:
    manifest = write_prepared(tmp_path / "data", tasks={"risk": PRICE}) / "manifest.json"
    facts = json.loads(manifest.read_text())
    facts["tasks"]["risk"]["splits"]["validation"]["rows"] = 3
    manifest.write_text(json.dumps(facts))
    stop: dict[str, Any] = {"early_stopping": 2, "evaluate_interval": 10}
    assert warnings(tmp_path, num_steps=30, **stop) == ["few validations"]  # of 10, 20; then 30
    assert warnings(tmp_path, num_steps=31, **stop) == []
    fall: dict[str, Any] = {"schedule": "plateau", "plateau_patience": 3, "evaluate_interval": 10}
    assert warnings(tmp_path, num_steps=40, **fall) == ["few validations"]
    assert warnings(tmp_path, num_steps=41, **fall) == []
    assert warnings(tmp_path, num_steps=5, evaluate_interval=10) == []


def test_a_task_that_repeats_very_often_is_told_with_the_fix() -> None:
    assert repetitions({"recommendation": 3.0, "risk": 312.4, "ad_ctr": 50.0}) == [
        "warning: many epochs: risk 312; lower data.temperature (1: by rows) or mixing_weights, or "
        "give fewer train.num_steps"
    ]
    assert repetitions({"recommendation": 3.0, "risk": 50.0}) == []


def test_one_task_alone_has_no_share_to_change() -> None:
    assert repetitions({"risk": 60.0}) == [
        "warning: many epochs: risk 60; give fewer train.num_steps"
    ]
