"""The demo goes on after interruptions, begins anew when told, and counts all of its calls."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from jobs import demo
from jobs.ask import Asked
from rectrain.errors import ConfigError, PackageError, ResourceError
from rectrain.train.storage import Store

#: Of the small model's.
ANSWER = {
    "items": [{"index": None, "item_id": "i0000001", "score": 1.5, "probability": 0.25}],
    "model": "shop",
    "versions": {"small": "a", "large": None},
    "deferred": False,
    "reason": "confident",
    "confidence": 0.9,
}


JOBS = ("prepare", "train", "evaluate", "compress", "publish", "calibrate", "tune", "cost")
KNEE = {
    "trial": 3,
    "parameters": {"layers": 1, "heads": 2},
    "objectives": {"mean_lift": 0.9, "cost_per_1000": 0.0001, "p99_ms": 4.0},
}
FRONT = {"currency": "EUR", "knee": 3, "front": [KNEE], "models": {}}


class FakeJobs:
    """Jobs that leave a finished folder with their number, and skip one that is there."""

    def __init__(self) -> None:
        self.now_s, self.number = 0.0, 0
        self.asked, self.interrupted_by = 0, ""

    def work(self, name: str, folder: Path, *files: str) -> None:
        self.now_s += 10.0
        if (folder / "number").exists():
            return
        if name == self.interrupted_by:
            raise KeyboardInterrupt
        folder.mkdir(parents=True, exist_ok=True)
        for file in ("number", *files):
            (folder / file).write_text(str(self.number))

    def prepare(self, argv: list[str]) -> None:
        self.work("prepare", given(argv, "--output"), "manifest.json")

    def train(self, argv: list[str]) -> None:
        name = "joint" if "-joint" in argv[1] else "heads"
        folder = given(argv, "--output") / ("tiny-joint" if name == "joint" else "tiny")
        self.work(name, folder, "config.yaml")

    def evaluate(self, argv: list[str]) -> None:
        self.now_s += 10.0
        facts = {"tasks": {}, "checkpoint": "c", "config": "c"}
        (Path(argv[1]) / "evaluation.json").write_text(json.dumps(facts))
        (Path(argv[1]) / "evaluation.md").write_text("# the table")

    def compress(self, argv: list[str]) -> None:
        small = given(argv, "--output")
        self.work("small", small, "compress.yaml")
        (small / "summary.md").write_text("# large and small")

    def publish(self, argv: list[str]) -> None:
        self.work("publish", given(argv, "--output"), "golden.json")

    def tune(self, argv: list[str]) -> None:
        settings = yaml.safe_load(Path(argv[1]).read_text(encoding="utf-8"))
        teacher, folder = given(argv, "--teacher"), given(argv, "--output")
        # Where the configurations say, but below the demo's own folder.
        assert f"runs/{teacher.relative_to(folder.parent)}" == settings["teacher"]
        assert f"runs/{folder.name}" == settings["output"]
        self.work("tune", folder, "tune.yaml", "front.html")
        (folder / "front.json").write_text(json.dumps(FRONT))

    def cost(self, argv: list[str]) -> None:
        assert argv[0] == "--models" and all(Path(one).is_dir() for one in argv[1:3])
        assert (given(argv, "--search") / "front.json").is_file()
        self.work("cost", given(argv, "--output"), "report.html")

    def calibrate(self, argv: list[str]) -> None:
        assert given(argv, "--large").name == "package"
        self.work("calibrate", given(argv, "--small"), "policy.json")

    @contextmanager
    def served(self, *, small: Path, large: Path, log: Path) -> Iterator[str]:
        assert (small / "policy.json").exists() and (large / "golden.json").exists()
        self.work("serve", log.with_name("served"))
        yield "http://nowhere"

    def ask(self, address: str, requests: dict[str, Any]) -> list[Asked]:
        self.asked += 1
        return [Asked(path, body, ANSWER, 5.0) for path, body in requests.items()]


def given(argv: list[str], key: str) -> Path:
    return Path(next(text for text in argv if text.startswith(f"{key}=")).partition("=")[2])


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> FakeJobs:
    fake = FakeJobs()
    for name in JOBS:
        monkeypatch.setattr(demo, name, SimpleNamespace(main=getattr(fake, name)))
    for name in ("served", "ask"):
        monkeypatch.setattr(demo, name, getattr(fake, name))
    monkeypatch.setattr(demo, "open_package", lambda path: path)
    monkeypatch.setattr(
        demo, "read_policy", lambda small, large: (small / "policy.json").exists() or None
    )
    monkeypatch.setattr(demo, "time", SimpleNamespace(monotonic=lambda: fake.now_s))
    return fake


Call = Callable[..., int]


@pytest.fixture
def call(tmp_path: Path) -> Call:
    def run(*more: str) -> int:
        return demo.main(
            ["--preset=tiny", f"--output={tmp_path}/runs", f"--data={tmp_path}/data", *more]
        )

    return run


def test_the_summary_counts_all_calls_that_the_demo_took(
    jobs: FakeJobs, call: Call, tmp_path: Path
) -> None:
    jobs.interrupted_by = "heads"
    with pytest.raises(KeyboardInterrupt):
        call()  # prepare, joint, and 10 s of heads
    jobs.interrupted_by = ""
    jobs.now_s += 1000.0  # nobody works
    # Joint is looked at again, heads, evaluate, small, three that serve, search, and cost.
    assert call() == 0
    summary = json.loads((tmp_path / "runs" / "tiny" / "summary.json").read_text())
    assert summary["wall_s"] == 30.0 + 90.0
    assert summary["peak_rss_bytes"] > 0
    made = sorted(path.name for path in (tmp_path / "runs").iterdir())
    assert made == ["tiny", "tiny-joint", "tiny-small", "tiny-tune"]


def test_a_kill_loses_no_time_that_was_counted(jobs: FakeJobs, tmp_path: Path) -> None:
    killed = demo._Spent(tmp_path / "spent.json")
    jobs.now_s = 70.0
    killed.sample()  # as each second; nothing of it runs afterwards
    jobs.now_s = 500.0
    spent = demo._Spent(tmp_path / "spent.json")
    jobs.now_s = 530.0
    spent.sample()
    assert spent.wall_s == 100.0
    assert spent.peak_rss_bytes >= killed.peak_rss_bytes > 0


@pytest.mark.parametrize("part", ["publish", "calibrate", "serve"])
def test_what_is_served_is_made_once_and_asked_once(
    part: str, jobs: FakeJobs, call: Call, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs.interrupted_by = part
    with pytest.raises(KeyboardInterrupt):
        call()
    jobs.interrupted_by = ""
    assert call() == 0 and jobs.asked == 1
    summary = json.loads((tmp_path / "runs" / "tiny" / "summary.json").read_text())
    assert list(summary["served"]) == ["recommend", "rank", "ctr", "risk"]
    assert summary["served"]["risk"]["reason"] == "confident"
    capsys.readouterr()
    assert call() == 0 and jobs.asked == 1
    assert "small model (confident), 5 ms" in capsys.readouterr().out


def test_a_search_that_was_interrupted_goes_on_and_its_knee_is_in_the_summary(
    jobs: FakeJobs, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs.interrupted_by = "tune"
    with pytest.raises(KeyboardInterrupt):
        call()
    assert not (tmp_path / "runs" / "tiny" / "cost").exists()
    jobs.interrupted_by = "cost"
    with pytest.raises(KeyboardInterrupt):
        call()
    jobs.interrupted_by = ""
    monkeypatch.setattr(demo, "tune", None)  # it has come to its end
    assert call() == 0
    summary = json.loads((tmp_path / "runs" / "tiny" / "summary.json").read_text())
    searched = summary["searched"]
    assert Path(searched["front"]).is_file()
    assert searched["knee"]["parameters"] == KNEE["parameters"]
    assert searched["knee"]["objectives"] == KNEE["objectives"]
    assert searched["knee"]["currency"] == "EUR"


@pytest.mark.parametrize("preset", demo.PRESETS)
def test_each_preset_has_the_search_that_its_configuration_says(
    preset: str, jobs: FakeJobs, tmp_path: Path
) -> None:
    found = demo._search(preset, iter(["9/10"]), tmp_path / preset)
    assert found["front"] == str(tmp_path / f"{preset}-tune" / "front.html")


def test_packages_that_are_there_are_not_made_again(
    jobs: FakeJobs, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs.interrupted_by = "serve"
    with pytest.raises(KeyboardInterrupt):
        call()
    jobs.interrupted_by = ""
    for name in ("publish", "calibrate"):
        monkeypatch.setattr(demo, name, None)
    assert call() == 0


def test_a_policy_of_other_packages_is_made_anew(
    jobs: FakeJobs, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(small: Path, large: Path) -> bool:
        raise PackageError(what="policy", got="another", rule="a rule", fix="a fix")

    small = tmp_path / "runs" / "tiny-small" / "package"
    small.mkdir(parents=True)
    (small / "policy.json").write_text("of an older model")
    monkeypatch.setattr(demo, "read_policy", refuse)
    assert call() == 0
    assert (small / "policy.json").read_text() == "0"


@pytest.mark.parametrize(
    "part", ["prepare", "joint", "heads", "small", "publish", "calibrate", "tune", "cost"]
)
def test_overwriting_that_was_interrupted_goes_on_with_nothing_old(
    part: str, jobs: FakeJobs, call: Call, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call() == 0
    jobs.number, jobs.interrupted_by = 1, part
    with pytest.raises(KeyboardInterrupt):
        call("--overwrite")
    jobs.interrupted_by = ""
    assert call() == 0
    assert "already done" not in capsys.readouterr().out
    folders = ("tiny-joint", "tiny", "tiny-small", "tiny-tune")
    for folder in ("data/tiny", *(f"runs/{name}" for name in folders)):
        assert (tmp_path / folder / "number").read_text() == "1", folder
    assert call() == 0
    printed = capsys.readouterr().out
    assert "already done" in printed and "# large and small" in printed


def test_overwriting_leaves_alone_what_is_not_the_demos(
    jobs: FakeJobs, call: Call, tmp_path: Path
) -> None:
    letter = tmp_path / "runs" / "tiny" / "letter.txt"
    letter.parent.mkdir(parents=True)
    letter.write_text("mine")
    call("--overwrite")
    assert letter.read_text() == "mine"


def test_overwriting_removes_nothing_while_another_process_writes_one_of_the_runs(
    jobs: FakeJobs, call: Call, tmp_path: Path
) -> None:
    assert call() == 0
    with Store.open(f"{tmp_path}/runs/tiny-joint").locked(), pytest.raises(ResourceError):
        call("--overwrite")
    assert (tmp_path / "runs" / "tiny" / "summary.json").exists()
    assert (tmp_path / "data" / "tiny" / "manifest.json").exists()


@pytest.mark.parametrize("option", ["--output", "--data"])
def test_a_uri_is_refused_where_a_folder_is_needed(
    option: str, jobs: FakeJobs, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for more in ([], ["--dry-run"]):
        with pytest.raises(ConfigError, match=f"^{option}: .*a folder of this machine"):
            call(f"{option}=s3://bucket/folder", *more)
    assert not list(tmp_path.iterdir())


def test_a_dry_run_removes_and_writes_nothing(jobs: FakeJobs, call: Call, tmp_path: Path) -> None:
    assert call() == 0
    before = sorted(tmp_path.rglob("*"))
    assert call("--overwrite", "--dry-run") == 0
    assert sorted(tmp_path.rglob("*")) == before


def test_a_dry_run_names_all_parts_in_the_order_in_which_they_are_done(
    jobs: FakeJobs, call: Call, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call() == 0
    done = headings(capsys.readouterr().out)
    assert [one.split("/")[0] for one in done] == [str(number) for number in range(1, 11)]
    assert call("--overwrite", "--dry-run") == 0
    assert headings(capsys.readouterr().out) == done


def headings(printed: str) -> list[str]:
    lines = [line.removeprefix("── ") for line in printed.splitlines() if line.startswith("── ")]
    return [line.partition(":")[0] for line in lines if "/10 " in line]
