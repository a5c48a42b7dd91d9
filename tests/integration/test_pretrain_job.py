"""Pre-training: N workers do what one and plain torch do; the job end to end, kills included."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
from pretrain_toy import random_texts, write_texts
from test_train_parity import _assert_close, _settings
from test_train_ray import arguments, final_tensors, killing
from train_toy import run_group
from untrained import write_run

from jobs import evaluate, pretrain, train
from jobs.cli import exit_status
from rectrain.data.loader import Loader
from rectrain.data.texts import MLM
from rectrain.model.encoder import load_encoder
from rectrain.train.build import load_trained_encoder, new_model, open_data
from rectrain.train.config import PretrainConfig
from rectrain.train.export import export_encoder
from rectrain.train.run_plan import plan_run
from rectrain.train.step import (
    dropout_seed,
    learning_rate_share,
    num_accumulations,
    parameter_groups,
)
from rectrain.train.storage import Store
from rectrain.train.tracking import read_records

STAGES = (0, 1, 2, 3)
NUM_STEPS, NUM_MICRO_BATCHES, SEED = 12, 3, 5  # two workers: one of their forwards is empty


def _config(path: str, stage: int = 0) -> PretrainConfig:
    changes = {"num_steps": NUM_STEPS, "num_micro_batches": NUM_MICRO_BATCHES}
    return PretrainConfig.model_validate(
        {
            "seed": SEED,
            "data": {"paths": [path], "tokens_per_micro_batch": 96},
            "model": {"encoder": "tiny", "dropout": 0.1},
            "train": _settings(stage).model_copy(update=changes),
            "mask_share": 0.3,
        }
    )


def _share(step: int, config: PretrainConfig) -> float:
    return learning_rate_share(step, num_steps=NUM_STEPS, warmup_share=config.train.warmup_share)


def _kept(weights: dict[str, Any]) -> dict[str, Any]:
    """Softmax ignores a bias of the keys: its gradient is rounding alone, made large by Adam."""
    return {name: w for name, w in weights.items() if not name.endswith("self.key.bias")}


def _pretrain(rank: int, path: str) -> dict[int, Any]:
    from rectrain.train.checkpoint import _owned_tensors
    from rectrain.train.step import build_engine, train_step
    from rectrain.train.validate import validate

    results = {}
    for stage in STAGES:
        config = _config(path, stage)
        data = open_data(config)
        run = plan_run(config, data)
        world_size = torch.distributed.get_world_size()
        engine = build_engine(
            new_model(config, data),
            train=config.train,
            hidden_size=128,
            num_accumulations=num_accumulations(NUM_MICRO_BATCHES, world_size=world_size),
        )
        curve = []
        with Loader(
            run.shards, plan=run.plan, rank=rank, world_size=world_size, num_steps=NUM_STEPS
        ) as loader:
            for step, batches in loader:
                result = train_step(
                    engine,
                    batches,
                    step=step,
                    seed=SEED,
                    learning_rate_share=_share(step, config),
                    tasks=[MLM],
                )
                torch.distributed.all_reduce(result.losses)
                curve.append(result.losses.tolist())
        state = {
            name: tensor.detach().numpy().copy()
            for _, kind, name, tensor in _owned_tensors(engine)
            if kind == "model"
        }
        validation = validate(engine, data, tokens_per_micro_batch=96, max_rows=50)
        results[stage] = _kept(state), curve, validation
    return results


def _plain_torch(path: str) -> tuple[dict[str, Any], list[list[float]]]:
    config = _config(path)
    data = open_data(config)
    run = plan_run(config, data)
    model = new_model(config, data).train()
    optimizer = torch.optim.AdamW(parameter_groups(model, train=config.train))
    curve = []
    with Loader(run.shards, plan=run.plan, num_steps=NUM_STEPS) as loader:
        for step, batches in loader:
            for group in optimizer.param_groups:
                group["lr"] = group["peak_lr"] * _share(step, config)
            total = 0.0
            for number, batch in enumerate(batches):
                torch.manual_seed(dropout_seed(SEED, step=step, micro_batch=number))
                loss, parts = model(batch)
                loss.backward()
                total += float(parts[MLM])
            torch.nn.utils.clip_grad_norm_(model.parameters(), config.train.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
            curve.append([total])
    weights = {name: p.detach().numpy() for name, p in model.named_parameters()}
    return _kept(weights), curve


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> str:
    root = tmp_path_factory.mktemp("texts") / "data"
    train_texts, validation = random_texts(150, seed=1), random_texts(60, seed=2)
    return str(write_texts(root, train=train_texts, validation=validation))


@pytest.fixture(scope="module")
def one_worker(texts: str) -> Any:
    return run_group(_pretrain, texts, world_size=1, timeout_s=300)


@pytest.fixture(scope="module")
def two_workers(texts: str) -> Any:
    return run_group(_pretrain, texts, world_size=2, timeout_s=300)


@pytest.mark.parametrize("stage", STAGES)
def test_one_worker_equals_plain_torch(one_worker: Any, texts: str, stage: int) -> None:
    _assert_close(one_worker[stage][:2], _plain_torch(texts))


@pytest.mark.parametrize("stage", STAGES)
def test_two_workers_equal_one(one_worker: Any, two_workers: Any, stage: int) -> None:
    _assert_close(two_workers[stage][:2], one_worker[stage][:2])
    assert two_workers[stage][2] == pytest.approx(one_worker[stage][2], rel=1e-5)


def test_an_encoder_is_exported_and_has_no_heads(
    marketplace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "pretrain", marketplace, kind=PretrainConfig)
    loaded = load_trained_encoder(str(run))
    export_encoder(loaded, Store.open(str(run)))
    vocabulary = loaded.encoder.config.vocab_size
    again = load_encoder(str(run / "encoder"), vocab_size=vocabulary)
    for name, tensor in again.state_dict().items():
        assert torch.equal(tensor, loaded.encoder.state_dict()[name]), name
    card = (run / "encoder" / "README.md").read_text()
    assert "pre-trained by masked words" in card and "| mlm | perplexity | not measured |" in card
    for main, arguments_ in (
        (evaluate.main, [f"--checkpoint={run}"]),
        (train.main, [f"--data.paths={marketplace}", f"--train.start_from={run}", "--dry-run"]),
    ):  # fmt: skip
        assert exit_status(main, arguments_) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert "without heads" in line and "--model.encoder=RUN/encoder" in line


@pytest.fixture(scope="module")
def cluster(marketplace: Path) -> Iterator[Path]:
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield marketplace
    ray.shutdown()


@pytest.mark.slow
def test_pretraining_survives_a_kill_and_training_starts_from_it(
    cluster: Path, tmp_path: Path
) -> None:
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    assert pretrain.main(arguments(cluster, tmp_path, "straight")) == 0
    status, at = killing(
        killed, [11], lambda: pretrain.main(arguments(cluster, tmp_path, "killed"))
    )
    assert (status, at) == (0, [11])
    expected, got = final_tensors(straight), final_tensors(killed)
    assert expected.keys() == got.keys()
    assert not [name for name in expected if not torch.equal(expected[name], got[name])]

    records = read_records(straight / "metrics.jsonl")
    losses = [record["loss"][MLM] for record in records if record["kind"] == "log"]
    assert losses[0] == pytest.approx(np.log(30522), rel=0.1)
    assert np.mean(losses[-5:]) < np.mean(losses[:5])
    validations = [r["validation"] for r in records if r["kind"] == "validation"]
    assert [sorted(found) for found in validations] == [["loss", "perplexity"]] * 2
    assert validations[1]["loss"] < validations[0]["loss"]
    card = (straight / "encoder" / "README.md").read_text()
    assert f"| mlm | loss | {validations[1]['loss']:.4f} |" in card

    start = f"--model.encoder={straight / 'encoder'}"
    fine = [
        argument for argument in arguments(cluster, tmp_path, "fine") if "encoder" not in argument
    ]
    assert train.main([*fine, start, "--train.num_steps=2"]) == 0
    before = load_trained_encoder(str(straight)).encoder.state_dict()
    after = load_trained_encoder(str(tmp_path / "fine")).encoder.state_dict()
    name = "embeddings.word_embeddings.weight"
    gap = (after[name] - before[name]).norm() / before[name].norm()
    assert 0 < gap < 0.2  # two steps from there, not from fresh weights
