"""The linear model reaches the report: points from measured runs, the fit, the cheapest model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import BertConfig

from rectrain.cost.flops import complexity, encoder_parameters
from rectrain.cost.ledger import Rates
from rectrain.cost.linear import Candidate, Run
from rectrain.cost.linear_costs import Given, LinearSettings, linear, load_linear, training_runs
from rectrain.cost.measure import Past, history
from rectrain.cost.prices import load_prices
from rectrain.errors import ConfigError

SHAPES = {"deep": (2.0, 9.0), "wide": (8.0, 5.0), "tiny": (1.0, 1.0), "large": (22.0, 21.0)}
LIFTS = {"deep": 0.9, "wide": 0.95, "tiny": 0.5, "large": 1.0}
CANDIDATES = [
    Candidate(name, p, c, LIFTS[name], latency_ms=10 * c) for name, (p, c) in SHAPES.items()
]
RUNS = [Run(name, p, c, {"hardware": 2 * p + 3 * c}) for name, (p, c) in SHAPES.items()]


def test_points_give_the_coefficients_and_the_cheapest_that_keeps_the_bounds():
    given = Given(software=(1.0, 0.0), labour=(0.0, 0.5))
    found = linear("a day", RUNS, given, CANDIDATES, latency_ms=100.0, least_lift=0.8)
    assert found.model is not None and found.model.hardware == pytest.approx((2, 3))
    assert found.model.whole == pytest.approx((3, 3.5))
    # deep: 6 + 31.5; wide: 24 + 17.5. large is too slow, tiny too bad.
    assert found.cheapest is not None and found.cheapest.name == "deep"
    told = found.to_json()
    assert told["hardware_range"] == [pytest.approx((2, 2)), pytest.approx((3, 3))]
    assert told["relative_error"] == pytest.approx(0, abs=1e-9)
    assert {one["name"]: one["modelled"] for one in told["points"]}["tiny"] == pytest.approx(6.5)
    assert {one["name"]: one["range"] for one in told["points"]}["tiny"] == pytest.approx(
        (6.5, 6.5)
    )
    assert (told["cheapest"], told["bounds"]) == (
        "deep",
        "100 ms and 0.8 of the large model's lift",
    )
    json.dumps(told, allow_nan=False)


def test_a_point_with_two_names_counts_once():
    again = [Run(f"{one.name} again", one.p, one.c, one.costs) for one in RUNS]
    found = linear("a day", [*RUNS, *again], Given(), CANDIDATES, latency_ms=1e9)
    assert (list(found.runs), found.how) == (RUNS, "fitted to 4 of them")
    found = linear("a day", [*RUNS[:2], *again[:2]], Given(), CANDIDATES, latency_ms=1e9)
    assert found.model is None and found.how.endswith("points: 2")


def test_without_bounds_the_smallest_is_the_cheapest():
    found = linear("a day", RUNS, Given(), CANDIDATES, latency_ms=1e9)
    assert found.cheapest is not None and found.cheapest.name == "tiny"


def test_what_is_stated_needs_no_points_and_is_not_fitted():
    found = linear("a day", RUNS[:1], Given(hardware=(100, 10)), CANDIDATES, latency_ms=1e9)
    assert found.fit is None and found.how == "stated"
    assert found.to_json()["coefficients"]["hardware"] == [100, 10]
    assert found.to_json()["points"][0]["modelled"] == 290 and found.interval(1, 1) is None


def test_with_too_few_points_it_is_left_out_and_says_why():
    for runs, points in ((RUNS[:2], 2), ([RUNS[0]] * 3, 1), ([], 0)):
        found = linear("a day", runs, Given(software=(1, 1)), CANDIDATES, latency_ms=1e9)
        assert found.model is None and found.cheapest is None
        assert found.how.startswith("left out: needs runs of at least three ratios")
        assert found.how.endswith(f"; points: {points}")
        assert "coefficients" not in found.to_json()


def test_where_no_model_keeps_the_bounds_it_says_which_come_nearest():
    found = linear("a day", RUNS, Given(), CANDIDATES, latency_ms=1.0)
    assert found.cheapest is None and "the fastest a latency of 10 ms" in found.bounds


def test_settings_come_from_a_file_in_any_currency(tmp_path):
    file = tmp_path / "linear.yaml"
    file.write_text(
        "currency: USD\nrequests: {hardware: [1, 2], labour: [4, 0]}\nleast_lift: 0.9\n"
    )
    found = load_linear(str(file)).into("EUR", Rates({"EUR": 2, "USD": 1}, "stated"))  # type: ignore[dict-item]
    assert (found.currency, found.least_lift) == ("EUR", 0.9)
    assert found.requests == Given(hardware=(0.5, 1.0), labour=(2.0, 0.0))
    assert load_linear(None) == LinearSettings()
    file.write_text("requests: {hardware: [-1, 2]}")
    with pytest.raises(ConfigError, match=r"requests\.hardware"):
        load_linear(str(file))
    with pytest.raises(ConfigError, match="must be a readable file"):
        load_linear(str(tmp_path / "nowhere.yaml"))


# --- points of training --------------------------------------------------------------------------

BERT = {"hidden_size": 8, "intermediate_size": 16, "num_attention_heads": 2, "vocab_size": 50}


def run_folder(folder: Path, *, layers: int = 2, chip: str = "Xeon", **train: Any) -> list[Past]:
    """A run of 2 workers with 2 threads each, and what went into it: itself."""
    for part in ("usage", "encoder"):
        (folder / part).mkdir(parents=True)
    usage = {
        "format": "rectrain-usage", "version": 1, "work": "train", "label": "r", "device": "cpu",
        "chip": chip, "num_devices": 2, "world_size": 2, "start": "2026-01-01T00:00:00.000+00:00",
        "end": "2026-01-01T01:00:00.000+00:00", "seconds": 60.0, "peak_memory_bytes": 1,
        "finished": True,
    }  # fmt: skip
    for rank in (0, 1):
        (folder / "usage" / f"{rank}.json").write_text(json.dumps({**usage, "rank": rank}))
    (folder / "config.yaml").write_text(json.dumps({"name": "r", "train": {"seed": 1, **train}}))
    logs = [{"kind": "log", "tokens_per_second": speed} for speed in (10.0, 100.0, 400.0)]
    lines = [*logs, {"kind": "validation", "step": 3}]
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    config = {**BERT, "num_hidden_layers": layers}
    (folder / "encoder" / "config.json").write_text(json.dumps(config))
    return history(str(folder))


def points(pasts: list[Past]) -> list[Run]:
    return training_runs(pasts, load_prices(), currency="USD", tokens=12)


def test_a_run_is_a_point_of_devices_over_tokens_a_second(tmp_path):
    (found,) = points(run_folder(tmp_path / "runs" / "mine"))
    bert = BertConfig(**BERT, num_hidden_layers=2)
    assert (found.name, found.p) == ("runs/mine", encoder_parameters(bert) / 1e6)
    assert found.c == complexity(bert, [12])
    # 4 devices; 1/100 and 1/400 of a second a token (the first line is in the second's mean).
    seconds = 1e6 * 4 * (1 / 100 + 1 / 400) / 2
    hour = float(load_prices().instance("aws-c7i-large").on_demand.value)
    assert found.costs["hardware"] == pytest.approx(seconds / 3600 * hour / 2)


@pytest.mark.parametrize(
    "train",
    [{"freeze": "encoder"}, {"adapter": "lora"}, {"elastic_layers": [1, 2]},
     {"activation_checkpointing": True}],
)  # fmt: skip
def test_runs_that_do_other_work_for_a_token_are_no_points(train, tmp_path):
    assert points(run_folder(tmp_path / "run", **train)) == []


@pytest.mark.parametrize("missing", ["metrics.jsonl", "encoder/config.json", "usage/0.json"])
def test_runs_without_records_are_no_points(missing, tmp_path):
    pasts = run_folder(tmp_path / "run")
    (tmp_path / "run" / missing).unlink()
    if missing.startswith("usage"):
        (tmp_path / "run" / "usage" / "1.json").unlink()
    assert points(pasts) == []


def test_of_several_chips_the_runs_of_the_commonest_are_compared_each_once(tmp_path):
    pasts = [past for n, chip in enumerate(["Xeon", "EPYC", "Xeon"])
             for past in run_folder(tmp_path / f"run-{n}", layers=n + 1, chip=chip)]  # fmt: skip
    assert [one.name.split("/")[-1] for one in points([*pasts, *pasts])] == ["run-0", "run-2"]


def test_trials_of_a_search_are_points(tmp_path):
    search = tmp_path / "search"
    for number in range(2):
        run_folder(search / "trials" / f"000{number}" / "run", layers=number + 1)
    run_folder(search / "supernet", elastic_heads=[2])
    (search / "tune.yaml").write_text("way: separate")
    assert [one.name for one in points(history(str(search)))] == ["0000/run", "0001/run"]
