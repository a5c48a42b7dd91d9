"""jobs.cost: from two packages to a report, and its mistakes as one line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from packaged_toy import toy_parts
from served_toy import CARD, TASKS, doubtful_policy

from jobs import cost
from jobs.cli import exit_status
from rectrain.cascade import POLICY
from rectrain.cost.ledger import Ledger
from rectrain.cost.overhead import Overhead
from rectrain.cost.prices import load_prices
from rectrain.cost.serving import Served
from rectrain.errors import ConfigError
from rectrain.metrics import Interval
from rectrain.package import Card, Package, update_package, write_package
from rectrain.train.usage import Usage
from serve.costs import read_costs
from serve.schemas import Answer, Item, Versions

SPEEDS = {"large": (0.010, 0.004), "small": (0.002, 0.0002), "searched": (0.001, 0.0001)}
METRICS = {
    "large": {"risk": {"auc": Interval(0.75, 0.7, 0.8)}},
    "small": {"risk": {"auc": Interval(0.70, 0.65, 0.75)}},
}


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Package]:
    """A pair with a policy and metrics; the bytes of `large` are more by its pieces' names."""
    folder, made = tmp_path_factory.mktemp("pair"), {}
    for seed, name in enumerate(("small", "large")):
        parts = toy_parts(folder / "parts", seed=seed, tasks=TASKS)
        card = Card(source=CARD.source, made=CARD.made, metrics=METRICS[name])
        made[name] = write_package(folder / name, parts, card=card)
    policy = doubtful_policy(made["small"].version, made["large"].version)
    made["small"] = update_package(made["small"], {POLICY: policy.to_json()})
    return made


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch, packages: dict[str, Package]) -> list[str]:
    """Speeds as stated, and which were asked for; nothing is timed."""
    asked: list[str] = []

    def measure(path: str, backend: str, candidates: int, tokens: int) -> Served:
        name = Path(path).name
        asked.append(name)
        tasks = dict.fromkeys(TASKS, SPEEDS[name])
        return Served(
            packages[name].version, "torch", tasks, (0.9, 1.0, 1.1), 500 << 20, candidates, tokens
        )

    monkeypatch.setattr(cost, "_measure", measure)
    # A thread: another process would not have `measure`.
    monkeypatch.setattr(cost, "ProcessPoolExecutor", lambda num, **_: ThreadPoolExecutor(num))
    monkeypatch.setattr(
        cost, "stored_bytes", lambda package: {"large": 2, "small": 1}[package.path.name]
    )
    return asked


def in_runs(packages: dict[str, Package], root: Path, lives: dict[str, list[Usage]]) -> list[Path]:
    """Copies of the pair in runs of their own, with these lives."""
    made = []
    for name in ("large", "small"):
        run = root / f"run-{name}"
        made.append(Path(shutil.copytree(packages[name].path, run / name)))
        (run / "config.yaml").write_text("name: r")
        (run / "usage").mkdir()
        for number, one in enumerate(lives[name]):
            content = {"format": "rectrain-usage", "version": 1, **asdict(one)}
            (run / "usage" / f"{number}.json").write_text(json.dumps(content))
    return made


def life(hours: float, **changes: Any) -> Usage:
    """Of one device."""
    values = {
        "work": "train", "label": "r", "device": "cpu", "chip": "Xeon", "num_devices": 1, "rank": 0,
        "world_size": 1, "start": "2026-01-01T00:00:00.000+00:00",
        "end": "2026-01-01T01:00:00.000+00:00", "seconds": 3600 * hours,
        "peak_memory_bytes": 1 << 30, "finished": True,
    }  # fmt: skip
    return Usage(**{**values, **changes})


def call(packages: dict[str, Package], output: Path, *more: str) -> int:
    paths = [str(one.path) for one in packages.values()]
    quick = ["--num-draws=20", "--horizon_months=6", "--latency_ms=2000"]
    return cost.main(["--models", *paths, f"--output={output}", *quick, *more])


def test_two_packages_become_a_report_a_ledger_and_figures(
    packages: dict[str, Package], measured: list[str], tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert call(packages, tmp_path, "--worth.fraud=10", "--worth.events.risk=0.5") == 0
    assert sorted(measured) == ["large", "small"]
    found = json.loads((tmp_path / "cost.json").read_text())
    assert list(found["routes"]) == ["large", "small", "cascade"]
    # The toy's policy defers everything: of 50 candidates of a list its head of 3.
    config = json.loads((packages["large"].path / "encoder" / "config.json").read_text())
    assert {one["layers"] for one in found["models"].values()} == {config["num_hidden_layers"]}
    assert all(one["training_bytes"] is None for one in found["models"].values())
    cores = {name: route["core_s"] for name, route in found["routes"].items()}
    assert cores["small"] < cores["cascade"] and cores["small"] < cores["large"]
    assert found["lift"]["small"]["risk"] == pytest.approx(0.2 / 0.25)
    assert found["versions"]["large"] == packages["large"].version
    ledger = Ledger.from_csv((tmp_path / "ledger.csv").read_text(), name="ledger.csv")
    sums = {name: float(amount) for (name,), amount in ledger.totals("scenario").items()}
    assert sums == pytest.approx({name: 6 * one["month"] for name, one in found["routes"].items()})
    page = (tmp_path / "report.html").read_text()
    assert page.count("<script") >= 6 and "What should I run at my traffic?" in page
    printed = capsys.readouterr().out
    assert "cost: at this traffic run " in printed and "| cascade | USD " in printed


def test_prices_of_answers_add_up_to_those_of_the_routes(
    packages: dict[str, Package], measured: list[str], tmp_path: Path
) -> None:
    rented = tmp_path / "prices.yaml"
    rented.write_text("machines: {server-32-threads: {purchase: {amount: 1000000, unit: once, "
                      "currency: USD, date: 2026-09-01, source: dear}}}")  # fmt: skip
    mix = ("--mix.risk=1", "--mix.search_ranking=3", f"--prices={rented}")
    assert call(packages, tmp_path, *mix) == 0
    found = json.loads((tmp_path / "cost.json").read_text())
    name, purchase = found["plan"]["machine"], found["plan"]["purchase"].replace(" ", "_")
    machine = load_prices().instance(name)
    core_s = float(getattr(machine, purchase).value) / 3600 / machine.num_devices
    versions = {role: packages[role].version for role in ("small", "large")}

    def mean(small: str, large: str | None = None, **deferred: int) -> float:
        """Of 1,000 answers of 50 candidates in that mix, so many of them deferred."""
        costs = read_costs(str(tmp_path / "cost.json"), small=small, large=large)
        whole = 0.0
        for path, share in (("risk", 0.25), ("rank", 0.75)):
            count = deferred.get(path, 0)
            items = [Item(score=0.5, by="large" if n < count else "small") for n in range(50)]
            answer = Answer(
                items=tuple(items), model="m", versions=Versions(small="s", large=None),
                deferred=count > 0, reason="doubtful", confidence=0.5,
            )  # fmt: skip
            told = costs.of(path, answer)
            assert told is not None
            whole += share * told.per_1000
        return whole

    # Rows are all deferred, of lists the head of 3.
    for name, amount in (
        ("small", mean(versions["small"])), ("large", mean(versions["large"])),
        ("cascade", mean(**versions, risk=50, rank=3)),
    ):  # fmt: skip
        assert amount == pytest.approx(1000 * found["routes"][name]["core_s"] * core_s), name


@pytest.fixture
def search(packages: dict[str, Package], tmp_path: Path) -> Iterator[Path]:
    """A search's folder, whose knee and cheapest are one model."""
    folder = tmp_path / "search"
    folder.mkdir()
    parts = toy_parts(folder / "parts", seed=7, tasks=TASKS)
    made = write_package(folder / "searched", parts, card=CARD)
    facts = {"package": str(made.path), "version": made.version, "objectives": {"mean_lift": 0.5}}
    worth = {"mean_lift": 0.45, "cost_per_1000": 0.0001, "p99_ms": 3.5}
    trial = {"trial": 2, "parameters": {"layers": 1, "heads": 2}, "objectives": worth}
    front = {"currency": "EUR", "knee": 2, "front": [trial],
             "models": {"knee": facts, "cheapest": facts}}  # fmt: skip
    (folder / "front.json").write_text(json.dumps(front))
    packages["searched"] = made
    yield folder
    del packages["searched"]


def test_what_a_search_has_packaged_is_priced_beside_the_models(
    packages: dict[str, Package], search: Path, measured: list[str], tmp_path: Path
) -> None:
    pair = {name: packages[name] for name in ("large", "small")}
    assert call(pair, tmp_path / "out", f"--search={search}") == 0
    assert sorted(measured) == ["large", "searched", "small"]
    found = json.loads((tmp_path / "out" / "cost.json").read_text())
    assert list(found["routes"]) == ["large", "small", "cascade"]  # as without
    rows = {one["model"]: one for one in found["searched"]["models"]}
    assert list(rows) == ["large", "small", "knee"]
    assert [one["lift"] for one in rows.values()] == [None, None, 0.5]
    for name, key in (("knee", "searched"), ("small", "small"), ("large", "large")):
        fixed, each = SPEEDS[key]
        assert rows[name]["core_s"] == pytest.approx(fixed + 50 * each + Overhead().seconds(50))
    assert 0 < rows["knee"]["per_1000"] < rows["small"]["per_1000"] < rows["large"]["per_1000"]
    page = (tmp_path / "out" / "report.html").read_text()
    assert "What would another shape cost?" in page and f"{search}/front.html" in page
    assert "layers 1, heads 2 (knee)" in page and "has packaged" in page


def test_a_search_that_packaged_nothing_shows_its_front_alone(
    packages: dict[str, Package], search: Path, measured: list[str], tmp_path: Path
) -> None:
    front = json.loads((search / "front.json").read_text())
    (search / "front.json").write_text(json.dumps({**front, "models": {}}))
    alone = {"large": packages["large"]}
    assert call(alone, tmp_path / "out", f"--search={search}") == 0
    assert measured == ["large"]
    page = (tmp_path / "out" / "report.html").read_text()
    assert "layers 1, heads 2 (knee)" in page and "has packaged" not in page


def test_what_a_gpu_trained_is_paid_as_a_gpu(
    packages: dict[str, Package], measured: list[str], tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    on_gpu = life(6, device="gpu", chip="NVIDIA L4")
    pair = in_runs(packages, tmp_path, {"large": [on_gpu, life(2)], "small": [life(4)]})
    output = tmp_path / "out"
    argv = [f"--output={output}", "--num-draws=20", "--horizon_months=6", "--latency_ms=2000"]
    assert cost.main(["--models", *map(str, pair), *argv]) == 0
    assert "Training of large: 8 device hours, 75% of them on GPUs" in capsys.readouterr().out
    ledger = Ledger.from_csv((output / "ledger.csv").read_text(), name="ledger.csv")
    instances = load_prices().instances
    gpu, cpu = instances["aws-g6-xlarge"], instances["aws-c7i-large"]  # the chip's, and the first
    assert {e.amount for e in ledger.where(scenario="spent") if e.amount} == {
        6 * gpu.on_demand.value, 2 * cpu.on_demand.value / 2, 4 * cpu.on_demand.value / 2
    }  # fmt: skip
    to_come = {tuple(e.label.split(": ")[::-1]): e for e in ledger if ": " in e.label}
    for label, month, hours, name in (
        ("first training on GPUs", 1, 6, "aws-g6-xlarge"),
        ("first training", 1, 2, "aws-c7i"),
        ("trainings again on GPUs", 4, 6, "aws-g6-xlarge"),
        ("trainings again", 4, 2, "aws-c7i"),
        ("making the small model", 1, 4, "aws-c7i"),
    ):
        found = [e for (what, _), e in to_come.items() if what == f"{label}, month {month}"]
        assert found and {float(e.quantity) for e in found} == {hours}, label
        assert all(f"; {name}" in e.source for e in found), label
        if name == "aws-g6-xlarge":
            assert gpu.spot is not None
            low, high = gpu.spot.value * Fraction(9, 10), gpu.on_demand.value
            assert all(low < e.unit_price <= high for e in found)


def test_trainings_to_come_repeat_the_last_run_and_not_what_it_started_from(
    packages: dict[str, Package], measured: list[str], tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    pair = in_runs(packages, tmp_path, {"large": [life(2), life(1, finished=False)], "small": []})
    for name, parent, hours in (
        ("run-large", "train: {start_from: ROOT/older}", None),
        ("older", "model: {encoder: ROOT/pre/encoder}", 20.0),
        ("pre", "name: pre", 100.0),
        ("run-small", "train: {teacher: ROOT/run-large}", 4.0),
    ):
        if not (tmp_path / name).exists():
            (tmp_path / name / "usage").mkdir(parents=True)
        (tmp_path / name / "config.yaml").write_text(parent.replace("ROOT", str(tmp_path)))
        if hours:
            work = "pretrain" if name == "pre" else "train"
            content = {"format": "rectrain-usage", "version": 1, **asdict(life(hours, work=work))}
            (tmp_path / name / "usage" / "0.json").write_text(json.dumps(content))
    output = tmp_path / "out"
    argv = [f"--output={output}", "--num-draws=20", "--horizon_months=8", "--latency_ms=2000"]
    assert cost.main(["--models", *map(str, pair), *argv]) == 0
    printed = capsys.readouterr().out
    assert "Training of large: 3 device hours, recorded in run-large (train, 2 lives)." in printed
    assert (
        "paid once: 120 device hours, recorded in pre (pretrain, 1 life), older (train" in printed
    )
    assert "Training of small: 4 device hours" in printed
    ledger = Ledger.from_csv((output / "ledger.csv").read_text(), name="ledger.csv")
    hours = {
        e.label.split(": ")[1]: float(e.quantity) for e in ledger
        if e.label.startswith("cascade") and e.unit == "device hour"
    }  # fmt: skip
    assert hours == pytest.approx({
        "what the first training starts from, month 1": 120, "first training, month 1": 3,
        "making the small model, month 1": 4,
        **{f"trainings again, month {month}": 3 for month in (4, 7)},
        **{f"making the small model again, month {month}": 4 for month in (4, 7)},
    })  # fmt: skip
    figures = json.loads((output / "cost.json").read_text())["models"]
    assert figures["large"]["training_bytes"] == 1 << 30  # of two lives of one process, the worse
    page = (output / "report.html").read_text()
    assert "What are these models?" in page and "1,024.0 MiB" in page
    # What LoRA saves is a third of the two last runs to come, and nothing of what was before.
    found = json.loads((output / "cost.json").read_text())["strategies"]
    full, lora = (
        next(one for one in found if (one["route"], one["hosting"], one["purchase"], one["method"])
             == ("large", "cloud", "on demand", method))
        for method in ("full", "lora")
    )  # fmt: skip
    cpu = load_prices().instance("aws-c7i-large").on_demand.value / 2
    saved = sum(float(cpu) * 0.95 ** (month / 12) for month in (3, 6))
    assert 8 * (full["month"] - lora["month"]) == pytest.approx(saved, rel=0.01)


def test_work_that_no_machine_of_the_prices_could_do_is_told_before_anything_is_measured(
    packages: dict[str, Package], measured: list[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    prices = load_prices()
    cpus = {name: one for name, one in prices.instances.items() if one.device == "cpu"}
    monkeypatch.setattr(
        cost, "load_prices", lambda file: prices.model_copy(update={"instances": cpus})
    )
    pair = in_runs(packages, tmp_path, {"large": [life(1, device="gpu")], "small": []})
    argv = ["--models", *map(str, pair), f"--output={tmp_path}/out"]
    assert exit_status(cost.main, argv) == 2
    assert "fix: add a gpu instance to your prices file" in capsys.readouterr().err
    assert not measured


def test_the_linear_model_is_left_out_with_a_reason_or_as_stated(
    packages: dict[str, Package], measured: list[str], tmp_path: Path
) -> None:
    assert call(packages, tmp_path) == 0  # two models of one shape tell nothing apart
    requests, training = json.loads((tmp_path / "cost.json").read_text())["linear"]
    assert requests["how"].startswith("left out: ") and requests["how"].endswith("points: 2")
    assert training["how"].endswith("points: 0")
    assert "<b>1,000 requests:</b> left out" in (tmp_path / "report.html").read_text()
    file = tmp_path / "linear.yaml"
    file.write_text("currency: EUR\nrequests: {hardware: [100, 10], software: [20, 5]}\n")
    assert call(packages, tmp_path, f"--linear={file}", "--latency_ms=2000") == 0
    found = json.loads((tmp_path / "cost.json").read_text())
    requests, training = found["linear"]
    rate = 1.0889  # dollars for a euro
    assert requests["coefficients"]["hardware"] == pytest.approx([100 * rate, 10 * rate])
    figures = found["models"]["small"]
    p, c = figures["parameters"] / 1e6, figures["complexity"]
    costs = {one["name"]: one["modelled"] for one in requests["points"]}
    assert costs["small"] == pytest.approx(rate * (120 * p + 15 * c))
    assert requests["cheapest"] in ("small", "large") and "left out" in training["how"]
    assert "<b>1,000 requests: 131 P + 16.3 C USD</b>" in (tmp_path / "report.html").read_text()


def test_what_was_measured_is_not_measured_again(
    packages: dict[str, Package], measured: list[str], tmp_path: Path
) -> None:
    for more in ([], ["--mean_rate=50"], ["--candidates=10"]):
        assert call(packages, tmp_path, *more) == 0
    assert sorted(measured) == ["large", "large", "small", "small"]  # other candidates are


def test_a_dry_run_measures_and_writes_nothing(
    packages: dict[str, Package], measured: list[str], tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert call(packages, tmp_path / "out", "--dry-run") == 0
    assert not measured and not (tmp_path / "out").exists()
    printed = capsys.readouterr().out
    assert "cost: large " in printed and "counts as nothing" in printed


def test_one_package_alone_is_priced_too(
    packages: dict[str, Package], measured: list[str], tmp_path: Path
) -> None:
    assert call({"large": packages["large"]}, tmp_path) == 0
    assert list(json.loads((tmp_path / "cost.json").read_text())["routes"]) == ["large"]


def test_mistakes_are_one_line_and_status_2(
    packages: dict[str, Package], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pair = [str(one.path) for one in packages.values()]
    (tmp_path / "prices.yaml").write_text("instances: {mine: {chip: x}}")
    (tmp_path / "traffic.yaml").write_text("mean_rates: 3")
    (tmp_path / "none.yaml").write_text("{instances: null, machines: null}")
    (tmp_path / "list.json").write_text('["adapters/lora/speed"]')
    (tmp_path / "zero.json").write_text('[{"id": "adapters/lora/speed", "value": 0}]')
    before = sorted(tmp_path.iterdir())
    for argv, said in (
        (["--models", pair[0], pair[0]], "two different ones"),
        (["--models", *pair, "--traffic", "nowhere.yaml"], "must be a readable file"),
        (["--models", *pair, "--traffic", f"{tmp_path}/traffic.yaml"], "did you mean mean_rate"),
        (["--models", *pair, "--prices", f"{tmp_path}/prices.yaml"], "instances.mine"),
        (["--models", *pair, "--mix.chess=1"], "the models have recommendation"),
        (["--models", str(tmp_path)], "no manifest.json"),
        (["--models", *pair, "--mean_rate=-1"], "mean_rate"),
        (["--models", *pair, "--search", str(tmp_path)], "no front.json"),
        (["--models", *pair, "--linear", "nowhere.yaml"], "must be a readable file"),
        (["--models", *pair, "--output", "s3://bucket/cost"], "a folder of this machine"),
        (["--models", *pair, "--output", f"{tmp_path}/none.yaml"], "that you may write into"),
        (["--models", *pair, "--output", f"{tmp_path}/none.yaml/a/b"], "that you may write into"),
        (["--models", *pair, "--adapters", "nowhere.json"], "must be a readable file"),
        (["--models", *pair, "--adapters", f"{tmp_path}/none.yaml"], "as JSON"),
        (["--models", *pair, "--adapters", f"{tmp_path}/list.json"], "as JSON"),
        (["--models", *pair, "--adapters", f"{tmp_path}/zero.json"], "as JSON"),
        (["--models", *pair, "--currency=XXX"], "add exchange.XXX to your prices file"),
        (["--models", *pair, "--prices", f"{tmp_path}/none.yaml"], "got none with a cpu"),
        ([], "--models"),
    ):
        assert exit_status(cost.main, [*argv, "--dry-run"]) == 2, argv
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1 and "fix: " in error
    assert sorted(tmp_path.iterdir()) == before


def test_a_folder_that_may_not_be_written_is_told_before_anything_is_measured(
    packages: dict[str, Package], measured: list[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(cost.os, "access", lambda path, mode: path != tmp_path)
    with pytest.raises(ConfigError, match=r"--output: .*that you may write into"):
        call(packages, tmp_path / "new" / "out")
    assert not measured
