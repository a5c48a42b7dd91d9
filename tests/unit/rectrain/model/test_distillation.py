"""Soft losses against hand-computed values; who equals the teacher has nothing to learn."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import BertConfig, BertModel

from rectrain.data.batch import MicroBatch, split_texts
from rectrain.model.config import ModelConfig
from rectrain.model.distillation import (
    relation,
    soft_bce,
    soft_in_batch,
    soft_listwise,
    soft_pairwise,
)
from rectrain.model.encoder import encode
from rectrain.model.known import TextVectors
from rectrain.model.losses import bce, listwise_softmax
from rectrain.model.multitask import Distillation, MultiTaskModel
from rectrain.tasks import TASKS

S, T = torch.tensor([0.3, -1.2, 2.0, 0.7, 0.1]), torch.tensor([1.0, -0.4, 0.6, 2.2, -3.0])
WEIGHT = torch.tensor([1.0, 3.0, 0.5, 0.0, 2.0])
OFFSETS = torch.tensor([0, 3, 5])
ROWS = dict.fromkeys(TASKS, 6) | {"recommendation": 5, "ad_ctr": 4, "risk_text": 2}


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def softmax(values: Sequence[float]) -> list[float]:
    total = sum(math.exp(value) for value in values)
    return [math.exp(value) / total for value in values]


def kl(p: Sequence[float], q: Sequence[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


def kl_bernoulli(t: float, s: float) -> float:
    return kl([sigmoid(t), sigmoid(-t)], [sigmoid(s), sigmoid(-s)])


def softened(values: Tensor, temperature: float) -> list[float]:
    return (values / temperature).tolist()


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_soft_bce_is_a_weighted_divergence_of_probabilities(temperature: float) -> None:
    got = soft_bce(S, teacher=T, weight=WEIGHT, temperature=temperature)
    pairs = zip(softened(T, temperature), softened(S, temperature), WEIGHT.tolist(), strict=True)
    expected = temperature**2 * sum(w * kl_bernoulli(t, s) for t, s, w in pairs)
    assert got.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_soft_lists_are_divergences_inside_each_list(temperature: float) -> None:
    got = soft_listwise(S, teacher=T, weight=WEIGHT, list_offsets=OFFSETS, temperature=temperature)
    expected = 0.0
    for start, end in pairwise(OFFSETS.tolist()):
        own, given = (softmax(softened(x[start:end], temperature)) for x in (S, T))
        expected += WEIGHT[start:end].mean().item() * kl(given, own)
    assert got.item() == pytest.approx(temperature**2 * expected, rel=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_soft_pairs_are_a_mean_over_the_pairs_of_each_list(temperature: float) -> None:
    offsets = torch.tensor([0, 3, 4, 5])  # a list of one row has no pair
    got = soft_pairwise(S, teacher=T, weight=WEIGHT, list_offsets=offsets, temperature=temperature)
    s, t = softened(S, temperature), softened(T, temperature)
    pairs = [kl_bernoulli(t[i] - t[j], s[i] - s[j]) for i, j in itertools.combinations(range(3), 2)]
    expected = temperature**2 * WEIGHT[:3].mean().item() * sum(pairs) / 3
    assert got.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_soft_in_batch_rows_leave_out_what_the_user_has(temperature: float) -> None:
    generator = torch.Generator().manual_seed(0)
    own, given = torch.randn(2, 3, 5, generator=generator)
    p = torch.tensor([0.2, 0.1, 0.3, 0.05, 0.15])
    bought = torch.zeros(3, 5, dtype=torch.bool)
    bought[0, 3] = True
    got = soft_in_batch(
        own,
        teacher=given,
        item_key=torch.tensor([1, 2, 3, 4, 2]),
        group_key=torch.tensor([7, 8, 7]),
        bought=bought,
        log_q=p.log(),
        num_items=10,
        weight=WEIGHT[:3],
        temperature=temperature,
    )
    log_q = [math.log((3 * share + 2 / 10) / 5) for share in p.tolist()]
    columns = [[0, 1, 4], [0, 1, 2, 3], [1, 2, 3, 4]]  # 0 and 2 are one user's, 4 is 1's item
    expected = 0.0
    for row, seen in enumerate(columns):
        rows = [
            softmax([x[row, j].item() / temperature - log_q[j] for j in seen]) for x in (given, own)
        ]
        expected += WEIGHT[row].item() * kl(*rows)
    assert got.item() == pytest.approx(temperature**2 * expected, rel=1e-5)


def test_relation_compares_who_is_near_whom_whatever_the_widths() -> None:
    own = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 2.0]])
    given = torch.tensor([[1.0, 1.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 3.0]])
    cosines = {"own": {(0, 1): 0.6, (0, 2): 0.0, (1, 2): 0.8},
               "given": {(0, 1): math.sqrt(0.5), (0, 2): 0.0, (1, 2): 0.0}}  # fmt: skip
    expected = 0.0
    for i in range(3):
        others = [j for j in range(3) if j != i]
        p, q = (
            softmax([16 * cosines[who][min(i, j), max(i, j)] for j in others])
            for who in ("given", "own")
        )
        expected += kl(p, q) / 3
    assert relation(own, teacher=given).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("num_texts", [0, 1])
def test_texts_without_another_have_no_relation(num_texts: int) -> None:
    vectors = torch.randn(num_texts, 3, requires_grad=True)
    loss = relation(vectors, teacher=torch.randn(num_texts, 5))
    loss.backward()
    assert loss.item() == 0 and vectors.grad is not None and not vectors.grad.any()


@pytest.mark.parametrize("loss", [soft_listwise, soft_pairwise])
def test_an_empty_batch_adds_nothing(loss: Callable[..., Tensor]) -> None:
    empty = torch.zeros(0)
    offsets = torch.zeros(1, dtype=torch.int64)
    got = loss(empty, teacher=empty, weight=empty, list_offsets=offsets, temperature=2.0)
    assert got.item() == 0


def test_confident_teachers_give_the_gradients_of_labels() -> None:
    """At temperature 1, a teacher that is sure of the labels teaches what the labels do."""
    label = torch.tensor([1.0, 0.0, 0.0, 1.0, 0.0])
    sure = 200 * (label - 0.5)

    def gradient(loss: Callable[[Tensor], Tensor]) -> Tensor:
        s = S.clone().requires_grad_()
        return torch.autograd.grad(loss(s), s)[0]

    of_labels = gradient(lambda s: bce(s, label=label, weight=WEIGHT))
    taught = gradient(lambda s: soft_bce(s, teacher=sure, weight=WEIGHT, temperature=1.0))
    torch.testing.assert_close(taught, of_labels)
    lists = {"weight": WEIGHT, "list_offsets": OFFSETS}
    of_labels = gradient(lambda s: listwise_softmax(s, label=label, **lists))
    taught = gradient(lambda s: soft_listwise(s, teacher=sure, temperature=1.0, **lists))
    torch.testing.assert_close(taught, of_labels)


# ── In the model ─────────────────────────────────────────────────────────────────────────────────


def teach(
    student: MultiTaskModel, teacher: MultiTaskModel, batch: MicroBatch | None = None, **more: Any
) -> None:
    """Gives a student its teacher, with the vectors of a batch's texts, if one is given."""
    teacher.requires_grad_(False).eval()
    if batch is not None:
        parts = [encode(teacher.encoder, part) for part in split_texts(batch.texts, 64)]
        teacher.freeze_encoder(TextVectors(batch.texts, torch.cat(parts)))
    settings = {"weight": 1.0, "temperature": 2.0, "relation": 1.0, "num_micro_batches": 1} | more
    student.distillation = Distillation(teacher=teacher, **settings)


def spread(model: MultiTaskModel) -> None:
    """Heads whose last layers start at zero get values: else their gradients would be zero."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.tasks.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)


@pytest.fixture
def batch(make_batch: Callable[..., MicroBatch]) -> MicroBatch:
    return make_batch(ROWS, num_negatives=4)


def test_a_student_that_equals_its_teacher_learns_nothing_of_it(
    make_model: Callable[..., MultiTaskModel], batch: MicroBatch
) -> None:
    student = make_model().train()
    spread(student)
    teach(student, copy.deepcopy(student), batch)
    loss, parts = student(batch)
    loss.backward()
    assert abs(loss.item()) < 1e-5 and all(abs(part.item()) < 1e-5 for part in parts.values())
    assert max(p.grad.abs().max().item() for p in student.parameters() if p.grad is not None) < 1e-5

    other = make_model(seed=5).train()
    teach(other, copy.deepcopy(student), batch)
    loss, parts = other(batch)
    assert loss.item() > sum(part.item() for part in parts.values()) > 0.1


def test_labels_keep_the_rest_of_each_loss(
    make_model: Callable[..., MultiTaskModel], batch: MicroBatch
) -> None:
    teacher = make_model(seed=5)
    student = make_model()
    labels, hard = student(batch)
    teach(student, teacher, batch)
    _, soft = student(batch)
    teach(student, teacher, batch, weight=0.25, relation=0.0)
    loss, both = student(batch)
    for task in both:
        torch.testing.assert_close(both[task], 0.75 * hard[task] + 0.25 * soft[task])
    torch.testing.assert_close(loss, sum(both.values()))
    teach(student, teacher, batch, weight=0.0, relation=0.0)
    torch.testing.assert_close(student(batch)[0], labels)


def test_the_relation_is_a_mean_over_the_micro_batches_of_a_step(
    make_model: Callable[..., MultiTaskModel], batch: MicroBatch
) -> None:
    teacher, student = make_model(seed=5), make_model()
    teach(student, teacher, batch, relation=0.0)
    without = student(batch)[0]
    teach(student, teacher, batch, relation=3.0, num_micro_batches=2)
    added = student(batch, scale=4.0, num_shares=7)[0] / 4.0 - without
    vectors = (encode(model.encoder, batch.texts) for model in (student, teacher))
    own, given = vectors
    torch.testing.assert_close(added, 1.5 * relation(own, teacher=given), rtol=1e-4, atol=1e-5)


def test_a_teacher_is_no_part_of_its_student(
    make_model: Callable[..., MultiTaskModel], batch: MicroBatch
) -> None:
    student = make_model().train()
    names = {*student.state_dict(), *dict(student.named_parameters())}
    teach(student, make_model(seed=5), batch)
    assert {*student.state_dict(), *dict(student.named_parameters())} == names
    student.train()
    assert student.distillation is not None and not student.distillation.teacher.training
    student(batch)[0].backward()
    assert all(p.grad is None for p in student.distillation.teacher.parameters())


def test_a_narrow_student_and_an_empty_micro_batch(
    make_model: Callable[..., MultiTaskModel], make_batch: Callable[..., MicroBatch], features: Any
) -> None:
    teacher = make_model()
    narrow = BertConfig(
        vocab_size=50, hidden_size=24, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32,
    )  # fmt: skip
    student = MultiTaskModel(
        BertModel(narrow, add_pooling_layer=False),
        tasks=TASKS,
        features=dict.fromkeys(TASKS, features),
        config=ModelConfig(encoder="tiny", dropout=0),
    )
    empty = make_batch(dict.fromkeys(TASKS, 0))
    teach(student, teacher)
    for batch in (make_batch(ROWS), empty):
        loss, _ = student(batch)
        loss.backward()
        assert loss.isfinite() and (loss.item() == 0) == (batch is empty)
    assert all(p.grad is not None for p in student.encoder.parameters())


def test_other_rows_of_the_batch_have_no_part_in_a_rows_soft_label(
    make_model: Callable[..., MultiTaskModel], make_batch: Callable[..., MicroBatch]
) -> None:
    """Two halves of a batch, divided by the whole batch's counts, sum up to the whole."""
    student, teacher = make_model(), make_model(seed=5)
    rows = dict.fromkeys(TASKS, 6) | {"recommendation": 0}
    counts = dict.fromkeys(TASKS, 6.0)
    teach(student, teacher, relation=0.0)
    whole = student(make_batch(rows, counts=counts))[1]
    first, second = (
        student(make_batch(rows, counts=counts, part=part))[1] for part in (slice(3), slice(3, 6))
    )
    for task in TASKS:
        torch.testing.assert_close(first[task] + second[task], whole[task])
