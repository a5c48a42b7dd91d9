"""What a search's configuration refuses, and how many trials run at a time."""

from __future__ import annotations

import pytest
from transformers import BertConfig

from rectrain.config import dump_config, load_config, parse_yaml
from rectrain.errors import ConfigError, ResourceError
from rectrain.tune.config import SearchConfig, SpaceConfig
from rectrain.tune.plan import describe_search, num_concurrent, trial_resources
from rectrain.tune.space import Space

BASE = ("--teacher=t", "--output=o")


def config(*more: str) -> SearchConfig:
    return load_config(SearchConfig, file=None, overrides=[*BASE, *more])


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--train.freeze=encoder",), r"train\.freeze is decided by the search"),
        (("--train.zero_stage=3",), r"super-network needs train\.zero_stage 0, 1 or 2"),
        (("--train.balancer=dwa",), r"by train\.loss_weights; leave out train\.balancer"),
        (("--asha",), r"asha needs way=separate and objective=mean_lift"),
        (("--asha", "--way=separate"), r"asha needs way=separate and objective=mean_lift"),
        (
            ("--asha", "--way=separate", "--objective=mean_lift"),
            r"give train\.evaluate_interval",
        ),
        (
            (
                "--asha",
                "--way=separate",
                "--objective=mean_lift",
                "--train.num_steps=9",
                "--train.evaluate_interval=9",
            ),
            r"asha goes by validations on the way; .* less than train\.num_steps",
        ),
        (("--sampler=annealing",), r"sampler"),
        (("--space.layers=[0]",), r"space\.layers"),
        (("--finish.models=[worst]",), r"finish\.models"),
        (("--way=separate", "--train.elastic_random=1"), r"has no effect with way=separate"),
        (("--finish.package=plain", "--finish.num_steps=9"), r"finish\.num_steps"),
        (("--price.currency=euro",), r"price\.currency"),
    ],
)
def test_a_mistake_is_one_line(more, message):
    with pytest.raises(ConfigError, match=message):
        config(*more)


def test_settings_are_searched_in_separate_trials_alone(tmp_path):
    file = tmp_path / "tune.yaml"
    file.write_text("space: {settings: {train.learning_rate: [1.0e-4, 5.0e-4]}}")
    with pytest.raises(ConfigError, match=r"space\.settings are of way=separate"):
        load_config(SearchConfig, file=str(file), overrides=BASE)
    found = load_config(SearchConfig, file=str(file), overrides=[*BASE, "--way=separate"])
    assert found.space.settings == {"train.learning_rate": (1e-4, 5e-4)}


@pytest.mark.parametrize(
    ("name", "more", "message"),
    [
        ("data.seed", (), r"space\.settings\.data\.seed must be train"),
        ("train.freeze", (), r"space\.settings\.train\.freeze is decided by the search"),
        ("train.teacher", (), r"is decided by the search"),
        ("model.encoder", (), r"is decided by the search"),
        ("train.num_workers", (), r"is one for all trials"),
        (
            "train.num_steps",
            ("--asha", "--objective=mean_lift", "--train.evaluate_interval=9"),
            r"is one for all trials",
        ),
    ],
)
def test_what_the_search_decides_is_not_searched(tmp_path, name, more, message):
    file = tmp_path / "tune.yaml"
    file.write_text(f"space: {{settings: {{{name}: [1, 2]}}}}")
    with pytest.raises(ConfigError, match=message):
        load_config(SearchConfig, file=str(file), overrides=[*BASE, "--way=separate", *more])


def test_a_search_goes_through_a_file(tmp_path):
    found = config("--space.layers=[1,2]", "--limits.p99_ms=20", "--reference=[0,1,50]")
    assert parse_yaml(SearchConfig, dump_config(found).encode(), name="f") == found


@pytest.mark.parametrize(
    ("more", "have", "expected"),
    [
        ((), {"CPU": 2.0}, 2),
        (("--threads_per_trial=2",), {"CPU": 3.0}, 1),
        (("--max_concurrent=3",), {"CPU": 8.0}, 3),
        (("--way=separate", "--train.num_workers=2"), {"CPU": 2.0}, 1),
        (("--way=separate", "--train.num_workers=2"), {"CPU": 7.0}, 3),
        (("--way=separate", "--train.num_workers=2"), {"CPU": 16.0, "GPU": 4.0}, 2),
    ],
)
def test_as_many_trials_at_a_time_as_their_workers_fit(more, have, expected):
    assert num_concurrent(config(*more), have) == expected


def test_a_trial_that_could_only_wait_is_refused():
    with pytest.raises(ResourceError, match=r"a trial: got 4 CPUs.*has 2 CPUs"):
        num_concurrent(config("--way=separate", "--train.num_workers=4"), {"CPU": 2.0})


def test_a_separate_trial_holds_no_cpu_that_its_workers_wait_for():
    assert trial_resources(config("--way=separate")).get("CPU", 0) == 0
    assert trial_resources(config("--threads_per_trial=2")) == {"CPU": 2.0}


def test_the_plan_says_how_large_the_space_is():
    parent = BertConfig(
        num_hidden_layers=4, hidden_size=64, num_attention_heads=4, intermediate_size=128
    )
    space = Space.of(SpaceConfig(layers=(1, 4), heads=(2, 4)), parent)
    text = describe_search(config("--limits.p99_ms=20"), space, num_finished=3)
    assert "space: 4 points; layers 1, 4; heads 2, 4; intermediate 128" in text
    assert "1 layers of 32, 2 heads" in text and "4 layers of 64, 4 heads" in text
    assert "3 done" in text and "p99_ms ≤ 20" in text
