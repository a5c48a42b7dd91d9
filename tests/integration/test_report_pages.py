"""Reports in a real browser: no complaint, no network, nothing wider than the screen."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from chromium import WIDTHS, Tab

from rectrain.report.front import render_front
from rectrain.tune.trials import Objectives, StudyFacts, Trial


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A search's page, as `jobs.tune` writes it."""
    begun = datetime(2026, 1, 1, tzinfo=UTC)
    trials = [
        Trial(
            number, {"layers": 1 + number % 6, "heads": 6, "train.learning_rate": 1e-4},
            "failed" if number == 7 else "complete",
            None if number == 7 else Objectives(0.5 + number / 50, 0.01 * number + 0.01, number),
            {"p99_ms": number - 15}, 10.0, begun, begun + timedelta(seconds=number),
            "a word that is as long as a path /" + "x" * 200 if number == 7 else None,
            {"num_bytes": 10**6 * (number + 1)},
        )
        for number in range(20)
    ]  # fmt: skip
    facts = StudyFacts("separate", (0.0, 1.0, 40.0), "EUR", 0.0, {})
    shares = {"layers": 0.6, "heads": 0.1, "train.learning_rate": 0.3}
    importances = dict.fromkeys(("mean_lift", "cost_per_1000", "p99_ms"), shares)
    path = tmp_path_factory.mktemp("report") / "front.html"
    path.write_text(
        render_front(trials, facts, importances=importances, chosen={3: [], 4: ["p99_ms"]})
    )
    return path


@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS)
def test_the_front_is_drawn_within_the_screen_without_complaint_or_network(browser, front, width):
    tab = Tab(browser, width=width)
    tab.page.goto(front.as_uri())
    tab.page.wait_for_function("document.querySelectorAll('.chart .main-svg').length >= 3")
    assert tab.fits()
    assert tab.page.locator("#quality .scatterlayer .point").count() >= 19
    assert tab.page.locator("#growth .scatterlayer .point").count() == 21
    assert tab.page.locator("#importance .point").count() == 9
    assert (tab.complaints, tab.asked) == ([], [front.as_uri()])
    tab.context.close()
