"""What the plan of a run warns of, and its bound of memory: it holds, whatever is recomputed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from prepared_toy import PRICE, write_encoder, write_prepared

from rectrain.data.batch import PackedTexts
from rectrain.model.encoder import encode, load_encoder
from rectrain.train.config import RunConfig
from rectrain.train.launch import describe
from rectrain.train.outline import activation_bytes, repetitions


def kept_bytes(texts: PackedTexts, *, checkpointing: bool) -> int:
    """What a forward of the tiny encoder keeps for its backward pass, besides parameters."""
    bert = load_encoder("tiny", vocab_size=50).train()
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


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("length", [8, 256])
def test_no_forward_keeps_more_than_the_plan_says(length: int, checkpointing: bool) -> None:
    lengths = torch.tensor([length - 3] * 3 + [length] * 9)
    texts = PackedTexts(torch.randint(50, (int(lengths.sum()),)), lengths)
    bound = activation_bytes(
        num_tokens=len(texts.input_ids),
        hidden_size=128,
        num_layers=2,
        max_length=length,
        num_heads=2,
        checkpointing=checkpointing,
    )
    kept = kept_bytes(texts, checkpointing=checkpointing)
    assert kept <= bound
    assert checkpointing or kept >= 0.9 * bound  # what is recomputed is not seen here


def test_checkpointing_keeps_one_input_a_layer() -> None:
    sizes = {"num_tokens": 10, "hidden_size": 4, "max_length": 6, "num_heads": 2}
    one, many = (
        activation_bytes(**sizes, num_layers=layers, checkpointing=True) for layers in (1, 9)
    )
    assert many - one == 8 * 10 * 4 * 4


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


def test_a_task_that_repeats_very_often_is_told_with_the_fix() -> None:
    assert repetitions({"recommendation": 3.0, "risk": 312.4, "ad_ctr": 50.0}) == [
        "warning: many epochs: risk 312; lower data.temperature (1: by rows), or give fewer "
        "train.num_steps"
    ]
    assert repetitions({"recommendation": 3.0, "risk": 50.0}) == []


def test_one_task_alone_has_no_share_to_change() -> None:
    assert repetitions({"risk": 60.0}) == [
        "warning: many epochs: risk 60; give fewer train.num_steps"
    ]
