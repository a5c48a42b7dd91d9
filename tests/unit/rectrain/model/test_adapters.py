"""LoRA and AdaLoRA: where they begin, what they add, and how ranks are left out and remembered."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from peft import AdaLoraConfig
from peft.tuners.adalora import AdaLoraModel
from torch import Tensor, nn
from transformers import BertModel

from rectrain.data.batch import PackedTexts
from rectrain.errors import ConfigError
from rectrain.model.adapters import RankBudget, add_adapters, merge_adapters
from rectrain.model.encoder import encode, load_encoder

QUERY = "encoder.layer.0.attention.self.query"
LAYERS = 2 * 6  # linear layers with an adapter, by default
NUM_STEPS = 20  # 2 at the first rank, fixed after 14
TEXTS = PackedTexts(torch.tensor([3, 1, 4, 1, 5, 9]), torch.tensor([1, 2, 3]))


def encoder() -> BertModel:
    return load_encoder("tiny", vocab_size=30, dropout=0.0)


def adapt(bert: BertModel, kind: Any = "lora", **more: Any) -> RankBudget | None:
    settings: dict[str, Any] = {
        "rank": 4,
        "alpha": 8.0,
        "dropout": 0.0,
        "targets": ("query", "key", "value", "dense"),
        "seed": 1,
        "num_steps": NUM_STEPS,
    }
    return add_adapters(bert, kind=kind, **(settings | more))


def ranked(**more: Any) -> tuple[BertModel, RankBudget]:
    bert = encoder()
    ranks = adapt(bert, "adalora", **more)
    assert ranks is not None
    return bert, ranks


def adapters(bert: BertModel, part: str = "lora_") -> dict[str, nn.Parameter]:
    return {name: p for name, p in bert.named_parameters() if part in name}


def scatter(bert: BertModel, *, seed: int = 0) -> None:
    """Random values in the place of trained ones."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in adapters(bert).values():
        parameter.data.normal_(std=0.3, generator=generator)


@pytest.mark.parametrize("kind", ["lora", "adalora"])
def test_adapters_begin_at_the_encoder_itself_and_train_alone(kind: str) -> None:
    bert = encoder()
    before = encode(bert, TEXTS)
    state = torch.random.get_rng_state()
    adapt(bert, kind)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(encode(bert, TEXTS), before)
    trained = {name for name, p in bert.named_parameters() if p.requires_grad}
    assert trained == set(adapters(bert))
    assert len(trained) == LAYERS * (2 if kind == "lora" else 3)


@pytest.mark.parametrize("kind", ["lora", "adalora"])
def test_the_packed_forward_runs_them_and_merging_leaves_a_plain_bert(kind: str) -> None:
    bert, plain = encoder().double(), encoder().double()  # rounding is another matter
    adapt(bert, kind)
    scatter(bert)
    adapted = encode(bert, TEXTS)
    assert not torch.allclose(adapted, encode(plain, TEXTS), atol=1e-2)
    adapted.square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in adapters(bert).values())
    merge_adapters(bert)
    torch.testing.assert_close(encode(bert, TEXTS), adapted)
    assert list(bert.state_dict()) == list(plain.state_dict())
    assert all(parameter.requires_grad for parameter in bert.parameters())
    assert not hasattr(bert, "peft_config")


def test_lora_adds_the_scaled_product() -> None:
    bert = encoder()
    weight = bert.get_submodule(QUERY).weight.clone()  # type: ignore[operator]
    adapt(bert, targets=("query",))
    scatter(bert)
    a, b = (adapters(bert)[f"{QUERY}.lora_{part}.default.weight"] for part in "AB")
    expected = weight + 8.0 / 4 * b.detach() @ a.detach()
    merge_adapters(bert)
    torch.testing.assert_close(bert.get_submodule(QUERY).weight.data, expected)


def test_adalora_adds_the_singular_values_and_begins_with_more_ranks() -> None:
    bert = encoder()
    weight = bert.get_submodule(QUERY).weight.clone()  # type: ignore[operator]
    adapt(bert, "adalora")
    scatter(bert)
    a, b, e = (adapters(bert)[f"{QUERY}.lora_{part}.default"].detach() for part in "ABE")
    assert a.shape == (6, 128) and e.shape == (6, 1) and b.shape == (128, 6)
    expected = weight + 8.0 / 6 * b @ torch.diag(e[:, 0]) @ a
    merge_adapters(bert)
    torch.testing.assert_close(
        bert.get_submodule(QUERY).weight.data, expected, atol=1e-5, rtol=1e-4
    )


def test_fresh_adapters_follow_the_seed() -> None:
    one, same, other = encoder(), encoder(), encoder()
    for bert, seed in ((one, 1), (same, 1), (other, 2)):
        adapt(bert, seed=seed)
    key = f"{QUERY}.lora_A.default.weight"
    assert torch.equal(adapters(one)[key], adapters(same)[key])
    assert not torch.equal(adapters(one)[key], adapters(other)[key])


def test_the_penalty_is_the_distance_from_orthogonal() -> None:
    bert, ranks = ranked(rank=1, targets=("query",))  # begins with rank 2, in two layers
    for name, p in adapters(bert).items():
        p.data.zero_()
        if "lora_A" in name:
            p.data[0, 0] = p.data[1, 1] = 2.0
    # ‖4 I - I‖ = √18 for each A [2, I], ‖0 - I‖ = √2 for each B [O, 2]; peft's weight is a half.
    expected = 0.5 * (18**0.5 + 2**0.5) / 2
    assert ranks.penalty(bert).item() == pytest.approx(expected, rel=1e-6)


def test_importance_is_smoothed_sensitivity_times_uncertainty() -> None:
    bert, ranks = ranked()
    (name, p), *_ = adapters(bert).items()
    key = name.replace(".", "/")
    sensitivity, uncertainty = (
        ranks.get_buffer(f"{kind}/{key}") for kind in ("sensitivity", "uncertainty")
    )
    for done, product in ((1, 1.0), (2, 3.0)):
        for parameter in adapters(bert).values():
            parameter.data.fill_(2.0)
            parameter.grad = torch.full_like(parameter, -product / 2)
        ranks.observe(bert, done=done)
    s1, u1 = 0.15, 0.15 * (1 - 0.15)
    s2 = 0.85 * s1 + 0.15 * 3
    u2 = 0.85 * u1 + 0.15 * (3 - s2)
    torch.testing.assert_close(sensitivity, torch.full_like(p, s2))
    torch.testing.assert_close(uncertainty, torch.full_like(p, u2))


def gradients(bert: BertModel, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for parameter in adapters(bert).values():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def train(bert: BertModel, ranks: RankBudget, steps: range, *, rate: float = 0.1) -> Iterator[int]:
    """Plain gradient descent; after each update, how many ranks are not zero."""
    for step in steps:
        gradients(bert, step)
        ranks.observe(bert, done=step + 1)
        for parameter in adapters(bert).values():
            assert parameter.grad is not None
            parameter.data -= rate * parameter.grad
        ranks.allocate(bert, done=step + 1)
        yield sum(int(p.count_nonzero()) for p in adapters(bert, "lora_E").values())


def test_ranks_fall_to_their_mean_and_stay() -> None:
    bert, ranks = ranked()
    left = list(train(bert, ranks, range(NUM_STEPS)))
    first, last = 6 * LAYERS, 4 * LAYERS
    assert left[:2] == [first] * 2
    # Cubic in between: 48 + 24 (1 - (t - 2) / 12)³ after update t, rounded down.
    assert left[2:14] == [int(24 * (1 - (t - 2) / 12) ** 3 + 48) for t in range(3, 15)]
    assert left[13:] == [last] * 7
    kept = {n: b.bool() for n, b in ranks.named_buffers() if n.startswith("kept")}
    assert sum(int(b.sum()) for b in kept.values()) == last
    assert len({int(b.sum()) for b in kept.values()}) > 1  # not the same in every layer


def weights(bert: BertModel) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in bert.state_dict().items()}


@pytest.mark.parametrize("at", [1, 7, 14, 17])
def test_a_restored_budget_goes_on_bit_by_bit(at: int) -> None:
    bert, ranks = ranked()
    list(train(bert, ranks, range(at)))
    saved = weights(bert), {name: b.clone() for name, b in ranks.state_dict().items()}
    list(train(bert, ranks, range(at, NUM_STEPS)))
    again, fresh = ranked(seed=99)
    again.load_state_dict(saved[0])
    fresh.load_state_dict(saved[1])
    list(train(again, fresh, range(at, NUM_STEPS)))
    expected, got = weights(bert), weights(again)
    assert not [name for name in expected if not torch.equal(expected[name], got[name])]


def test_the_ranks_are_those_of_peft() -> None:
    bert, ranks = ranked()
    reference = encoder()
    config = AdaLoraConfig(
        init_r=6,
        target_r=4,
        lora_alpha=8,
        target_modules=["query", "key", "value", "dense"],
        total_step=NUM_STEPS,
        tinit=2,
        tfinal=6,
    )
    tuner = AdaLoraModel(reference, config, "default")
    for one in (bert, reference):
        scatter(one)
    steps = train(bert, ranks, range(NUM_STEPS), rate=0.0)  # peft looks at weights after the update
    for step, _ in enumerate(steps):
        gradients(reference, step)
        tuner.update_and_allocate(step + 1)
    for name, value in adapters(reference).items():
        assert torch.equal(value, adapters(bert)[name]), name


def test_adalora_needs_time() -> None:
    with pytest.raises(ConfigError, match="adalora in 9 steps"):
        adapt(encoder(), "adalora", num_steps=9)


def test_without_peft_an_adapter_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'rectrain\[peft\]'"):
        adapt(encoder())
