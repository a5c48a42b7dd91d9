"""Which deaths are another process's, and when the run gives up."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from rectrain.errors import StorageError
from rectrain.train.launch import Deaths
from rectrain.train.worker import _lost_peer


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (torch.distributed.DistNetworkError("failed to recv, got 0 bytes"), True),
        (torch.distributed.DistBackendError("NCCL communicator was aborted"), True),
        (RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [::1]:5"), True),
        (RuntimeError("Read error [127.0.0.1]:80: Connection reset by peer"), True),
        (RuntimeError("Timed out waiting 300000ms for recv operation to complete"), True),
        (RuntimeError("can't restore the feature store: no timeout given"), False),
        (StorageError(what="s3", got="connection reset by peer", rule="r", fix="f"), False),
    ],
)
def test_only_a_lost_peer_is_a_reason_to_restart(error: Exception, lost: bool) -> None:
    assert _lost_peer(error) is lost


def test_three_deaths_without_a_new_checkpoint_end_the_run(tmp_path: Path) -> None:
    failures: list[Exception] = []
    notes: list[dict[str, str]] = []
    channel = SimpleNamespace(
        fail=SimpleNamespace(remote=failures.append), put=SimpleNamespace(remote=notes.append)
    )
    deaths = Deaths(channel, str(tmp_path))
    for number, step in enumerate((0, 0, 10, 10, 20, 20, 20)):
        if step:
            (tmp_path / "checkpoints" / f"step-{step:08d}").mkdir(parents=True, exist_ok=True)
        deaths.after_exception(None, {1: RuntimeError("trace\nOOM: killed")})
        assert len(failures) == (1 if number == 6 else 0)
    assert [note["text"] for note in notes] == ["worker 1 ended: OOM: killed"] * 7
    assert "3 deaths" in str(failures[0]) and "OOM: killed" in str(failures[0])
