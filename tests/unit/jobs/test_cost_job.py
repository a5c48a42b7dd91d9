"""jobs.cost: from two packages to a report, and its mistakes as one line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from packaged_toy import toy_parts
from served_toy import CARD, TASKS, doubtful_policy

from jobs import cost
from jobs.cli import exit_status
from rectrain.cascade import POLICY
from rectrain.cost.ledger import Ledger
from rectrain.cost.overhead import Overhead
from rectrain.cost.serving import Served
from rectrain.metrics import Interval
from rectrain.package import Card, Package, update_package, write_package

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

    class Here:
        """A pool whose one process is this one."""

        def __init__(self, *_: object, **__: object) -> None: ...

        def __enter__(self) -> Here:
            return self

        def __exit__(self, *_: object) -> None: ...

        def submit(self, call: Any, *args: Any) -> Any:
            return SimpleNamespace(result=lambda: call(*args))

    monkeypatch.setattr(cost, "_measure", measure)
    monkeypatch.setattr(cost, "ProcessPoolExecutor", Here)
    sizes = {packages["large"].path: 2, packages["small"].path: 1}
    monkeypatch.setattr(cost, "_size", lambda package: sizes[package.path])
    return asked


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
    cores = {name: route["core_s"] for name, route in found["routes"].items()}
    assert cores["small"] < cores["cascade"] and cores["small"] < cores["large"]
    assert found["lift"]["small"]["risk"] == pytest.approx(0.2 / 0.25)
    assert found["versions"]["large"] == packages["large"].version
    ledger = Ledger.from_csv((tmp_path / "ledger.csv").read_text(), name="ledger.csv")
    whole = sum(6 * route["month"] for route in found["routes"].values())
    assert float(ledger.total()) == pytest.approx(whole)
    page = (tmp_path / "report.html").read_text()
    assert page.count("<script") >= 6 and "What should I run at my traffic?" in page
    printed = capsys.readouterr().out
    assert "cost: at this traffic run " in printed and "| cascade | USD " in printed


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
    for argv, said in (
        (["--models", pair[0], pair[0]], "two different ones"),
        (["--models", *pair, "--traffic", "nowhere.yaml"], "must be a readable file"),
        (["--models", *pair, "--traffic", f"{tmp_path}/traffic.yaml"], "did you mean mean_rate"),
        (["--models", *pair, "--prices", f"{tmp_path}/prices.yaml"], "instances.mine"),
        (["--models", *pair, "--mix.chess=1"], "the models have recommendation"),
        (["--models", str(tmp_path)], "no manifest.json"),
        (["--models", *pair, "--mean_rate=-1"], "mean_rate"),
        (["--models", *pair, "--search", str(tmp_path)], "no front.json"),
        ([], "--models"),
    ):
        assert exit_status(cost.main, [*argv, "--dry-run"]) == 2, argv
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1 and "fix: " in error
