"""Points of a search: discrete, and each a plain BERT."""

from __future__ import annotations

import itertools

import pytest
from optuna.distributions import CategoricalDistribution, IntDistribution
from transformers import BertConfig

from rectrain.errors import ConfigError
from rectrain.tune.config import SpaceConfig
from rectrain.tune.space import Space

PARENT = BertConfig(
    num_hidden_layers=6, hidden_size=384, num_attention_heads=12, intermediate_size=1536
)


def space(**values) -> Space:
    return Space.of(SpaceConfig.model_validate(values), PARENT)


def test_sizes_that_are_left_out_are_the_teachers():
    found = space(heads=[6, 4])
    assert found.values == {"layers": (6,), "heads": (4, 6), "intermediate": (1536,)}
    assert found.size == 2


def test_every_point_is_a_plain_bert_whose_heads_keep_their_size():
    found = space(layers=[1, 3], heads=[2, 6, 12], intermediate=[64, 1536])
    points = list(found.points())
    assert len(points) == found.size == 12
    for point in points:
        config = found.bert_config(point)
        assert config.hidden_size // config.num_attention_heads == 32
        assert config.num_hidden_layers == point["layers"]
        assert config.intermediate_size == point["intermediate"]
        assert config.vocab_size == PARENT.vocab_size


def test_layers_are_spread_with_the_last_among_them():
    found = space(layers=[3])
    assert found.shape(found.largest).layers == (1, 3, 5)


def test_the_same_point_of_a_smaller_encoder_is_cut_from_that():
    found = space(layers=[1, 2], heads=[4, 8], intermediate=[96, 384])
    small = found.bert_config(found.largest)
    shape = found.shape(found.smallest, of=small)
    assert (shape.layers, shape.hidden, shape.heads) == ((1,), 128, 4)
    assert found.shape(found.largest, of=small).layers == (0, 1)


def test_the_ends_of_a_space():
    found = space(layers=[3, 1], settings={"train.learning_rate": [5e-4, 1e-4]})
    assert found.smallest["layers"] == 1 and found.largest["layers"] == 3
    assert found.smallest["train.learning_rate"] == found.largest["train.learning_rate"] == 5e-4
    assert found.settings(found.largest) == {"train.learning_rate": 5e-4}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"layers": [1, 7]}, r"space.layers: got 7; the encoder has 6"),
        ({"heads": [13]}, r"heads of the shape: got 13"),
        ({"intermediate": [4000]}, r"intermediate of the shape: got 4000"),
    ],
)
def test_what_the_teacher_does_not_have_is_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        space(**values)


def test_even_gaps_are_numbers_and_others_categories():
    found = space(
        layers=[2, 4, 6], heads=[4, 6, 12], settings={"model.sharing": ["mmoe", "ple"]}
    ).distributions()
    assert found["layers"] == IntDistribution(2, 6, step=2)
    assert found["heads"] == CategoricalDistribution((4, 6, 12))
    assert found["intermediate"] == CategoricalDistribution((1536,))
    assert found["model.sharing"] == CategoricalDistribution(("mmoe", "ple"))


def test_distributions_hold_the_points_and_nothing_else():
    found = space(layers=[1, 2, 3], heads=[4, 6, 8, 12], intermediate=[96, 192, 384])
    for name, one in found.distributions().items():
        values = (
            one.choices
            if isinstance(one, CategoricalDistribution)
            else range(one.low, one.high + 1, one.step)
        )
        assert tuple(values) == found.values[name]
    assert len(set(map(str, found.points()))) == len(
        list(itertools.product(*found.values.values()))
    )
