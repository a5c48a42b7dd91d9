"""The page of a search: what stands in it, and that it holds with little in it."""

from __future__ import annotations

import json
import math
import re
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser

import pytest

from rectrain.report.front import front_of, render_front
from rectrain.report.search import read_front, write_front
from rectrain.tune.trials import DIRECTIONS, STUDY, Objectives, StudyFacts, Trial, study_url

FACTS = StudyFacts("elastic", (0.0, 2.0, 40.0), "EUR", 100.0, {})
BEGUN = datetime(2026, 1, 1, tzinfo=UTC)


def trial(number, lift=None, cost=1.0, p99=10.0, *, excess=-0.1, error=None):
    done = None if lift is None else Objectives(lift, cost, p99)
    return Trial(
        number, {"layers": number + 1, "heads": 6}, "failed" if done is None else "complete",
        done, {"p99_ms": excess}, 5.0, BEGUN, BEGUN + timedelta(seconds=number), error,
        {"num_bytes": 2_500_000},
    )  # fmt: skip


TRIALS = [
    trial(0, 0.5, 0.2, 5.0),
    trial(1, 0.8, 0.4, 8.0),
    trial(2, 0.7, 0.5, 9.0),  # trial 1 is better in all
    trial(3, 0.99, 0.1, 1.0, excess=0.2),  # best of all, and beyond a constraint
    trial(4, error="loss is NaN </script><b>&"),
    trial(5, 1.0, 1.5, 30.0),
]


class Tables(HTMLParser):
    """Cells of all tables."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self._in_cell = False
        self.feed(re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL))

    def handle_starttag(self, tag, attrs):
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self._in_cell = True
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        self._in_cell = self._in_cell and tag not in ("td", "th")

    def handle_data(self, data):
        if self._in_cell:
            self.rows[-1][-1] += data


def page(trials, **options):
    return render_front(trials, FACTS, importances=options.pop("importances", {}), **options)


def test_the_front_has_what_is_feasible_and_not_dominated_the_cheapest_first():
    front = front_of(TRIALS)
    assert [one.number for one in front.trials] == [0, 1, 5]
    assert front.knee == 1  # scaled sums: 1.0, 0.4 + 0.15 + 0.12, 2.0


def test_its_table_has_each_models_shape_and_objectives():
    rows = Tables(page(TRIALS, chosen={5: []})).rows
    at = rows.index(
        ["trial", "layers", "heads", "lift", "EUR / 1,000 requests", "p99 ms", "MB", ""]
    )
    assert rows[at + 1 : at + 4] == [
        ["0", "1", "6", "0.500", "0.2", "5.0", "2.5", ""],
        ["1", "2", "6", "0.800", "0.4", "8.0", "2.5", "knee"],
        ["5", "6", "6", "1.000", "1.5", "30.0", "2.5", "packaged"],
    ]


def test_a_package_beyond_a_limit_that_its_trial_kept_is_said_to_be():
    said = "A package may be beyond a limit"
    made = page(TRIALS, chosen={1: ["p99_ms", "megabytes"], 5: []})
    notes = [row[-1] for row in Tables(made).rows]
    assert "knee, packaged (beyond p99_ms, megabytes)" in notes and "packaged" in notes
    assert said in made and said not in page(TRIALS, chosen={1: [], 5: []})


def test_the_page_of_a_search_has_the_limits_that_its_packages_exceed(tmp_path):
    import optuna

    url = study_url(tmp_path / "study.db")
    study = optuna.create_study(study_name=STUDY, storage=url, directions=DIRECTIONS)
    worth = Objectives(0.9, 1.0, 19.0)
    found = {"objectives": asdict(worth), "values": {"risk": float("nan")}}
    study.add_trial(optuna.trial.create_trial(values=worth.values(), user_attrs=found))
    constraints = {"p99_ms": 1.0, "megabytes": -0.5}
    made = {"trial": 0, "constraints": constraints, "objectives": {"mean_lift": float("nan")}}
    written = write_front(tmp_path, made={"best": made, "knee": made}).read_text()
    notes = [row[-1] for row in Tables(written).rows]
    assert "knee, packaged (beyond p99_ms)" in notes
    front = json.loads((tmp_path / "front.json").read_bytes(), parse_constant=pytest.fail)
    assert front["front"][0]["values"] == {"risk": None}  # JSON has no word for NaN
    assert front["models"]["knee"]["objectives"] == {"mean_lift": None}
    again = read_front(tmp_path)
    assert math.isnan(again["front"][0]["values"]["risk"])
    assert math.isnan(again["models"]["knee"]["objectives"]["mean_lift"])


def test_a_failed_trial_stands_with_its_reason_and_cannot_end_the_script():
    made = page(TRIALS)
    assert ["4", "failed", "loss is NaN </script><b>&", "layers 5, heads 6", "5"] in Tables(
        made
    ).rows
    assert made.count("</script>") == made.count("<script>")
    assert "6 trials (elastic), 5 with a result, 1 of them beyond a constraint; 3 in" in made


def test_it_loads_nothing():
    made = page(TRIALS, importances={"mean_lift": {"layers": 0.7, "heads": 0.3}})
    without_library = re.sub(r"<script>.*?</script>", "", made, count=1, flags=re.DOTALL)
    assert len(without_library) < 200_000  # plotly's library stands there once
    assert not re.search(r'(?:src|href)="(?!data:)', without_library)
    assert "default-src 'none'" in made


@pytest.mark.parametrize("trials", [[], TRIALS[4:5], TRIALS[3:4]], ids=["none", "failed", "beyond"])
def test_a_search_without_a_front_says_so(trials):
    assert "No trial has a result that holds the constraints." in page(trials)


def test_trials_of_several_processors_are_told_apart_in_words():
    """Where a search went on on another machine, nothing else shows it."""

    def page(*chips: str) -> str:
        trials = [replace(TRIALS[n], facts={"chip": chip}) for n, chip in enumerate(chips)]
        return render_front(trials, FACTS, importances={})

    assert "Timed on" not in page("Xeon", "Xeon")
    assert "Timed on EPYC and Xeon" in page("Xeon", "EPYC", "Xeon")
