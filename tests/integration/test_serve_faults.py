"""The serving graph loses no request to a death, an update or a broken version; TLS."""

from __future__ import annotations

import json
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
import requests
from ray import serve
from served_toy import write_pair

from benchmarks import faults
from rectrain.package import Package
from serve.app import start
from serve.config import Settings

pytestmark = pytest.mark.timeout(600)
ZEROS = ("R1/wrong", "R1/lost", "R1/unlogged", "R3/failed", "R3/broken_failed", "R3/broken_taken")


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Package]:
    return write_pair(tmp_path_factory.mktemp("faults"))


@pytest.fixture
def ray_here() -> Iterator[None]:
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    serve.shutdown()
    ray.shutdown()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def test_killed_replicas_an_update_and_a_broken_version_cost_no_request(packages, tmp_path):
    arguments = [
        *("--quick", "--only", "R1", "R3", "--candidates", "8"),
        *(f"--small={packages['small'].path}", f"--large={packages['large'].path}"),
        *(f"--port={free_port()}", f"--output={tmp_path}"),
    ]
    faults.main(arguments)
    figures = {
        one["id"]: one["value"] for one in json.loads((tmp_path / "faults.json").read_text())
    }
    assert {name: figures[name] for name in ZEROS} == dict.fromkeys(ZEROS, 0)


def test_https_with_a_certificate_of_ones_own(ray_here, packages, tmp_path):
    certificate, key = self_signed(tmp_path)
    port = free_port()
    settings = Settings.model_validate(
        {
            "models": {"shop": {"small": str(packages["small"].path), "small_backend": "torch"}},
            "http": {"port": port, "ssl_certfile": str(certificate), "ssl_keyfile": str(key)},
        }
    )
    start(settings)
    answer = requests.get(f"https://localhost:{port}/readyz", verify=str(certificate), timeout=60)
    assert answer.json() == {"status": "ready"}
    with pytest.raises(requests.ConnectionError):
        requests.get(f"http://localhost:{port}/readyz", timeout=60)


def self_signed(folder: Path) -> tuple[Path, Path]:
    """A certificate of localhost and its key, as PEM files."""
    certificate, key = folder / "cert.pem", folder / "key.pem"
    command = (
        "openssl req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=localhost"
        f" -addext subjectAltName=DNS:localhost -keyout {key} -out {certificate}"
    )
    subprocess.run(command.split(), check=True, capture_output=True)
    return certificate, key
