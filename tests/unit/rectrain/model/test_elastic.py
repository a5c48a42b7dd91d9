"""A super-network: its parts are ordinary BERTs, and what is drawn is a function of the seed."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from rectrain.errors import ConfigError
from rectrain.model.config import ModelConfig
from rectrain.model.elastic import Choices, Elastic, SuperNetwork, sandwich, sub_vectors
from rectrain.model.encoder import encode, load_encoder
from rectrain.model.slicing import cut, measure_importance, ordered, reorder
from rectrain.tasks import TASKS


@pytest.fixture
def bert():
    return load_encoder("tiny", vocab_size=50, dropout=0.0)


@pytest.fixture
def choices(bert):
    return Choices.of(bert.config, layers=[1], heads=[1], intermediate=[64, 200])


@pytest.fixture
def super_network(bert, choices, features):
    model = SuperNetwork(
        bert,
        tasks=TASKS,
        features=dict.fromkeys(TASKS, features),
        config=ModelConfig(encoder="tiny", dropout=0),
    )
    model.elastic = Elastic(
        choices=choices, num_random=1, weight=0.5, temperature=2.0, relation=1.0,
        num_micro_batches=1,
    )  # fmt: skip
    return model


def test_the_encoders_own_sizes_are_choices(choices):
    assert choices.layers == (1, 2) and choices.heads == (1, 2)
    assert choices.intermediate == (64, 200, 512)
    assert choices.num_shapes == 12
    assert (choices.smallest.layers, choices.smallest.hidden) == ((1,), 64)
    assert (choices.largest.layers, choices.largest.hidden) == ((0, 1), 128)


def test_a_choice_beyond_the_encoder_is_refused(bert):
    with pytest.raises(ConfigError, match=r"heads of the shape: got 3"):
        Choices.of(bert.config, heads=[3])


@pytest.mark.parametrize("num_random", [0, 1, 3])
def test_a_sandwich_is_the_smallest_and_other_shapes_without_the_largest(choices, num_random):
    for seed in range(20):
        drawn = sandwich(choices, num_random=num_random, seed=seed)
        assert drawn[0] == choices.smallest
        assert len(set(drawn)) == len(drawn) == 1 + num_random
        assert choices.largest not in drawn


def test_a_sandwich_is_a_function_of_its_seed_alone(choices):
    torch.manual_seed(1)
    first = [sandwich(choices, num_random=2, seed=seed) for seed in range(8)]
    torch.manual_seed(2)
    assert [sandwich(choices, num_random=2, seed=seed) for seed in range(8)] == first
    assert len(set(first)) > 1


def test_every_shape_is_drawn_at_some_time(choices):
    drawn = {shape for seed in range(300) for shape in sandwich(choices, num_random=1, seed=seed)}
    assert len(drawn) == choices.num_shapes - 1


def test_with_one_shape_nothing_is_drawn(bert):
    assert sandwich(Choices.of(bert.config), num_random=2, seed=0) == ()


@pytest.mark.parametrize("size", [(1, 1, 64), (1, 2, 200), (2, 1, 512), (2, 2, 512)])
def test_a_sub_network_is_the_bert_that_cut_makes(bert, choices, make_texts, size):
    texts = make_texts([2, 2, 5, 9])
    bert = reorder(bert, measure_importance(bert, [texts]))
    shape = choices.shape(layers=size[0], heads=size[1], intermediate=size[2])
    plain = cut(bert, shape=shape, importance=ordered(bert.config))
    found = sub_vectors(bert, shape, texts)
    torch.testing.assert_close(found[:, : shape.hidden], encode(plain, texts))
    assert not found[:, shape.hidden :].any()


def test_a_sub_network_learns_in_its_own_parts_alone(bert, choices, make_texts):
    sub_vectors(bert, choices.smallest, make_texts([3, 4])).square().sum().backward()
    first, last = bert.encoder.layer
    assert first.output.dense.weight.grad is None  # the last layer is what one layer keeps
    gradient = last.output.dense.weight.grad
    assert gradient[:64, :64].any() and not gradient[64:].any() and not gradient[:, 64:].any()


def test_the_loss_is_the_mean_over_the_largest_and_the_drawn(super_network, make_batch):
    batch = make_batch(dict.fromkeys(TASKS, 6))
    alone, shares = super_network(batch)
    super_network.draw(0)
    together, same = super_network(batch)
    assert torch.equal(alone, sum(shares.values())) and same == shares
    vectors = super_network.text_vectors(batch.texts)
    outputs = super_network.outputs(batch, vectors)
    subs = [
        super_network._sub_losses(shape, batch, (vectors, outputs))
        for shape in sandwich(super_network.elastic.choices, num_random=1, seed=0)
    ]
    total = alone + sum(losses.sum() + extra for losses, extra in subs)
    torch.testing.assert_close(together, total / 3)


def test_the_largest_teaches_and_does_not_learn_of_its_pupils(super_network, make_batch):
    """With soft labels alone a pupil equal to the largest has nothing to learn, nor has it."""
    batch = make_batch(dict.fromkeys(TASKS, 6))
    largest = super_network.elastic.choices.largest
    super_network.elastic = replace(
        super_network.elastic, num_random=0, weight=1.0, temperature=1.0
    )
    vectors = super_network.text_vectors(batch.texts)
    outputs = super_network.outputs(batch, vectors)
    detached = {
        task: tuple(t.detach() for t in out) if isinstance(out, tuple) else out.detach()
        for task, out in outputs.items()
    }
    losses, extra = super_network._sub_losses(largest, batch, (vectors.detach(), detached))
    assert losses.sum() + extra < 1e-5
    (losses.sum() + extra).backward()
    assert max(p.grad.abs().max() for p in super_network.parameters() if p.grad is not None) < 1e-4


def test_scores_are_the_largest_networks(super_network, make_batch, make_model):
    batch = make_batch(dict.fromkeys(TASKS, 6))
    super_network.draw(0)
    plain = make_model()
    plain.load_state_dict(super_network.state_dict())
    for task, scores in super_network(batch, mode="score").items():
        torch.testing.assert_close(scores, plain(batch, mode="score")[task])
