"""Configuration: the command line over the file over the defaults; a mistake is one line."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, ValidationError, model_validator

from rectrain.config import Section, dump_config, help_text, load_config
from rectrain.errors import ConfigError


class Data(Section):
    paths: tuple[str, ...] = Field((), description="prepared directories")


class Train(Section):
    zero_stage: Literal[0, 1, 2, 3] = Field(2, description="what is split")
    num_workers: int | tuple[int, int] = 1
    learning_rate: float = Field(1e-4, gt=0)
    loss_weights: dict[str, float] = Field(default_factory=dict)
    tasks: tuple[str, ...] | None = None
    offload: Literal["none", "all"] = "none"
    resume: bool = False
    steps: int | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Train:
        if self.offload == "all" and self.zero_stage == 0:
            raise ValueError("offload needs zero_stage 1, 2 or 3")
        if self.steps == 13:
            raise ConfigError(what="steps", got=13, rule="is unlucky", fix="take 14")
        return self


class Run(Section):
    name: str = "demo"
    seed: int = 0
    data: Data = Data()
    train: Train = Train()


def load(*overrides: str, file: Path | None = None) -> Run:
    return load_config(Run, file=str(file) if file else None, overrides=overrides)


@pytest.fixture
def write(tmp_path):
    def write_text(text: str) -> Path:
        file = tmp_path / "run.yaml"
        file.write_text(text, encoding="utf-8")
        return file

    return write_text


def test_the_command_line_goes_over_the_file_over_the_defaults(write):
    file = write("name: mine\ntrain: {zero_stage: 1, learning_rate: 1e-3}\n")
    config = load("--train.zero_stage=3", file=file)
    assert config == Run(name="mine", train=Train(zero_stage=3, learning_rate=1e-3))


def test_the_environment_and_a_dotenv_file_change_nothing(monkeypatch, tmp_path):
    for name in ("SEED", "seed", "CONFIG", "RUN_SEED"):
        monkeypatch.setenv(name, "7")
    (tmp_path / ".env").write_text("SEED=7\nconfig__seed=7\n")
    monkeypatch.chdir(tmp_path)
    assert load() == Run()


@pytest.mark.parametrize(
    ("arguments", "changed"),
    [
        (["--train.zero_stage", "3"], {"zero_stage": 3}),
        (["--train.num_workers=2"], {"num_workers": 2}),
        (["--train.num_workers=[1,2]"], {"num_workers": (1, 2)}),
        (["--train.num_workers=1,2"], {"num_workers": (1, 2)}),
        (["--train.learning_rate=1e-5"], {"learning_rate": 1e-5}),
        (["--train.loss_weights.risk=2"], {"loss_weights": {"risk": 2.0}}),
        (["--train.loss_weights={risk: 2}", "--train.loss_weights.ad_ctr=1"],
         {"loss_weights": {"risk": 2.0, "ad_ctr": 1.0}}),
        (["--train.tasks=risk"], {"tasks": ("risk",)}),
        (["--train.tasks=risk,ad_ctr"], {"tasks": ("risk", "ad_ctr")}),
        (["--train.tasks=risk", "--train.tasks=None"], {"tasks": None}),
        (["--train.steps=null"], {"steps": None}),
        (["--train.resume"], {"resume": True}),
        (["--train.resume", "false"], {"resume": False}),
        (["--train.resume", "--train.steps=3"], {"resume": True, "steps": 3}),
        (["--train.zero_stage=1", "--train.zero_stage=0"], {"zero_stage": 0}),
    ],
)  # fmt: skip
def test_a_value_is_read_as_its_key_asks(arguments, changed):
    assert load(*arguments) == Run(train=Train(**changed))


def test_text_stays_text_whatever_it_looks_like():
    assert load("--name=2024").name == "2024"
    assert load("--name=a,b: [c").name == "a,b: [c"
    assert load("--name=None").name == "None"
    assert load("--data.paths=*.parquet,a: #b,[x").data.paths == ("*.parquet", "a: #b", "[x")
    assert load("--data.paths=['a,b', 1e3]").data.paths == ("a,b", "1e3")
    assert load("--data.paths=007,yes").data.paths == ("007", "yes")


def test_a_dictionary_on_the_command_line_keeps_the_files_other_keys(write):
    file = write("train: {loss_weights: {risk: 1, ad_ctr: 3}}")
    config = load("--train.loss_weights.risk=2", file=file)
    assert config.train.loss_weights == {"risk": 2.0, "ad_ctr": 3.0}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--train.zero_stage=7"],
         "train.zero_stage on the command line: got 7; should be 0, 1, 2 or 3; "
         "fix: set train.zero_stage as 0|1|2|3, see --help"),
        (["--train.zero_stge=2"], "got an unknown key; every key must be known; "
         "fix: did you mean train.zero_stage?"),
        (["--zero_stage=2"], "fix: did you mean train.zero_stage?"),
        (["--trian.offload=all"], "fix: did you mean train.offload?"),
        (["--quite=other"], "fix: see --help for the keys"),
        (["--name.x=3"], "name.x on the command line: got an unknown key"),
        (["--train=3"], "train on the command line: got 3; is a section with the keys zero_stage"),
        (["--train.num_workers=x"], "got 'x'; should be a valid integer"),
        (["--train.num_workers=1,x"], "got [1, 'x']; should be a valid integer"),
        (["--train.num_workers=1,2,3"], "fix: set train.num_workers as int|tuple[int,int]"),
        (["--train.num_workers=[1"], "fix: check brackets and quotes"),
        (["--train.learning_rate=-1"], "got -1; should be greater than 0"),
        (["--train.learning_rate=nan"], "should be a finite number"),
        (["--train.learning_rate=.inf"], "should be a finite number"),
        (["--train.loss_weights.risk=x"], "train.loss_weights.risk on the command line: got 'x'"),
        (["--train.offload=None"], "got 'None'; should be 'none' or 'all'"),
        (["--train.steps"], "got no value; needs one; fix: write --train.steps=VALUE"),
        (["--train.steps", "--name=x"], "--train.steps: got no value"),
        (["--train.steps="], "train.steps on the command line: got ''"),
        (["stray"], "command line: got stray; takes --section.key=value"),
        (["--train.zero_stage=9", "--seed=x"], "train.zero_stage must be mended too"),
        (["--train.offload=all", "--train.zero_stage=0"], "offload needs zero_stage 1, 2 or 3"),
        (["--train.steps=13"], "steps: got 13; is unlucky; fix: take 14"),
    ],
)  # fmt: skip
def test_a_mistake_on_the_command_line_is_one_line_with_its_fix(arguments, message):
    with pytest.raises(ConfigError) as raised:
        load(*arguments)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: {zero_stage: 7}", "run.yaml: got 7; should be 0, 1, 2 or 3"),
        ("train: {zero_stge: 2}", "fix: did you mean train.zero_stage?"),
        ("sed: 3", "fix: did you mean seed?"),
        ("train:\n", "run.yaml: got None; is a section with the keys zero_stage"),
        ("train: 3", "run.yaml: got 3; is a section"),
        ("seed: 1\nseed: 2", "the key 'seed' stands twice"),
        ("train:\n  steps: 1\n  steps: 2", "the key 'steps' stands twice"),
        ("x: [", "must be valid YAML"),
        ("- 1", "got a list at the top"),
        ("1: 2", "must hold `key: value` lines with text keys"),
        ("data: {paths: a}", "data.paths in"),
        ("name: !!python/object/apply:os.getcwd []", "must be valid YAML"),
    ],
)
def test_a_mistake_in_the_file_names_the_file(write, text, message):
    with pytest.raises(ConfigError) as raised:
        load(file=write(text))
    assert message in str(raised.value)
    assert "run.yaml" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    for file in (tmp_path / "missing.yaml", tmp_path, tmp_path / "bytes.yaml"):
        with pytest.raises(
            ConfigError, match=r"must be a readable file|must be valid YAML in UTF-8"
        ):
            load(file=file)


def test_a_required_key_is_asked_for():
    class Prepare(Section):
        output: str

    class Whole(Section):
        prepare: Prepare

    with pytest.raises(ConfigError, match=r"is required; fix: add --prepare\.output=VALUE"):
        load_config(Whole, file=None, overrides=[])
    with pytest.raises(ConfigError, match=r"output: got nothing; .* --output=VALUE"):
        load_config(Prepare, file=None, overrides=[])


def test_a_section_is_frozen():
    with pytest.raises(ValidationError, match="frozen"):
        Run().seed = 3  # type: ignore[misc]


def test_an_empty_file_is_the_defaults(write):
    assert load(file=write("# nothing yet\n")) == Run()


TEXT = st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=12)


@given(
    name=TEXT,
    paths=st.lists(TEXT, max_size=3),
    rate=st.floats(min_value=1e-300, allow_infinity=False),
    weights=st.dictionaries(TEXT, st.floats(allow_nan=False, allow_infinity=False), max_size=3),
    tasks=st.none() | st.lists(TEXT, max_size=2),
)
def test_dump_reads_back_equal(tmp_path_factory, name, paths, rate, weights, tasks):
    config = Run(
        name=name,
        data=Data(paths=tuple(paths)),
        train=Train(
            learning_rate=rate,
            loss_weights=weights,
            num_workers=(1, 2),
            tasks=None if tasks is None else tuple(tasks),
        ),
    )
    file = tmp_path_factory.getbasetemp() / "dumped.yaml"
    file.write_text(dump_config(config), encoding="utf-8")
    assert load(file=file) == config


def test_help_is_a_table_of_every_key():
    lines = help_text(Run).splitlines()
    assert [line.split()[0] for line in lines[:4]] == [
        "--name", "--seed", "--data.paths", "--train.zero_stage",
    ]  # fmt: skip
    assert lines[3].split(maxsplit=3) == ["--train.zero_stage", "0|1|2|3", "2", "what is split"]
    assert "tuple[text,…]|null" in help_text(Run)
    assert "false" in help_text(Run) and "False" not in help_text(Run)
