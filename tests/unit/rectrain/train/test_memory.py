"""How many tokens fit into a worker's memory, and that a run keeps the number it began with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pretrain_toy import random_texts, write_texts
from transformers import BertModel

from rectrain.config import load_config
from rectrain.data.batch import PackedTexts
from rectrain.errors import ResourceError
from rectrain.model.adapters import adapted_width, add_adapters
from rectrain.model.encoder import encode, load_encoder
from rectrain.train import preflight
from rectrain.train.build import new_model, open_data
from rectrain.train.config import PretrainConfig
from rectrain.train.memory import activation_bytes, free_bytes, largest_micro_batch, worker_bytes
from rectrain.train.run_plan import plan_run, with_micro_batch

MIB = 1 << 20


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_texts(tmp_path_factory.mktemp("memory") / "data", train=random_texts(900, seed=1))


def config(data: Path, *more: str) -> PretrainConfig:
    return preflight.resolve_paths(
        load_config(
            PretrainConfig, file=None,
            overrides=[
                f"--data.paths={data}", f"--output={data.parent}", "--model.encoder=tiny",
                "--data.tokens_per_micro_batch=auto", *more,
            ],
        )
    )  # fmt: skip


def needed(found: PretrainConfig, tokens: int, *, num_workers: int = 1) -> int:
    trial = with_micro_batch(found, tokens)
    opened = open_data(trial)
    return sum(
        worker_bytes(
            trial,
            opened,
            model=new_model(trial, opened),
            plan=plan_run(trial, opened).plan,
            num_workers=num_workers,
        ).values()
    )


def largest(found: PretrainConfig, *, memory_bytes: int) -> int:
    opened = open_data(found)
    model = new_model(with_micro_batch(found, 16), opened)
    return largest_micro_batch(found, opened, model=model, memory_bytes=memory_bytes)


@pytest.mark.parametrize("free_mib", [24, 32, 40])
def test_one_more_token_would_not_fit(data: Path, free_mib: int) -> None:
    found = config(data)
    tokens = largest(found, memory_bytes=free_mib * MIB)
    assert needed(found, tokens) <= 0.8 * free_mib * MIB
    step = next(n for n in range(1, 9999) if needed(found, tokens + n) != needed(found, tokens))
    assert step == 1
    assert needed(found, tokens + 1) > 0.8 * free_mib * MIB


def test_never_more_than_the_data_hold(data: Path) -> None:
    found = config(data)
    (corpus,) = open_data(found).values()
    assert largest(found, memory_bytes=1 << 50) == corpus.splits("mlm")["train"]["tokens"]


def test_an_elastic_run_must_fit_its_fewest_workers(data: Path) -> None:
    one, both = config(data), config(data, "--train.num_workers=[1,8]")
    assert needed(one, 500) > needed(one, 500, num_workers=8)  # ZeRO-2 splits its state
    assert largest(both, memory_bytes=32 * MIB) == largest(one, memory_bytes=32 * MIB)


def test_what_can_not_be_chosen_is_told(data: Path) -> None:
    with pytest.raises(ResourceError, match=r"auto with 1 MiB free.*needs \d+ MiB at least"):
        largest(config(data), memory_bytes=MIB)


def test_a_run_keeps_its_number(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def resolve(free_mib: int, *, overwrite: bool = False) -> int:
        monkeypatch.setattr(preflight, "free_bytes", lambda num_workers: free_mib * MIB)
        settings = preflight.resolve_micro_batch(config(data, "--name=kept"), overwrite=overwrite)
        preflight.begin(settings, preflight.claim(settings, overwrite=overwrite))
        assert f"micro_batch={settings.data.micro_batch_tokens})" in preflight.describe(settings)
        return settings.data.micro_batch_tokens

    first = resolve(32)
    assert resolve(24) == resolve(40) == first
    assert resolve(24, overwrite=True) < first


ADAPTERS: dict[str, dict[str, Any]] = {
    "none": {},
    "lora": {"kind": "lora", "dropout": 0.0},
    "lora with dropout": {"kind": "lora", "dropout": 0.1},
    "adalora with dropout": {"kind": "adalora", "dropout": 0.1},
}


def encoder(adapter: str) -> BertModel:
    bert = load_encoder("small", vocab_size=50).train()
    if ADAPTERS[adapter]:
        targets = ("query", "key", "value", "dense")
        more: dict[str, Any] = {"rank": 8, "alpha": 16, "seed": 0, "num_steps": 100}
        add_adapters(bert, targets=targets, **more, **ADAPTERS[adapter])
    return bert


def kept_bytes(bert: BertModel, texts: PackedTexts, *, checkpointing: bool) -> int:
    """What a forward of an encoder keeps for its backward pass, besides parameters."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in bert.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage  # held, so that no other gets its address
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        vectors = encode(bert, texts, activation_checkpointing=checkpointing)
    assert vectors.requires_grad
    return sum(storage.nbytes() for storage in kept.values())


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("length", [8, 256])
def test_no_forward_keeps_more_than_the_plan_says(
    length: int, checkpointing: bool, adapter: str
) -> None:
    lengths = torch.tensor([length - 3] * 3 + [length] * 9)
    texts = PackedTexts(torch.randint(50, (int(lengths.sum()),)), lengths)
    bert = encoder(adapter)
    layers = bert.config.num_hidden_layers
    bound = activation_bytes(
        num_tokens=len(texts.input_ids),
        hidden_size=bert.config.hidden_size,
        num_layers=layers,
        max_length=length,
        num_heads=bert.config.num_attention_heads,
        activation_checkpointing=checkpointing,
        dropped_width=adapted_width(bert) // layers if "dropout" in adapter else 0,
    )
    assert kept_bytes(bert, texts, checkpointing=checkpointing) <= bound


def test_a_container_limits_what_is_free(tmp_path: Path) -> None:
    whole = free_bytes(num_workers=1, cgroup=tmp_path)
    (tmp_path / "memory.current").write_text(f"{MIB << 9}\n")
    (tmp_path / "memory.max").write_text("max\n")
    np.testing.assert_allclose(free_bytes(num_workers=1, cgroup=tmp_path), whole, rtol=0.2)
    (tmp_path / "memory.max").write_text(f"{MIB << 11}\n")
    assert free_bytes(num_workers=2, cgroup=tmp_path) == (768 - 600) * MIB
