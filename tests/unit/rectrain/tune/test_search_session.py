"""A search before it begins: what its session accepts and refuses, of a real teacher."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prepared_toy import PRICE, write_encoder, write_prepared
from untrained import write_run

from rectrain.compress import measure as measuring
from rectrain.compress import pipeline
from rectrain.compress.config import CompressConfig
from rectrain.compress.pipeline import Pipeline
from rectrain.errors import ConfigError
from rectrain.inference.backends import open_torch
from rectrain.train.config import RunConfig
from rectrain.tune import chosen, elastic, workbench
from rectrain.tune.config import SearchConfig
from rectrain.tune.objective import Standard
from rectrain.tune.runs import heads_run
from rectrain.tune.session import Session
from rectrain.tune.study import Result, write_result
from rectrain.tune.trials import Objectives, Trial, open_study
from rectrain.tune.workbench import Workbench

Opened = Callable[..., Session]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("teacher")
    write_encoder(root / "bert")
    write_prepared(root / "data", tasks={"search_ranking": PRICE, "risk": PRICE})
    model = {"encoder": str(root / "bert"), "dropout": 0, "head_width": 8}
    return write_run(root / "runs" / "large", root / "data", model=model)


@pytest.fixture
def session(teacher: Path, tmp_path: Path) -> Opened:
    def opened(**settings: Any) -> Session:
        given = {"teacher": str(teacher), "output": str(tmp_path / "tune"), **settings}
        return Session(SearchConfig.model_validate(given), say=pytest.fail)

    return opened


@pytest.mark.parametrize(
    ("stage", "balancer"),
    [(3, "static"), (3, "dwa"), (3, "uncertainty"), (2, "pcgrad"), (2, "cagrad"), (2, "upgrad")],
)
def test_a_model_that_is_trained_alone_may_be_trained_as_any_run(
    session: Opened, stage: int, balancer: str
) -> None:
    """Its heads, too, which are trained on a frozen encoder: that is not split, nor balanced."""
    found = session(way="separate", train={"zero_stage": stage, "balancer": balancer})
    assert found.check({"CPU": 2.0}) == 2
    bench = found.bench
    heads = heads_run(bench.config, bench.teacher, bench.data, root=bench.root).train
    assert (heads.freeze, heads.zero_stage, heads.balancer) == ("encoder", 2, "static")


@pytest.mark.parametrize(
    ("searched", "message"),
    [
        (
            {"train.learnin_rate": [1e-4, 5e-4]},
            r"train\.learnin_rate in space\.settings: got an unknown key.*train\.learning_rate",
        ),
        (
            {"model.sharing": ["mmoe"], "train.learning_rate": [1e-4, -1.0]},
            r"train\.learning_rate in space\.settings: got -1\.0; should be greater than 0",
        ),
        ({"model.sharing": ["mmoe", "mmoes"]}, r"model\.sharing in space\.settings: got 'mmoes'"),
        ({"train.num_steps.of": [3]}, r"train\.num_steps in space\.settings"),
        (
            {"train.balancer": ["static", "pcgrad"], "train.zero_stage": [3]},
            r"balancer=pcgrad needs zero_stage 0, 1 or 2",
        ),
        ({"train.watch": ["mean", "ris"]}, r"train\.watch: got ris; the tasks of the run are"),
    ],
)
def test_a_searched_value_that_no_run_takes_is_refused_before_the_first_trial(
    session: Opened, searched: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        session(way="separate", space={"settings": searched}).check({"CPU": 2.0})


def test_a_value_may_fit_some_of_the_others_alone(session: Opened) -> None:
    searched = {"train.zero_stage": [3, 2], "train.balancer": ["pcgrad", "static"]}
    assert session(way="separate", space={"settings": searched}).check({"CPU": 2.0}) == 2


def test_the_plan_of_a_search_that_another_driver_runs_writes_nothing(session: Opened) -> None:
    running = session(space={"layers": [1], "heads": [1, 2], "intermediate": [16, 32]})
    with running.begun():
        told, written, asked = (running.study.ask() for _ in range(3))
        assert told and written and asked
        running.study.tell(told.number, Result(error="ValueError: no"))
        write_result(running.root, written.number, Result(error="ValueError: no"))
        # What the driver has drawn half of: it is neither a question nor an answer yet.
        open_study(running.root / "study.db").ask()
        before = contents(running.root)
        assert "; 1 done" in session(space=running.config.space).plan()
        assert contents(running.root) == before


def contents(root: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.mark.parametrize("package", ["plain", "int8"])
def test_a_packaged_model_is_trained_with_what_its_trial_was(
    session: Opened, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    """But for what decides which of its parts learn, and for how long."""
    searched = {
        "model.sharing": ["shared_bottom", "mmoe"], "train.distill_weight": [0.3, 0.6],
        "train.loss_weights.risk": [1.0, 2.0], "train.num_steps": [10, 20],
        "train.zero_stage": [2, 3],
    }  # fmt: skip
    finish = {"package": package, "head_steps": 7, "num_steps": 9}
    bench = session(way="separate", space={"settings": searched}, finish=finish).bench
    last = {name: values[-1] for name, values in searched.items()}
    trial = Trial(0, {**bench.space.largest, **last}, "complete", Objectives(0.5, 1.0, 10.0))
    runs = {run.name: run for run in trained(bench, trial, monkeypatch)}
    assert runs["heads"].train.num_steps == 7 and runs["heads"].train.freeze == "encoder"
    for run in runs.values():
        assert (run.model.sharing, run.train.distill_weight) == ("mmoe", 0.6)
        assert run.train.loss_weights == {"risk": 2.0}
    if package == "int8":
        distilled = runs["distilled"].train
        assert (distilled.num_steps, distilled.zero_stage, distilled.freeze) == (9, 3, "none")


def trained(bench: Workbench, trial: Trial, monkeypatch: pytest.MonkeyPatch) -> list[RunConfig]:
    """The runs that make a model of a trial; none is run."""
    runs: list[RunConfig] = []

    class Compression(Pipeline):
        def __init__(self, config: Any, *, say: Any, model: Any, **_: Any) -> None:
            self.config, self._model = config, model
            self.teacher, self.data, self._paths = bench.teacher, bench.data, ["data"]

        def run(self) -> Any:
            runs.extend(self.training(name) for name in ("distilled", "heads"))
            raise InterruptedError

    def train(run: RunConfig, *, say: Any) -> None:
        runs.append(run)
        raise InterruptedError

    finish_with(bench, trial, monkeypatch, compression=Compression, train=train)
    return runs


def finish_with(
    bench: Workbench, trial: Trial, monkeypatch: pytest.MonkeyPatch, *, compression: Any, train: Any
) -> None:
    """Finishes a trial until the first training, which must end it by InterruptedError."""
    monkeypatch.setattr(chosen, "Pipeline", compression)
    monkeypatch.setattr(chosen, "train_run", train)
    monkeypatch.setattr(chosen, "_write_cut", lambda *_: None)
    with pytest.raises(InterruptedError):
        chosen.finish(bench, trial, say=pytest.fail)


@pytest.mark.parametrize("package", ["plain", "int8"])
def test_a_chosen_model_is_trained_where_nothing_is_timed_and_timed_alone(
    session: Opened, monkeypatch: pytest.MonkeyPatch, held: Callable[[], Any], package: str
) -> None:
    """What a compression times, too: it tells of each model on its way how fast it is."""
    steps: list[tuple[str, dict[str, str]]] = []
    bench = session(finish={"package": package}).bench
    trial = Trial(0, bench.space.largest, "complete", Objectives(0.5, 1.0, 10.0))

    class Compression:
        def __init__(self, config: Any, *, train: Any, quiet: Any, **_: Any) -> None:
            self._train, self._quiet = train, quiet

        def run(self) -> None:
            with self._quiet():
                steps.append(("timed", held()))
            self._train("a run")

    def train(run: Any, *, say: Any) -> None:
        steps.append(("trained", held()))
        raise InterruptedError

    finish_with(bench, trial, monkeypatch, compression=Compression, train=train)
    timed = ("timed", {"training": "alone", "stopwatch": "alone"})
    trained = ("trained", {"training": "with others"})
    assert steps == ([timed, trained] if package == "int8" else [trained])


def test_the_super_network_is_trained_where_nothing_is_timed(
    session: Opened, monkeypatch: pytest.MonkeyPatch, held: Callable[[], Any]
) -> None:
    steps: list[tuple[str, dict[str, str]]] = []
    bench = session().bench

    def cut(*_: Any, **__: Any) -> None:
        steps.append(("cut", held()))

    def train(*_: Any, **__: Any) -> None:
        steps.append(("trained", held()))

    monkeypatch.setattr(Workbench, "cut_encoder", cut)
    monkeypatch.setattr(elastic, "train_run", train)
    elastic.train_supernet(bench, say=lambda text: None)
    assert steps == [
        ("cut", {"stopwatch": "with others"}),
        ("trained", {"training": "with others"}),
    ]


def test_a_compression_times_its_models_in_the_context_that_it_is_given(
    session: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside, steps = [False], []
    bench = session().bench

    @contextmanager
    def quiet() -> Iterator[None]:
        inside[0] = True
        yield
        inside[0] = False

    def step(name: str, result: Any) -> Callable[..., Any]:
        def called(*_: Any, **__: Any) -> Any:
            steps.append((name, inside[0]))
            return result

        return called

    class Compression(Pipeline):
        def __init__(self) -> None:
            self.config = CompressConfig(teacher="t", output="o", split="validation")
            self.data, self._quiet, self._say = bench.data, quiet, lambda text: None

        def _small(self) -> Any:
            return bench.parts

        def _graphs(self) -> Any:
            return {"torch": {"num_bytes": 1, "files": ["none"]}}

        def _calibration(self) -> Any:
            return [[1, 2]]

        def _open_graph(self, file: str) -> Any:
            return open_torch(bench.parts.model.encoder)

    choice = SimpleNamespace(backend="torch")
    monkeypatch.setattr(pipeline, "choose", step("engines", choice))
    monkeypatch.setattr(measuring.TokenisingPredictor, "tokenised", lambda self, task, rows: rows)
    monkeypatch.setattr(measuring, "_intervals", step("judged", {}))
    monkeypatch.setattr(measuring, "_latencies", step("requests", {}))
    monkeypatch.setattr(measuring, "_throughput", step("texts", 1.0))
    Compression()._measure_small()
    assert steps == [("engines", True), ("judged", False), ("requests", True), ("texts", True)]


def test_a_standard_that_is_no_number_is_null_in_its_file_and_tells_nothing(
    session: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a task whose validation rows have one label."""
    found = {"risk": Standard("auc", trivial=0.5, teacher=math.nan, error=math.nan)}
    monkeypatch.setattr(workbench, "standards_of", lambda *_: found)
    bench = session().bench
    (standard,) = bench.standards.values()
    file = bench.root / "standards.json"
    stored = json.loads(file.read_bytes(), parse_constant=pytest.fail)
    assert stored["risk"]["teacher"] is None
    assert math.isnan(standard.teacher) and standard.trivial == 0.5 and not standard.tells
