"""The cost report in a real browser: it needs nothing beside itself, and fits a phone."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from chromium import WIDTHS, Tab

from rectrain.cost.case import Case, Owned, Training
from rectrain.cost.findings import Findings, find
from rectrain.cost.ledger import Ledger
from rectrain.cost.machines import Route, Server, Stage
from rectrain.cost.traffic import Traffic
from rectrain.report.cost import write_cost

QUESTIONS = [
    "What does each model, and the cascade, cost?",
    "What is it made of?",
    "What would another shape cost?",
    "When does extra training pay back?",
    "What should I run at my traffic?",
    "How sure is that?",
    "What do width and depth cost?",
    "What are these models?",
    "From what is this computed?",
]

SEARCHED = {
    "page": "/a/path/" + "x" * 200 + "/front.html",
    "models": [
        {"model": "knee", "layers": 2, "hidden": 128, "intermediate": 96, "run_by": "openvino-int8",
         "core_s": 0.0031, "per_1000": 0.00004, "memory_bytes": 5e8, "lift": 0.9}
    ],
    "currency": "EUR",
    "knee": 3,
    "front": [
        {"trial": 3, "parameters": {"layers": 2, "heads": 4, "train.learning_rate": 0.0005},
         "objectives": {"mean_lift": 0.8, "cost_per_1000": 0.0001, "p99_ms": 12.5}}
    ],
}  # fmt: skip

MODELS = {
    "knee": {"layers": 2, "hidden": 128, "intermediate": 96, "parameters": 1_900_000,
             "complexity": 0.4, "request_gflop": 0.1, "fp32_bytes": 7_600_000,
             "int8_bytes": 1_900_000, "stored_bytes": 9_000_000, "memory_bytes": 5e8,
             "training_bytes": None}
}  # fmt: skip
LINEAR = [
    {"of": "1,000 requests", "how": "fitted to 3 of them", "bounds": "250 ms", "cheapest": "knee",
     "coefficients": {"hardware": [1e-5, 2e-4], "software": [0.0, 0.0], "labour": [0.0, 0.0]},
     "hardware_range": [[0.0, 2e-5], [1e-4, 3e-4]], "relative_error": 0.1,
     "points": [{"name": "knee", "p": 1.9, "c": 0.4, "measured": 1e-4, "modelled": 9.9e-5,
                 "range": [5e-5, 1.5e-4]}]},
    {"of": "training on a million tokens", "how": "left out: needs three runs; there are 0",
     "bounds": "", "cheapest": None, "points": []},
]  # fmt: skip


def found(**traffic: Any) -> Findings:
    """Answers about three made-up routes on two machines."""
    small, large = Stage("small", 1.0, 40.0, 1e9), Stage("large", 1.0, 3.0, 1e9)
    routes = {
        "large": Route("large", (large,), 1.0, 80.0, 0.02),
        "small": Route("small", (small,), 0.0, 30.0, 0.0197),
        "cascade": Route("cascade", (small, Stage("large", 0.1, 5.0, 1e9)), 0.1, 90.0, 0.0199),
    }
    servers = [
        Server(name, threads, threads * 0.045 * share, memory_bytes=threads * 2e9, **spot)
        for name, threads in (("a-machine.large", 2), ("a-machine.2xlarge", 8))
        for share, spot in (
            (1.0, {}), (0.45, {"purchase": "spot", "interruptions_per_hour": 7e-5})
        )
    ]  # fmt: skip
    training = Training(10.0, 4.0, {"full": 1.0, "lora": 0.7, "adalora": 0.8}, "<made> up")
    servers.append(replace(servers[0], hourly=0.059, purchase="reserved", term_months=12))
    owned = Owned(Server("my-server", 32, 0.0), 184.0, 375.0, 135.0)
    case = Case(
        Traffic.model_validate(traffic), routes, training, tuple(servers), (owned,), 91.0, 66.0, 0.2
    )
    options = tuple(routes.values())
    return find(case, options=lambda _: options, currency="EUR", num_draws=50)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report alone in its folder."""
    made, alone = tmp_path_factory.mktemp("made"), tmp_path_factory.mktemp("alone")
    facts = {"notes": ["A note with <b>no</b> markup."], "measured_rows": [["risk", "large", "1"]]}
    facts |= {"searched": SEARCHED, "models": MODELS, "linear": LINEAR}
    write_cost(made, found(latency_ms=120.0, budget_per_month=900.0), facts, Ledger())
    return Path(shutil.copy(made / "report.html", alone / "moved.html"))


@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS)
def test_it_loads_alone_without_complaint_and_is_no_wider_than_the_screen(browser, report, width):
    tab = Tab(browser, width=width, offline=True)
    tab.page.goto(report.as_uri())
    tab.page.wait_for_selector("#leads .main-svg")
    assert (tab.complaints, tab.asked) == ([], [report.as_uri()])
    assert tab.fits()
    assert tab.texts("h2") == QUESTIONS
    drawn = tab.page.locator(".plotly-graph-div")
    assert drawn.count() == 6
    for place in range(drawn.count()):
        box = drawn.nth(place).locator(".main-svg").first.bounding_box()
        assert box is not None and box["width"] <= width and box["height"] > 80
    tab.context.close()


def test_it_says_what_to_run_and_what_would_have_to_change(browser, report):
    tab = Tab(browser)
    tab.page.goto(report.as_uri())
    lead = tab.page.inner_text(".lead")
    assert "requests a second" in lead and "a month" in lead and "EUR" in lead
    best, *others = tab.texts(".note")
    assert best.startswith("Best: ") and others[0].startswith("Runner-up: ")
    assert all("It would win" in one for one in others)
    assert "A note with <b>no</b> markup." in tab.page.inner_text("#from-what")
    tab.page.click("nav >> text=How sure")
    assert tab.page.url.endswith("#how-sure") and tab.page.is_visible("#how-sure h2")
    tab.context.close()


def test_where_nothing_keeps_to_the_bounds_it_says_so(browser, tmp_path):
    write_cost(tmp_path, found(latency_ms=5.0), {}, Ledger())
    tab = Tab(browser)
    tab.page.goto((tmp_path / "report.html").as_uri())
    assert "nothing answers 99 of 100 requests within 5 ms" in tab.page.inner_text(".lead")
    assert "Nothing keeps to the budget and the latency limit." in tab.texts("#what-to-run")[0]
    tab.context.close()
