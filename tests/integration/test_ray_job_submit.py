"""`ray job submit` on a cluster with token authentication: the token's holder, and nobody else."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent


@dataclass(frozen=True)
class Cluster:
    """A head node of our own: its dashboard, and environments with and without the token."""

    address: str
    with_token: dict[str, str]
    without_token: dict[str, str]

    def submit(self, *entrypoint: str, environment: dict[str, str]) -> tuple[int, str]:
        """Run `ray job submit` as a user would; return its status and all it printed."""
        command = [str(BIN / "ray"), "job", "submit", "--address", self.address]
        done = subprocess.run(
            [*command, "--working-dir", ".", "--", *entrypoint],
            cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, timeout=600, check=False,
        )  # fmt: skip
        return done.returncode, done.stdout


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def start_head(environment: dict[str, str], *, folder: Path) -> tuple[subprocess.Popen[bytes], str]:
    names = ("port", "dashboard-port", "dashboard-agent-listen-port", "dashboard-agent-grpc-port",
             "metrics-export-port", "runtime-env-agent-port", "ray-client-server-port")  # fmt: skip
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    command = [str(BIN / "ray"), "start", "--head", "--block", "--num-cpus=2"]
    command += [
        "--node-ip-address=127.0.0.1",
        "--dashboard-host=127.0.0.1",
        "--disable-usage-stats",
    ]
    command += [f"--temp-dir={folder / 'ray'}", "--min-worker-port=0", "--max-worker-port=0"]
    command += [f"--object-store-memory={300 * 2**20}"]
    command += [f"--{name}={port}" for name, port in ports.items()]
    with (folder / "head.log").open("wb") as log:
        process = subprocess.Popen(
            command, env=environment, stdout=log, stderr=subprocess.STDOUT, cwd=folder
        )
    return process, f"http://127.0.0.1:{ports['dashboard-port']}"


def status(address: str, *, token: str | None = None) -> int | None:
    """The HTTP status of the jobs endpoint; None while nobody answers."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        request = urllib.request.Request(f"{address}/api/jobs/", headers=headers)
        with urllib.request.urlopen(request, timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return None


def stop(process: subprocess.Popen[bytes]) -> None:
    """End the head and what it started, by process id: `ray stop` would end others' clusters."""
    family = psutil.Process(process.pid).children(recursive=True)
    process.terminate()
    try:
        process.wait(timeout=30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for one in psutil.wait_procs(family, timeout=5)[1]:
        one.kill()


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    # Not pytest's folder: Ray's sockets need a path below 108 bytes.
    folder = Path(tempfile.mkdtemp(prefix="rt-"))
    token = folder / "token"
    token.write_text("0123456789abcdef" * 4)
    base = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    base |= {"PATH": f"{BIN}:{os.environ['PATH']}", "HOME": str(folder), "OMP_NUM_THREADS": "1"}
    with_token = base | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    process, address = start_head(with_token, folder=folder)
    try:
        deadline = time.monotonic() + 120
        while status(address, token=token.read_text()) != 200:
            assert process.poll() is None and time.monotonic() < deadline, (
                folder / "head.log"
            ).read_text()
            time.sleep(0.5)
        yield Cluster(address, with_token, base)
    finally:
        stop(process)
        shutil.rmtree(folder, ignore_errors=True)


def test_without_the_token_a_job_is_refused(cluster):
    assert status(cluster.address) == 401
    assert status(cluster.address, token="f" * 64) == 403
    code, printed = cluster.submit("echo", "it ran", environment=cluster.without_token)
    assert code != 0
    assert "401" in printed or "Unauthorized" in printed or "authentication" in printed
    assert "it ran" not in printed


def test_a_tiny_run_trains_as_a_job(cluster, marketplace, tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text(
        f"name: tiny\noutput: {tmp_path / 'runs'}\ndata: {{paths: [{marketplace}]}}\n"
        "model: {encoder: tiny}\ntrain: {num_steps: 2, num_workers: 2}\n"
    )
    code, printed = cluster.submit(
        "python", "-m", "jobs.train", "--config", str(config), "--train.zero_stage=1",
        environment=cluster.with_token,
    )  # fmt: skip
    assert code == 0, printed
    assert "step 1/2  loss: " in printed and "step 2/2  loss: " in printed
    run = tmp_path / "runs" / "tiny"
    assert (run / "checkpoints" / "step-00000002" / "COMPLETE").is_file()
    assert yaml.safe_load((run / "config.yaml").read_text())["train"]["zero_stage"] == 1


def test_a_mistake_in_a_job_is_one_line_and_fails_the_job(cluster):
    code, printed = cluster.submit(
        "python", "-m", "jobs.train", "--train.zero_stge=2", environment=cluster.with_token
    )
    assert code != 0
    assert "got an unknown key" in printed and "did you mean train.zero_stage?" in printed
    assert "Traceback" not in printed  # Ray repeats the line in its own report
