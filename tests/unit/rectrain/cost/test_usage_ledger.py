"""Measured work as entries of the ledger."""

from __future__ import annotations

import json
from dataclasses import asdict
from fractions import Fraction

import pytest

from rectrain.cost.measure import (
    device_hours,
    history,
    maker,
    most_memory,
    training_ledger,
)
from rectrain.cost.prices import load_prices
from rectrain.errors import ConfigError, DataError
from rectrain.train.usage import Usage

PRICES = load_prices()
CPU = PRICES.instance("aws-c7i-2xlarge")  # 8 devices, 0.357 an hour


def of(**instances):
    """Prices with these instances alone."""
    return PRICES.model_copy(update={"instances": instances})


def life(seconds, *, work="train", day=1, **changes):
    values = {
        "work": work, "label": "l", "device": "cpu", "chip": "Xeon", "num_devices": 2, "rank": 0,
        "world_size": 1, "start": f"2026-01-{day:02}T00:00:00.000+00:00",
        "end": f"2026-01-{day:02}T01:00:00.000+00:00", "seconds": seconds,
        "peak_memory_bytes": 1 << 20, "finished": True,
    }  # fmt: skip
    return Usage(**{**values, **changes})


def write(folder, *lives, settings=None):
    """A folder with these lives, and maybe the settings of a run or a compression."""
    (folder / "usage").mkdir(parents=True)
    for number, one in enumerate(lives):
        content = {"format": "rectrain-usage", "version": 1, **asdict(one)}
        (folder / "usage" / f"{number}.json").write_text(json.dumps(content))
    for name, text in (settings or {"config.yaml": "name: r"}).items():
        (folder / name).write_text(text)
    return folder


@pytest.mark.parametrize(
    "text",
    [
        "- a\n- b",
        "site_name: docs\nnav: []",
        "apiVersion: v1\nkind: Config",
        "a: [",
        "train: all",
        "model: {encoder: {layers: 6}}\ntrain: {lr: 0.1, teacher: [1]}",
    ],
    ids=["list", "pages", "cluster", "damaged", "train", "another trainer's"],
)
def test_somebody_elses_settings_make_no_run(tmp_path, text):
    (tmp_path / "config.yaml").write_text(text)
    (tmp_path / "package").mkdir()
    assert maker(str(tmp_path / "package")) is None
    with pytest.raises(DataError, match="must be a run"):
        history(str(tmp_path / "package"))
    # A run that is older than the recording of usage is one all the same.
    run = tmp_path / "run"
    write(run, life(1), settings={"config.yaml": f"model: {{encoder: {tmp_path}/encoder}}"})
    assert [past.folder for past in history(str(run))] == [str(run)]  # and it made no encoder
    (tmp_path / "config.yaml").write_text("model: {encoder: tiny}\ntrain: {zero_stage: 0}")
    (past,) = history(str(tmp_path / "package"))
    assert (past.folder, past.lives) == (str(tmp_path), ())


def test_device_seconds_of_all_lives_cost_instance_hours(tmp_path):
    run = write(tmp_path / "run", life(1000), life(800, day=2, finished=False))
    (past,) = history(str(run))
    assert past.device_seconds == 2 * 1800
    assert device_hours([past]) == {"cpu": 1.0}
    entry, _ = training_ledger([past], of(mine=CPU))
    assert (entry.stage, entry.part, entry.kind) == ("pretraining", "training", "hardware")
    assert entry.amount == Fraction("0.357") / 8  # one hour of one of its eight devices
    assert "measured 3,600 device-seconds on Xeon in 2 lives; on mine, on demand" in entry.source
    assert CPU.on_demand.cited in entry.source


def test_the_most_memory_stands_beside_the_time_and_costs_nothing(tmp_path):
    pair = [life(10, rank=rank, world_size=2, day=day, peak_memory_bytes=(size << 30))
            for day, rank, size in ((1, 0, 3), (1, 1, 1), (2, 0, 2), (2, 1, 2))]  # fmt: skip
    alone = life(10, label="measured", day=3, peak_memory_bytes=4 << 30)
    pasts = history(str(write(tmp_path / "run", *pair, alone)))
    assert most_memory(pasts[0].lives) == 5 << 30  # 3 and 2, each rank at its worst
    assert most_memory([alone]) == 4 << 30 and most_memory([]) == 0
    time, memory = training_ledger(pasts, of(mine=CPU))
    assert (memory.quantity, memory.unit, memory.amount) == (5, "gib held", 0)
    assert (memory.stage, memory.part) == (time.stage, time.part)
    assert memory.label == "train run: most memory of processes"


def test_a_faster_device_takes_less(tmp_path):
    pasts = history(str(write(tmp_path / "run", life(1800))))
    twice = CPU.model_copy(update={"speed": 2.0})
    one, half = (training_ledger(pasts, of(i=each)).total() for each in (CPU, twice))
    assert one == 2 * half


def test_what_went_into_a_model_counts_once_and_in_order(tmp_path):
    pre = write(tmp_path / "pre", life(10, work="pretrain"))
    joint = write(
        tmp_path / "joint", life(20),
        settings={"config.yaml": f"model: {{encoder: {pre}/encoder}}"},
    )  # fmt: skip
    heads = write(
        tmp_path / "heads", life(5),
        settings={"config.yaml": f"train: {{start_from: {joint}/checkpoints/step-00000009,"
                                 f" teacher: {joint}/checkpoints/step-00000009}}"},
    )  # fmt: skip
    small = write(
        tmp_path / "small", life(3, work="compress"),
        settings={"compress.yaml": f"teacher: {heads}/checkpoints/step-00000002"},
    )  # fmt: skip
    write(
        small / "distilled", life(40), settings={"config.yaml": f"model: {{encoder: {small}/cut}}"}
    )
    write(small / "heads", life(2))
    package = small / "package"
    package.mkdir()
    pasts = history(str(package))
    assert [past.folder for past in pasts] == [str(one) for one in (pre, joint, heads, small)]
    assert [past.device_seconds / 2 for past in pasts] == [10, 20, 5, 45]
    ledger = training_ledger(pasts, of(i=CPU))
    shares = {key: amount / ledger.total() for key, amount in ledger.totals("stage").items()}
    assert shares == {("pretraining",): Fraction(35, 80), ("tuning",): Fraction(45, 80)}


def test_a_run_of_before_usage_was_recorded_has_no_lives(tmp_path):
    run = tmp_path / "old"
    run.mkdir()
    (run / "config.yaml").write_text(
        f"train: {{zero_stage: 2, start_from: {tmp_path}/gone/checkpoints/step-1}}"
    )
    pasts = history(str(run))
    assert [(past.folder, past.lives) for past in pasts] == [
        (f"{tmp_path}/gone", ()),
        (str(run), ()),
    ]
    assert device_hours(pasts) == {} and len(training_ledger(pasts, of(i=CPU))) == 0


@pytest.fixture
def search(tmp_path):
    """A search with a teacher, a super-network, a trial with a run and one without."""
    teacher = write(tmp_path / "teacher", life(100))
    root = write(
        tmp_path / "search", life(7, work="tune"), life(8, work="tune", day=3),
        settings={"tune.yaml": f"teacher: {teacher}/checkpoints/step-00000002"},
    )  # fmt: skip
    inner = {"config.yaml": f"train: {{teacher: {teacher}/checkpoints/step-00000002}}"}
    write(root / "supernet", life(50, day=2), settings=inner)
    write(root / "trials" / "0000" / "run", life(20, day=4), settings=inner)
    (root / "trials" / "0001.json").write_text("{}")
    return root


def test_a_search_is_tuning_with_its_super_network_and_its_trials_runs(search):
    teacher, past = history(str(search))
    assert (teacher.work, past.work, past.folder) == ("train", "tune", str(search))
    assert [one.seconds for one in past.lives] == [7, 50, 8, 20]
    ledger = training_ledger([teacher, past], of(i=CPU))
    totals = ledger.totals("stage", "part")
    assert {key: amount / ledger.total() for key, amount in totals.items()} == {
        ("pretraining", "training"): Fraction(100, 185), ("tuning", "resources"): Fraction(85, 185)
    }  # fmt: skip


@pytest.mark.parametrize("work", ["compress", "train"])
def test_what_a_search_chose_has_the_search_behind_it_once(search, work):
    chosen = search / "chosen" / "trial-0000"
    teacher, encoder = f"{search.parent}/teacher/checkpoints/step-00000002", f"{chosen}/cut"
    if work == "compress":
        made = package = chosen / "made"
        settings = {"compress.yaml": f"teacher: {teacher}\nencoder: {encoder}"}
    else:  # its heads' run, and the package beside it
        made, package = chosen / "heads", chosen / "package"
        settings = {"config.yaml": f"model: {{encoder: {encoder}}}\ntrain: {{teacher: {teacher}}}"}
    write(made, life(5, work=work), settings=settings)
    pasts = history(str(package))
    assert [past.folder for past in pasts] == [
        str(search.parent / "teacher"), str(search), str(made)
    ]  # fmt: skip
    assert [past.work for past in pasts] == ["train", "tune", work]
    assert [past.device_seconds / 2 for past in pasts] == [100, 85, 5]


def test_usage_alone_says_what_it_was(tmp_path):
    study = write(tmp_path / "study", life(7, work="tune"), settings={"notes": ""})
    entry, _ = training_ledger(history(str(study)), of(i=CPU))
    assert (entry.stage, entry.part) == ("tuning", "resources")


def test_each_kind_of_device_is_paid_on_a_machine_of_its_kind(tmp_path):
    lives = (life(3600, num_devices=1), life(7200, num_devices=1, device="gpu", chip="NVIDIA L4"),
             life(3600, num_devices=1, device="gpu", chip="unheard of"))  # fmt: skip
    pasts = history(str(write(tmp_path / "run", *lives)))
    assert device_hours(pasts) == {"cpu": 1.0, "gpu": 3.0}
    ledger = [entry for entry in training_ledger(pasts, PRICES) if entry.amount]
    first, alike = PRICES.instance("aws-g4dn-xlarge"), PRICES.instance("aws-g6-xlarge")
    assert sorted(entry.amount for entry in ledger) == sorted(
        [PRICES.instance("aws-c7i-large").on_demand.value / 2,
         2 * alike.on_demand.value, first.on_demand.value]
    )  # fmt: skip
    assert sum("on aws-g6-xlarge" in entry.source for entry in ledger) == 1
    with pytest.raises(ConfigError, match=r"none with a gpu.*add a gpu instance"):
        training_ledger(pasts, of(i=CPU))


@pytest.mark.parametrize(
    ("device", "recorded", "instance"),
    [("cpu", "Intel(R) Xeon(R) Platinum 8488C", "aws-c7i-large"),
     ("gpu", "Tesla T4", "aws-g4dn-xlarge"), ("gpu", "NVIDIA A10G", "aws-g5-xlarge")],
)  # fmt: skip
def test_a_chip_is_known_by_the_name_that_it_gives_itself(tmp_path, device, recorded, instance):
    lives = [life(3600, num_devices=1, device=device, chip=recorded)]
    pasts = history(str(write(tmp_path / "run", *lives)))
    others = {"cpu": CPU, "gpu": PRICES.instance("aws-g6-xlarge")}
    first = others[device].model_copy(update={"chip": "another", "chips": ()})
    entry, _ = training_ledger(pasts, of(first=first, **PRICES.instances))
    assert f"; on {instance}, on demand" in entry.source
    assert PRICES.instance(instance).on_demand.cited in entry.source


def test_another_folder_is_refused(tmp_path):
    with pytest.raises(DataError, match="folder of a model"):
        history(str(tmp_path / "nothing"))
