"""Who may teach a run, what the plan says of it, and that the run keeps its teacher."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from prepared_toy import PRICE, write_encoder, write_prepared
from untrained import write_run

from rectrain.config import load_config
from rectrain.data.encoding import FeatureEncoder
from rectrain.errors import CheckpointError, ConfigError, EncoderError, RectrainError
from rectrain.model.encoder import encode
from rectrain.model.multitask import MultiTaskModel
from rectrain.train.build import load_model, new_model, open_data
from rectrain.train.config import PretrainConfig, RunConfig
from rectrain.train.frozen import cached_texts, keep_vectors
from rectrain.train.memory import worker_bytes
from rectrain.train.preflight import RunPlace, begin, claim, describe, resolve_paths
from rectrain.train.provenance import checkpoint_meta
from rectrain.train.run_plan import plan_run
from rectrain.train.storage import Store

BOTH = {"search_ranking": PRICE, "risk": PRICE}
WIDE = 128  # of the teacher's tiny encoder; the student's is 16 wide


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_encoder(tmp_path / "bert")
    write_prepared(tmp_path / "data", tasks=BOTH, num_rows=60)
    write_run(tmp_path / "runs" / "large", tmp_path / "data", seed=7)
    return tmp_path


def config(
    root: Path, *, data: str = "data", teacher: str = "runs/large", **train: Any
) -> RunConfig:
    return RunConfig.model_validate(
        {
            "name": "small",
            "output": str(root / "runs"),
            "data": {"paths": [str(root / data)], "tokens_per_micro_batch": 64},
            "model": {"encoder": str(root / "bert"), "dropout": 0, "head_width": 8},
            "train": {"num_steps": 4, "teacher": str(root / teacher), **train},
        }
    )


def model_of(own: RunConfig) -> MultiTaskModel:
    model = new_model(own, open_data(own))
    assert isinstance(model, MultiTaskModel)
    return model


def test_the_plan_says_who_teaches_and_counts_what_that_takes(root: Path) -> None:
    own = resolve_paths(config(root, distill_weight=0.5, distill_relation=2.0))
    lines = describe(own).splitlines()
    (line,) = [line for line in lines if line.startswith("teacher: ")]
    taught = load_model(str(root / "runs" / "large")).model
    size = sum(parameter.numel() for parameter in taught.parameters())
    assert line == (
        f"teacher: {root}/runs/large/checkpoints/step-00000001 (SHA-256 "
        f"{str(own.train.teacher_sha256)[:12]}…, {size:,} parameters): 50% of each loss at "
        "temperature 2, relation of texts × 2; its vectors are computed once"
    )
    (parameters,) = [line for line in lines if line.startswith("parameters to train: ")]
    student = model_of(own)
    assert f"{sum(p.numel() for p in student.parameters()):,}" in parameters

    data = open_data(own)
    plan = plan_run(own, data).plan
    held = worker_bytes(own, data, model=student, plan=plan, num_workers=1)
    assert held["teacher"] == 4 * size
    assert held["vectors"] == cached_texts(own, data, widths=[WIDE]).num_bytes
    frozen = config(root, freeze="encoder")
    both = worker_bytes(frozen, data, model=model_of(frozen), plan=plan, num_workers=1)
    assert both["vectors"] == cached_texts(own, data, widths=[WIDE, 16]).num_bytes


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize("freeze", ["none", "encoder"])
def test_a_teachers_texts_are_encoded_once(root: Path, freeze: str) -> None:
    own = config(root, freeze=freeze)
    data, model = open_data(own), model_of(own)
    keep_vectors(model, own, data, device=torch.device("cpu"))
    assert model.distillation is not None
    teacher = model.distillation.teacher
    texts = cached_texts(own, data, widths=[WIDE]).texts
    assert teacher._known is not None
    torch.testing.assert_close(teacher._known._vectors, encode(teacher.encoder, texts))
    assert (model._known is not None) == (freeze == "encoder")
    assert model.distillation.relation == (0.0 if freeze == "encoder" else 1.0)
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


def other_task(root: Path) -> dict[str, Any]:
    write_prepared(root / "other", tasks={**BOTH, "ad_ctr": PRICE})
    return {"data": "other"}


def other_order(root: Path) -> dict[str, Any]:
    return {"tasks": ["risk", "search_ranking"]}


def other_bins(root: Path) -> dict[str, Any]:
    bins = FeatureEncoder({"price": (0.0, 5.0)}, {}, {})
    write_prepared(root / "other", tasks={**BOTH, "risk": bins})
    return {"data": "other"}


def other_tokenizer(root: Path) -> dict[str, Any]:
    write_encoder(root / "bert", vocab_size=31)
    write_prepared(root / "other", tasks=BOTH, more_words=("gold",))
    return {"data": "other"}


def pretrained(root: Path) -> dict[str, Any]:
    write_run(root / "runs" / "words", root / "data", kind=PretrainConfig)
    return {"teacher": "runs/words"}


def absent(root: Path) -> dict[str, Any]:
    return {"teacher": "runs/absent"}


def too_large(root: Path) -> dict[str, Any]:
    return {"frozen_cache_gib": 1e-6}


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        (other_task, ConfigError, r"a model of search_ranking, risk; .*fix: train\.tasks="),
        (other_order, ConfigError, r"the run's tasks in their order, risk, search_ranking"),
        (other_bins, ConfigError, "other features of risk"),
        (other_tokenizer, EncoderError, "another tokenizer than the data of search_ranking"),
        (pretrained, CheckpointError, "a pre-trained encoder without heads"),
        (absent, CheckpointError, "without one that is complete"),
        (too_large, ConfigError, r"train\.teacher: got \d+ different texts"),
    ],
)
def test_a_teacher_that_can_not_teach_is_refused_in_one_line(
    root: Path,
    change: Callable[[Path], dict[str, Any]],
    kind: type[RectrainError],
    message: str,
) -> None:
    with pytest.raises(kind, match=message) as caught:
        describe(resolve_paths(config(root, **change(root))))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["--train.distill_weight=0.5"], "distill_weight.*no effect without train.teacher"),
        (["--train.distill_relation=0"], "distill_relation.*no effect without train.teacher"),
        (
            ["--train.distill_relation=2", "--train.teacher=runs/a", "--train.freeze=encoder"],
            "distill_relation.*no effect with train.freeze=encoder",
        ),
    ],
)
def test_settings_of_a_teacher_need_one(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(RunConfig, file=None, overrides=["--data.paths=data", *overrides])


def test_pretraining_has_no_teacher() -> None:
    with pytest.raises(ConfigError, match="no tasks to teach"):
        load_config(
            PretrainConfig, file=None, overrides=["--data.paths=data", "--train.teacher=runs/a"]
        )


def test_a_run_does_not_learn_from_itself(root: Path) -> None:
    write_run(root / "runs" / "small", root / "data", model={"encoder": str(root / "bert")})
    own = resolve_paths(config(root, teacher="runs/small"), overwrite=True)
    with pytest.raises(ConfigError, match="can't learn from its own checkpoint"):
        claim(own, overwrite=True)


def test_a_run_keeps_the_teacher_that_it_began_with(root: Path) -> None:
    own = resolve_paths(config(root))
    begin(own, RunPlace(Store.open(f"{own.output}/{own.name}"), None, False))
    large = root / "runs" / "large"
    shutil.copytree(large, root / "moved")
    assert claim(resolve_paths(config(root, teacher="moved")), overwrite=False).result is None

    shutil.rmtree(large)
    write_run(large, root / "data", seed=8)
    with pytest.raises(ConfigError, match=r"a run with another train\.teacher_sha256"):
        claim(resolve_paths(config(root)), overwrite=False)
    with pytest.raises(CheckpointError, match="the run began with another"):
        new_model(own, open_data(own))  # a worker's look


def test_a_checkpoint_of_a_student_loads_without_its_teacher(root: Path) -> None:
    own = resolve_paths(config(root))
    sections = {"model": own.model.model_dump(), "train": own.train.model_dump(mode="json")}
    write_run(root / "runs" / "small", root / "data", **sections)
    shutil.rmtree(root / "runs" / "large")
    loaded = load_model(str(root / "runs" / "small"))
    assert loaded.model.distillation is None
    assert loaded.checkpoint.meta["config"]["train"]["teacher"] == own.train.teacher


def test_no_password_of_a_teachers_uri_is_stored(root: Path) -> None:
    own = config(root)
    secret = own.train.model_copy(update={"teacher": "s3://key:secret@bucket/runs/large"})
    meta = checkpoint_meta(own.model_copy(update={"train": secret}), open_data(own))
    assert "secret" not in str(meta) and "bucket/runs/large" in meta["config"]["train"]["teacher"]
