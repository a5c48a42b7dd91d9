from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from rectrain.data.batch import MicroBatch, TextLists
from rectrain.data.fields import Field, FieldTable
from rectrain.model.losses import bce, in_batch_softmax, listwise_softmax, pairwise_logistic
from rectrain.model.multitask import MultiTaskModel
from rectrain.model.objectives import _in_query
from rectrain.model.spec import TaskSpec
from rectrain.tasks import TASKS

MakeModel = Callable[..., MultiTaskModel]
MakeBatch = Callable[..., MicroBatch]

_FULL = {
    "recommendation": 7,
    "search_ranking": 9,
    "ad_ctr": 5,
    "risk": 4,
    "ad_headline": 9,
    "risk_text": 3,
}
_NONE = dict.fromkeys(TASKS, 0)
_PART = {**_NONE, "search_ranking": 6, "risk": 1}


def _gradients(model: MultiTaskModel) -> dict[str, torch.Tensor]:
    found = {name: p.grad for name, p in model.named_parameters()}
    assert all(gradient is not None for gradient in found.values())
    return {name: gradient.clone() for name, gradient in found.items() if gradient is not None}


@pytest.mark.parametrize("sharing", ["shared_bottom", "gated_experts", "mmoe", "ple"])
@pytest.mark.parametrize("balancer", ["static", "uncertainty"])
@pytest.mark.parametrize("rows", [_FULL, _PART, _NONE], ids=["full", "part", "none"])
@pytest.mark.parametrize("num_negatives", [0, 5])
def test_every_parameter_gets_a_finite_gradient_whatever_the_slots_hold(
    rows: dict[str, int],
    num_negatives: int,
    sharing: str,
    balancer: str,
    make_model: MakeModel,
    make_batch: MakeBatch,
) -> None:
    model = make_model(sharing=sharing, balancer=balancer)
    loss, shares = model(make_batch(rows, num_negatives=num_negatives))
    loss.backward()
    for name, gradient in _gradients(model).items():
        assert gradient.isfinite().all(), name
        for task, num in rows.items():
            if num == 0 and name.startswith((f"tasks.{task}.", f"sharing.gates.{task}.")):
                assert not gradient.any(), name
    assert {task for task, share in shares.items() if share != 0} == {t for t in rows if rows[t]}


@pytest.mark.parametrize("sharing", ["gated_experts", "mmoe", "ple"])
@pytest.mark.parametrize("mode", ["loss", "score", "embed"])
def test_modules_are_called_once_and_in_one_order_whatever_the_slots_hold(
    mode: str, sharing: str, make_model: MakeModel, make_batch: MakeBatch
) -> None:
    model = make_model(sharing=sharing, balancer="uncertainty")
    calls: list[str] = []
    for name, module in model.named_modules():
        if next(module.parameters(recurse=False), None) is not None:
            module.register_forward_hook(lambda *_, name=name: calls.append(name))  # type: ignore[misc]
    orders = []
    for rows in (_FULL, _PART, _NONE):
        calls.clear()
        model(make_batch(rows, num_negatives=3), mode=mode)
        orders.append(list(calls))
    assert orders[0] == orders[1] == orders[2]
    owners = {name.rpartition(".")[0] for name, _ in model.named_parameters()}
    assert sorted(orders[0]) == sorted(owners - ({"balancer"} if mode != "loss" else set()))


@pytest.mark.parametrize("balancer", ["static", "uncertainty"])
def test_micro_batches_of_two_ranks_sum_to_plain_losses_over_the_step(
    balancer: str, make_model: MakeModel, make_batch: MakeBatch
) -> None:
    counts = {
        "recommendation": 10.0,
        "search_ranking": 5.0,
        "ad_ctr": 9.0,
        "risk": 6.0,
        "ad_headline": 4.0,
        "risk_text": 2.0,
    }
    parts = [
        make_batch(rows, seed=seed, counts=counts)
        for seed, rows in enumerate(
            [
                {**_NONE, "recommendation": 6, "search_ranking": 9, "ad_ctr": 4, "ad_headline": 6},
                {**_FULL, "recommendation": 4, "search_ranking": 6, "ad_headline": 6, "risk": 6},
            ]
        )
    ]
    model = make_model(balancer=balancer)
    losses, shares = zip(*(model(part, num_shares=2, scale=2.0) for part in parts), strict=True)
    # The whole step at once, by the loss functions on the scores.
    total = {}
    for place, task in enumerate(TASKS):
        total[task] = torch.zeros(())
        for part in parts:
            slot = part.slots[place]
            if task == "recommendation":
                queries, items = model(part, mode="embed")[task]
                loss = in_batch_softmax(
                    queries @ items.T,
                    item_key=slot.item_key,
                    group_key=slot.group_key,
                    bought=torch.zeros(len(queries), len(items), dtype=torch.bool),
                    log_q=slot.log_q,
                    num_items=slot.num_items,
                    weight=slot.weight,
                )
                total[task] += loss / counts[task]
            else:
                score = model(part, mode="score")[task]
                rows = {"label": slot.label, "weight": slot.weight}
                if task == "search_ranking":
                    loss = listwise_softmax(score, list_offsets=slot.list_offsets, **rows)
                elif task == "ad_headline":
                    loss = pairwise_logistic(score, list_offsets=slot.list_offsets, **rows)
                else:
                    loss = bce(score, **rows)
                total[task] += loss / counts[task]
    for task in TASKS:
        torch.testing.assert_close(sum(share[task] for share in shares), total[task].detach())
    expected = model.balancer(torch.stack(list(total.values())), num_shares=1)
    torch.testing.assert_close(sum(losses), 2 * expected)


@pytest.mark.parametrize("balancer", ["static", "uncertainty"])
def test_rows_split_over_two_ranks_sum_to_the_gradient_of_one_micro_batch(
    balancer: str, make_model: MakeModel, make_batch: MakeBatch
) -> None:
    # Lists are kept whole, and in-batch negatives belong to their micro-batch.
    rows = {"search_ranking": 9, "ad_ctr": 9, "risk": 9, "ad_headline": 9}
    specs = {task: TASKS[task] for task in rows}
    counts = {"search_ranking": 3.0, "ad_ctr": 9.0, "risk": 9.0, "ad_headline": 3.0}
    model = make_model(specs=specs, balancer=balancer, sharing="gated_experts")
    model(make_batch(rows, counts=counts))[0].backward()
    whole = _gradients(model)
    model.zero_grad()
    for part in (slice(0, 6), slice(6, 9)):
        model(make_batch(rows, counts=counts, part=part), num_shares=2)[0].backward()
    for name, gradient in _gradients(model).items():
        torch.testing.assert_close(gradient, whole[name], rtol=1e-4, atol=1e-6, msg=name)


def test_scores_of_two_tower_are_the_inner_products_of_its_vectors(
    make_model: MakeModel, make_batch: MakeBatch
) -> None:
    model, batch = make_model().eval(), make_batch(_FULL)
    scores, vectors = model(batch, mode="score"), model(batch, mode="embed")
    assert {task: len(score) for task, score in scores.items()} == _FULL
    assert set(vectors) == {"recommendation"}
    queries, items = vectors["recommendation"]
    torch.testing.assert_close((queries * items).sum(1), scores["recommendation"])


def test_negatives_change_the_loss_of_their_task_alone(
    make_model: MakeModel, make_batch: MakeBatch
) -> None:
    model = make_model(sharing="gated_experts").eval()
    without, batch = make_batch(_FULL), make_batch(_FULL, num_negatives=6)
    assert batch.num_tokens > without.num_tokens
    for mode in ("loss", "score"):
        few, many = (model(b, mode=mode) for b in (without, batch))
        if mode == "loss":
            few, many = few[1], many[1]
            assert few.pop("recommendation") < many.pop("recommendation")
        for task, value in few.items():
            torch.testing.assert_close(many[task], value, msg=task)
    assert model(batch, mode="embed")["recommendation"][1].shape[0] == 7 + 6


def test_items_whose_text_stands_in_the_history_are_no_negatives(
    make_model: MakeModel, make_batch: MakeBatch
) -> None:
    batch = make_batch({"recommendation": 6}, num_negatives=4)
    slot = batch.slots[0]
    history = [
        slot.query.index[start:end].tolist() for start, end in pairwise(slot.query.offsets.tolist())
    ]
    first, second, *_ = (row for row in range(6) if history[row])
    index = slot.item.index.clone()
    index[[second, 7]] = torch.tensor([history[first][-1], history[second][0]])
    slot = replace(
        slot,
        item=replace(slot.item, index=index),
        item_key=torch.arange(10),
        group_key=torch.arange(6),
    )
    expected = [[text in texts for text in index.tolist()] for texts in history]
    assert _in_query(slot).tolist() == expected and expected[first][second] and expected[second][7]

    model = make_model(specs={"recommendation": TASKS["recommendation"]}).eval()

    def loss(row: int, log_q: torch.Tensor) -> float:
        only = replace(slot, weight=torch.eye(6)[row], log_q=log_q)
        return model(replace(batch, slots=(only,)))[0].item()

    popular = slot.log_q.clone()
    popular[7] -= 1  # moves the losses of the rows whose negative it is
    moved = [loss(row, popular) != loss(row, slot.log_q) for row in range(6)]
    assert moved == [not row[7] for row in expected]


class _Largest(TorchDispatchMode):
    """Numbers in the largest tensor that is made."""

    numbers = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None):
        made = function(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor):
            self.numbers = max(self.numbers, made.numel())
        return made


def test_long_histories_are_looked_through_without_a_column_an_item(make_batch: MakeBatch) -> None:
    (slot,) = make_batch({"recommendation": 40}, specs=TASKS).slots
    texts = torch.arange(50).repeat(40 * 4)  # 200 of each row, 50 different ones
    slot = replace(slot, query=TextLists(texts, torch.arange(0, 8001, 200)))
    with _Largest() as largest:
        found = _in_query(slot)
    assert found.shape == (40, 40)
    assert largest.numbers < 2 * len(texts)  # and not 8,000 × 40


def test_a_score_does_not_depend_on_the_other_rows(
    make_model: MakeModel, make_batch: MakeBatch
) -> None:
    model, batch = make_model().eval(), make_batch(_FULL)
    lone = {**_NONE, "risk": _FULL["risk"]}  # the same risk rows, whose seed is their place
    found = model(make_batch(lone), mode="score")["risk"]
    torch.testing.assert_close(found, model(batch, mode="score")["risk"])


def test_a_text_that_stands_twice_collects_both_gradients(
    make_model: MakeModel, make_batch: MakeBatch
) -> None:
    model = make_model(specs={"risk": TASKS["risk"]})
    batch = make_batch({"risk": 2}, seed=3)
    slot = batch.slots[0]
    index = torch.zeros_like(slot.item.index)
    shared = replace(batch, slots=(replace(slot, item=replace(slot.item, index=index)),))
    assert shared.texts.lengths.shape[0] == 2
    model(shared)[0].backward()
    gradient = model.encoder.embeddings.word_embeddings.weight.grad
    first = batch.texts.input_ids[: int(batch.texts.lengths[0])]
    assert gradient is not None
    assert set(gradient.abs().sum(1).nonzero().flatten().tolist()) <= set(first.tolist())


def test_weights_are_seeded_and_bf16_gives_finite_fp32_losses(
    make_model: MakeModel, make_batch: MakeBatch
) -> None:
    one, same, other = (make_model(seed=seed) for seed in (0, 0, 1))
    weights = [model.tasks["risk"].head.logit.deep[0].weight for model in (one, same, other)]  # type: ignore[union-attr, index]
    assert torch.equal(weights[0], weights[1])  # type: ignore[arg-type]
    assert not torch.equal(weights[0], weights[2])  # type: ignore[arg-type]
    loss, _ = one.bfloat16()(make_batch(_FULL))
    loss.backward()
    assert loss.dtype == torch.float32
    assert all(gradient.isfinite().all() for gradient in _gradients(one).values())


def test_a_new_task_is_one_spec(make_model: MakeModel, make_batch: MakeBatch) -> None:
    fields = (
        Field("ticket_id", "group", required=True),
        Field("message", "text", required=True),
        Field("label", "label", required=True, low=0, high=1),
    )
    intent = TaskSpec(
        name="intent",
        fields=FieldTable("intent", 1, fields),
        query=(),
        item=("message",),
        head="single",
        loss="bce",
        metrics=("auc",),
        primary="auc",
    )
    specs = {**TASKS, "intent": intent}
    model = make_model(specs=specs, balancer="uncertainty", sharing="gated_experts")
    batch = make_batch({**_FULL, "intent": 8}, specs=specs)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(15):
        optimizer.zero_grad()
        loss, shares = model(batch)
        loss.backward()
        optimizer.step()
        losses.append(float(shares["intent"]))
    assert losses[-1] < 0.5 * losses[0]
    assert model(batch, mode="score")["intent"].shape == (8,)


@pytest.mark.parametrize("sharing", ["shared_bottom", "gated_experts", "mmoe", "ple"])
def test_a_task_alone_scores_as_it_does_beside_the_others(
    sharing: str, make_model: MakeModel, make_batch: MakeBatch
) -> None:
    model, batch = make_model(sharing=sharing).eval(), make_batch(_FULL)
    together = model(batch, mode="score")
    for slot in batch.slots:
        alone = model(replace(batch, slots=(slot,)), mode="score")
        assert set(alone) == {slot.task}
        torch.testing.assert_close(alone[slot.task], together[slot.task], rtol=0, atol=1e-5)
    with pytest.raises(AssertionError, match="one slot a task"):
        model(replace(batch, slots=batch.slots[:1]))
