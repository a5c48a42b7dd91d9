"""Closed forms against torch's own counter and real memory."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from prepared_toy import PRICE, write_prepared
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertConfig, BertModel

from rectrain.cost.flops import (
    Rows,
    Work,
    complexity,
    encoder_flops,
    encoder_parameters,
    forward_flops,
    run_flops,
    training_flops,
    weight_bytes,
    work_of,
)
from rectrain.model.adapters import add_adapters
from rectrain.model.encoder import encode, load_encoder
from rectrain.train.build import new_model, open_data
from rectrain.train.config import RunConfig
from rectrain.train.run_plan import plan_run
from rectrain.train.zero import state_bytes

ROWS = {"recommendation": 7, "search_ranking": 9, "ad_ctr": 5, "risk": 4}
SHARINGS = ["shared_bottom", "gated_experts", "mmoe", "ple"]


def counted(call) -> int:
    """By torch, with attention as plain products: its counter knows no fused one of the CPU."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


@pytest.mark.parametrize("lengths", [[1], [3, 3, 7], [2, 5, 5, 31, 64]])
def test_the_encoder_on_ragged_texts(lengths, make_texts):
    bert = load_encoder("tiny", vocab_size=50)
    texts = make_texts(lengths)
    with torch.no_grad():
        assert encoder_flops(bert.config, lengths) == counted(lambda: encode(bert, texts))


def test_the_worked_numbers_of_one_text():
    # 2 layers; per token 8·128² + 4·128·512 = 393,216; pairs 4·3²·128 = 4,608
    bert = load_encoder("tiny", vocab_size=50).config
    assert encoder_flops(bert, [3]) == 2 * (3 * 393_216 + 4_608)
    assert complexity(bert, [3]) == pytest.approx(2 * (3 * 393_216 + 4_608) / 3 * 1000 / 1e9)


@pytest.mark.parametrize("sharing", SHARINGS)
@pytest.mark.parametrize("num_negatives", [0, 5])
def test_a_forward_for_a_loss(sharing, num_negatives, make_model, make_batch):
    rows = {**dict.fromkeys(make_model().task_names, 3), **ROWS}
    model, batch = make_model(sharing=sharing), make_batch(rows, num_negatives=num_negatives)
    with torch.no_grad():
        real = counted(lambda: model(batch))
    assert forward_flops(model, work_of(batch), with_loss=True).total == real


def test_a_forward_for_scores(make_model, make_batch):
    rows = {**dict.fromkeys(make_model().task_names, 3), **ROWS}
    model, batch = make_model(), make_batch(rows)
    with torch.no_grad():
        real = counted(lambda: model(batch, mode="score"))
    assert forward_flops(model, work_of(batch)).total == real


@pytest.mark.parametrize("sharing", SHARINGS)
def test_a_forward_and_a_backward_pass(sharing, make_model, make_batch):
    rows = {**dict.fromkeys(make_model().task_names, 30), **ROWS}
    model, batch = make_model(sharing=sharing), make_batch(rows, num_negatives=5)
    real = counted(lambda: model(batch)[0].backward())
    # The gradient of features' inputs is counted and not made: a little too much.
    assert 0.99 * training_flops(model, work_of(batch)).total < real
    assert real <= training_flops(model, work_of(batch)).total


def test_activation_checkpointing_adds_a_forward_of_the_encoder(make_model, make_batch):
    rows = {**dict.fromkeys(make_model().task_names, 3), **ROWS}
    batch = make_batch(rows)
    model = make_model(activation_checkpointing=True).train()
    real = counted(lambda: model(batch)[0].backward())
    assert training_flops(model, work_of(batch)).total == pytest.approx(real, rel=0.01)


def test_adapters_leave_the_gradients_of_weights_out(make_model, make_batch):
    pytest.importorskip("peft")
    rows = {**dict.fromkeys(make_model().task_names, 3), **ROWS}
    model, batch = make_model(), make_batch(rows)
    whole = training_flops(model, work_of(batch)).encoder
    add_adapters(
        model.encoder, kind="lora", rank=4, alpha=8, dropout=0.0,
        targets=("query", "key", "value"), seed=0, num_steps=None,
    )  # fmt: skip
    real = counted(lambda: model(batch)[0].backward())
    found = training_flops(model, work_of(batch))
    assert 0.6 * whole < found.encoder < 0.8 * whole
    # The first layer's inputs have no gradient: three products and their adapters' less.
    spare = 3 * 2 * (128**2 + 4 * 128) * work_of(batch).num_tokens
    assert found.total - spare == pytest.approx(real, rel=0.01)


def test_a_frozen_encoder_takes_nothing_in_a_step(make_model, make_batch):
    rows = {**dict.fromkeys(make_model().task_names, 3), **ROWS}
    model, batch = make_model(), make_batch(rows)
    model.encoder.requires_grad_(False)
    assert training_flops(model, work_of(batch)).encoder == 0


def test_no_rows_take_nothing(make_model):
    model = make_model()
    rows = dict.fromkeys(model.task_names, Rows(0, 0))
    assert forward_flops(model, Work(np.array([], np.int64), rows)).total == 0


@pytest.mark.parametrize(
    "sizes",
    [
        {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 77},
        {"intermediate_size": 100, "max_position_embeddings": 33, "num_hidden_layers": 1},
    ],
)
def test_parameters_and_bytes_of_an_encoder(sizes):
    config = BertConfig(**sizes)
    bert = BertModel(config, add_pooling_layer=False)
    assert encoder_parameters(config) == bert.num_parameters()
    real = sum(parameter.nbytes for parameter in bert.parameters())
    assert weight_bytes(encoder_parameters(config)) == real
    assert weight_bytes(encoder_parameters(config), bits=8) == real // 4


def test_bytes_of_training_state_are_those_that_adamw_holds():
    config = BertConfig(hidden_size=48, num_hidden_layers=2, num_attention_heads=4, vocab_size=77)
    bert = BertModel(config, add_pooling_layer=False)
    optimizer = torch.optim.AdamW(bert.parameters())
    bert(torch.ones(1, 4, dtype=torch.int64)).last_hidden_state.sum().backward()
    for parameter in bert.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    optimizer.step()
    held = state_bytes(encoder_parameters(config), zero_stage=0, world_size=1)
    moments = [t for state in optimizer.state.values() for t in state.values() if t.ndim]
    assert held["optimizer"] == sum(tensor.nbytes for tensor in moments)
    assert held["gradients"] == sum(p.grad.nbytes for p in bert.parameters())
    assert held["weights"] == sum(p.nbytes for p in bert.parameters())


def test_a_run_is_the_sum_of_its_steps(tmp_path):
    data = write_prepared(tmp_path / "data", tasks={"risk": PRICE, "ad_ctr": PRICE})
    config = RunConfig.model_validate(
        {"data": {"paths": [str(data)], "tokens_per_micro_batch": 20},
         "model": {"encoder": "tiny"}, "train": {"num_steps": 12}}
    )  # fmt: skip
    prepared = open_data(config)
    model, run = new_model(config, prepared), plan_run(config, prepared)
    whole = run_flops(prepared, model=model, run=run, sampled_steps=12)
    sampled = run_flops(prepared, model=model, run=run, sampled_steps=6)
    assert whole.before == 0 and whole.total == whole.steps > 0
    assert sampled.total == pytest.approx(whole.total, rel=0.25)
    # 6 FLOPs a weight and token, of the encoder's matrices alone: the lower bound of Kaplan et al.
    assert whole.steps > 6 * 2 * 12 * 128**2 * whole.tokens
