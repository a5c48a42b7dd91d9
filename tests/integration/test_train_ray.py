"""Runs under Ray Train: killed workers change nothing, and a run can be watched and exported."""

from __future__ import annotations

import os
import random
import re
import signal
import threading
import time
import urllib.request
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
import torch
from safetensors.torch import load_file

from benchmarks.one_process import in_processes, train_here
from jobs import evaluate, train
from rectrain.train.config import RunConfig
from rectrain.train.selection import checkpoint_steps
from rectrain.train.storage import Store
from rectrain.train.tracking import read_records

NUM_STEPS = 20
GAUGES = {
    "rectrain_train_step",
    "rectrain_train_loss",
    "rectrain_train_loss_weight",
    "rectrain_train_tokens_per_second",
    "rectrain_train_learning_rate",
    "rectrain_train_gradient_norm",
    "rectrain_train_validation",
}


@pytest.fixture(scope="module")
def cluster(marketplace: Path) -> Iterator[Path]:
    """A local cluster that exports its metrics often; the prepared data."""
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        _system_config={"metrics_report_interval_ms": 500},
    )
    yield marketplace
    ray.shutdown()


def arguments(data: Path, output: Path, name: str, *more: str) -> list[str]:
    begins_anew = not any(setting.startswith("--train.start_from") for setting in more)
    return [
        f"--data.paths={data}",
        f"--output={output}",
        f"--name={name}",
        *(["--model.encoder=tiny"] if begins_anew else []),
        "--model.dropout=0.1",
        "--data.tokens_per_micro_batch=256",
        "--train.num_workers=2",
        "--train.learning_rate=1e-3",
        "--train.balancer=uncertainty",  # its weights change, as every gauge should
        f"--train.num_steps={NUM_STEPS}",
        "--train.checkpoint_interval=4",
        "--train.evaluate_interval=10",
        "--train.evaluate_rows=50",
        "--train.log_interval=1",
        "--train.collective_timeout_s=30",
        "--tracking.mlflow=off",
        *more,
    ]


def final_tensors(run: Path, step: int = NUM_STEPS) -> dict[str, torch.Tensor]:
    """Weights and moments; which rank wrote a tensor must not matter."""
    tensors = {}
    for part in (run / "checkpoints" / f"step-{step:08d}").glob("*.safetensors"):
        tensors |= load_file(part)
    return tensors


def last_step(run: Path) -> int:
    return max((record["step"] for record in read_records(run / "metrics.jsonl")), default=0)


def newest_checkpoint(run: Path) -> int:
    """Its step; 0 before the first."""
    return max(checkpoint_steps(Store.open(str(run)).sub("checkpoints")), default=0)


def kill_workers(run: Path, at: list[int], done: threading.Event) -> list[int]:
    """SIGKILLs one training worker when each of the steps has been logged; the steps it met.

    A log is some steps late. Without a new checkpoint since the last kill it waits for one: runs
    end themselves when they die again and again at one place.
    """
    killed: list[int] = []
    before = -1
    for number, step in enumerate(at):
        while not done.is_set() and (last_step(run) < step or newest_checkpoint(run) <= before):
            time.sleep(0.05)
        before = newest_checkpoint(run)
        workers = training_workers()
        while not done.is_set() and not workers:
            time.sleep(0.05)
            workers = training_workers()
        if workers:
            os.kill(workers[number % len(workers)], signal.SIGKILL)
            killed.append(step)
    return killed


def killing(run: Path, at: list[int], action: Callable[[], int]) -> tuple[int, list[int]]:
    """What an action returns while workers are killed beside it; and the steps of the kills."""
    killed: list[int] = []
    return beside(lambda done: killed.extend(kill_workers(run, at, done)), action), killed


def beside(work: Callable[[threading.Event], None], action: Callable[[], Any]) -> Any:
    """What an action returns while another thread works, until it is told that this is done."""
    done = threading.Event()
    thread = threading.Thread(target=work, args=(done,))
    thread.start()
    try:
        return action()
    finally:
        done.set()
        thread.join()


def training_workers() -> list[int]:
    """Processes of this test's cluster that train."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if "RayTrainWorker" in " ".join(process.cmdline()):
                found.append(process.pid)
        except psutil.Error:
            continue
    return sorted(found)


def watched(action: Callable[[], Any], observe: Callable[[], None]) -> Any:
    """Runs an action while another thread observes every half second."""

    def loop(done: threading.Event) -> None:
        while not done.wait(0.5):
            observe()

    return beside(loop, action)


def scrape(seen: dict[str, set[float]]) -> None:
    """Adds the values of all our gauges that the node's agent exports now."""
    port = ray.nodes()[0]["MetricsExportPort"]
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as response:
            text = response.read().decode()
    except OSError:  # the agent is not up yet
        return
    for name, tags, value in re.findall(r"^ray_(rectrain_\w+)\{(.*)\} (\S+)$", text, re.M):
        task = re.search(r'task="(\w*)"', tags)
        seen[f"{name}/{task.group(1)}" if task and task.group(1) else name].add(float(value))


@pytest.fixture(scope="module")
def straight(cluster: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """An uninterrupted run, and the values that its gauges took."""
    output = tmp_path_factory.mktemp("straight")
    seen: dict[str, set[float]] = defaultdict(set)
    status = watched(
        lambda: train.main(arguments(cluster, output, "straight")), lambda: scrape(seen)
    )
    assert status == 0
    return output / "straight", seen


def test_every_gauge_changes(straight: tuple[Path, dict[str, set[float]]]) -> None:
    _, seen = straight
    assert {name.partition("/")[0] for name in seen} == GAUGES
    changed = {name.partition("/")[0] for name, values in seen.items() if len(values) > 1}
    assert changed == GAUGES
    assert max(seen["rectrain_train_step"]) == NUM_STEPS
    losses = {name for name in seen if name.startswith("rectrain_train_loss/")}
    assert len(losses) == 4


def test_the_run_leaves_what_it_names(
    straight: tuple[Path, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import AutoModel, AutoTokenizer

    run = straight[0]
    assert list((run / "tensorboard").glob("events.*"))
    assert (run / "curves.png").stat().st_size > 10_000
    records = read_records(run / "metrics.jsonl")
    assert [r["step"] for r in records if r["kind"] == "log"] == list(range(1, NUM_STEPS + 1))
    assert [r["step"] for r in records if r["kind"] == "validation"] == [10, NUM_STEPS]
    encoder = AutoModel.from_pretrained(run / "encoder")
    weights = {k: v for k, v in final_tensors(run).items() if k.startswith("encoder.")}
    for name, tensor in encoder.state_dict().items():
        if not name.startswith("pooler."):
            assert torch.equal(tensor, weights[f"encoder.{name}"]), name
    assert AutoTokenizer.from_pretrained(run / "encoder")("red shoes")["input_ids"]


@pytest.mark.parametrize(
    "num_kills",
    [pytest.param(2, id="2 kills"), pytest.param(10, id="10 kills", marks=pytest.mark.slow)],
)
def test_killed_workers_change_nothing(
    cluster: Path, straight: tuple[Path, Any], tmp_path: Path, num_kills: int
) -> None:
    # Anew each time, one in every 7 steps and none in the last 6; shown on failure.
    steps = [random.randint(start + 1, start + 7) for start in range(0, 7 * num_kills, 7)]
    num_steps = 7 * num_kills + 6
    length = f"--train.num_steps={num_steps}"
    whole, run = straight[0], tmp_path / "killed"
    if num_steps != NUM_STEPS:
        whole = tmp_path / "whole"
        assert train.main(arguments(cluster, tmp_path, "whole", length)) == 0
    status, killed = killing(
        run, steps, lambda: train.main(arguments(cluster, tmp_path, "killed", length))
    )
    assert (status, killed) == (0, steps)
    expected, got = final_tensors(whole, num_steps), final_tensors(run, num_steps)
    assert expected.keys() == got.keys()
    assert not [name for name in expected if not torch.equal(expected[name], got[name])]
    records = read_records(run / "metrics.jsonl")
    reference = read_records(whole / "metrics.jsonl")
    assert [(r["kind"], r["step"]) for r in records] == [(r["kind"], r["step"]) for r in reference]
    assert [r.get("loss") for r in records] == [r.get("loss") for r in reference]


def test_one_process_without_ray_comes_to_the_same(
    cluster: Path, straight: tuple[Path, Any], tmp_path: Path
) -> None:
    settings = arguments(cluster, tmp_path, "alone")
    in_processes(partial(train_here, job=RunConfig), [settings], processes=1)
    expected, got = final_tensors(straight[0]), final_tensors(tmp_path / "alone")
    assert expected.keys() == got.keys()
    weights = {n: t for n, t in expected.items() if not n.startswith("exp_avg")}
    for name, tensor in weights.items():
        if not name.endswith("key.bias"):  # its gradient is zero but for rounding
            # Adam makes steps of the learning rate, here 1e-3, of gradients that are little more
            # than rounding, which differs by processor. test_train_parity has the bound of 1e-5.
            assert (got[name] - tensor).norm() <= 5e-5 * tensor.norm(), name


@pytest.mark.slow
def test_heads_alone_leave_the_encoder_as_it_was_and_survive_a_kill(
    cluster: Path, straight: tuple[Path, Any], tmp_path: Path
) -> None:
    alone = ["--train.freeze=encoder", f"--train.start_from={straight[0]}"]
    assert train.main(arguments(cluster, tmp_path, "heads", *alone)) == 0
    before, after = final_tensors(straight[0]), final_tensors(tmp_path / "heads")
    trained = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert not [name for name in after if "encoder." in name and name in trained]
    assert not [name for name in after if name.startswith("exp_avg/encoder.")]
    heads = {name.split(".")[1] for name in trained if name.startswith("tasks.")}
    assert heads == {"recommendation", "search_ranking", "ad_ctr", "risk"}
    status, killed = killing(
        tmp_path / "again", [11], lambda: train.main(arguments(cluster, tmp_path, "again", *alone))
    )
    assert (status, killed) == (0, [11])
    again = final_tensors(tmp_path / "again")
    assert not [name for name in after if not torch.equal(after[name], again[name])]


@pytest.mark.slow
def test_a_run_that_stops_early_comes_to_its_best_checkpoint_also_after_a_kill(
    cluster: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from rectrain.train.build import load_model

    # No validation is better by 1 than the first: the run ends at the third.
    early = [
        "--train.evaluate_interval=2", "--train.early_stopping=2", "--train.min_delta=1",
        "--train.watch=ad_ctr",
    ]  # fmt: skip
    assert train.main(arguments(cluster, tmp_path, "early", *early)) == 0
    said = capsys.readouterr().out
    assert "stopped early at step 6: 2 validations in a row without a gain of ad_ctr" in said
    records = read_records(tmp_path / "early" / "metrics.jsonl")
    scores = {r["step"]: r["validation"]["ad_ctr"] for r in records if r["kind"] == "validation"}
    assert list(scores) == [2, 4, 6] and last_step(tmp_path / "early") == 6
    best = max(scores, key=lambda step: (scores[step], step))
    assert f"best          {tmp_path}/early/checkpoints/step-{best:08d}" in said
    assert load_model(str(tmp_path / "early")).checkpoint.step == best
    exported = load_file(tmp_path / "early" / "encoder" / "model.safetensors")
    chosen = final_tensors(tmp_path / "early", best)
    assert all(torch.equal(value, chosen[f"encoder.{name}"]) for name, value in exported.items())
    assert f"for {best} steps" in (tmp_path / "early" / "encoder" / "README.md").read_text()
    assert evaluate.main([f"--checkpoint={tmp_path}/early", "--dry-run"]) == 0
    chosen_by = f"(step {best}, the best of validation: ad_ctr {scores[best]:.4f})"
    assert chosen_by in capsys.readouterr().out
    assert train.main(arguments(cluster, tmp_path, "early", *early)) == 0
    assert f"already finished: {tmp_path}/early/checkpoints/step-{best:08d}" in (
        capsys.readouterr().out
    )
    status, killed = killing(
        tmp_path / "again", [5], lambda: train.main(arguments(cluster, tmp_path, "again", *early))
    )
    assert (status, killed) == (0, [5])
    expected, got = final_tensors(tmp_path / "early", 6), final_tensors(tmp_path / "again", 6)
    assert not [name for name in expected if not torch.equal(expected[name], got[name])]
    assert load_model(str(tmp_path / "again")).checkpoint.step == best


@pytest.mark.slow
def test_rates_that_follow_validation_survive_a_kill(cluster: Path, tmp_path: Path) -> None:
    plateau = [
        "--train.schedule=plateau", "--train.evaluate_interval=4", "--train.min_delta=1",
        "--train.plateau_patience=1", "--train.warmup_share=0",
    ]  # fmt: skip
    assert train.main(arguments(cluster, tmp_path, "plateau", *plateau)) == 0
    status, killed = killing(
        tmp_path / "again",
        [14],
        lambda: train.main(arguments(cluster, tmp_path, "again", *plateau)),
    )
    assert (status, killed) == (0, [14])
    for run in ("plateau", "again"):
        records = read_records(tmp_path / run / "metrics.jsonl")
        rates = [r["learning_rate"] for r in records if r["kind"] == "log"]
        # The first validation is a gain; each further one halves.
        expected = [1.0] * 8 + [0.5] * 4 + [0.25] * 4 + [0.125] * 4
        assert rates == pytest.approx([1e-3 * share for share in expected])
    expected, got = final_tensors(tmp_path / "plateau"), final_tensors(tmp_path / "again")
    assert not [name for name in expected if not torch.equal(expected[name], got[name])]


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(["lora"], id="lora"),
        pytest.param(
            ["adalora", "--train.zero_stage=0", "--train.optimizer=adafactor"], id="adalora"
        ),
    ],
)
def test_adapters_are_merged_on_export_and_may_be_started_from(
    cluster: Path, straight: tuple[Path, Any], tmp_path: Path, kind: list[str]
) -> None:
    from transformers import AutoModel

    more = [f"--train.adapter={kind[0]}", f"--train.start_from={straight[0]}", *kind[1:]]
    assert train.main(arguments(cluster, tmp_path, "adapted", *more)) == 0
    before, after = final_tensors(straight[0]), final_tensors(tmp_path / "adapted")
    frozen = {n.replace(".base_layer", ""): t for n, t in after.items() if n.startswith("encoder.")}
    exported = load_file(tmp_path / "adapted" / "encoder" / "model.safetensors")
    for name, tensor in exported.items():
        assert torch.equal(before[f"encoder.{name}"], frozen[f"encoder.{name}"]), name
        is_adapted = name.endswith(("query.weight", "key.weight", "value.weight", "dense.weight"))
        assert torch.equal(tensor, before[f"encoder.{name}"]) is not is_adapted, name
    loaded, info = AutoModel.from_pretrained(
        tmp_path / "adapted" / "encoder", output_loading_info=True, add_pooling_layer=False
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert set(loaded.state_dict()) == set(exported)
    again = [f"--train.start_from={tmp_path / 'adapted'}", "--train.freeze=encoder"]
    assert train.main(arguments(cluster, tmp_path, "heads", *again)) == 0
    heads = final_tensors(tmp_path / "heads")
    assert all(torch.equal(heads[f"encoder.{name}"], value) for name, value in exported.items())


def test_a_finished_run_says_so(
    cluster: Path, straight: tuple[Path, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert train.main(arguments(cluster, straight[0].parent, "straight")) == 0
    assert "already finished" in capsys.readouterr().out
