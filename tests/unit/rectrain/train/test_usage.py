"""What work takes is noted while it goes on, and does not touch the work."""

from __future__ import annotations

import json
import random
import resource
import time
from contextlib import suppress

import numpy as np
import psutil
import pytest
import torch
from pyarrow import fs

from rectrain.errors import DataError
from rectrain.train import usage
from rectrain.train.storage import Store
from rectrain.train.usage import FOLDER, read_usage, recorded


def remote(tmp_path) -> Store:
    """A folder that is not on the local file system, as far as the store can see."""
    return Store(fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem()), "run")


@pytest.fixture(params=["local", "remote"])
def store(request, tmp_path):
    return Store.open(str(tmp_path / "run")) if request.param == "local" else remote(tmp_path)


def test_seconds_times_devices_of_a_finished_life(store):
    with recorded(
        store, work="train", label="toy", num_threads=3, on_gpu=False, rank=1, world_size=2
    ):
        time.sleep(0.2)
    (life,) = read_usage(store)
    assert (life.work, life.label, life.rank, life.world_size) == ("train", "toy", 1, 2)
    assert life.device == "cpu" and life.chip and life.finished
    assert 0.2 <= life.seconds < 5
    assert life.device_seconds == 3 * life.seconds
    assert life.start < life.end


def test_it_is_written_while_the_work_goes_on(store, monkeypatch):
    monkeypatch.setattr(usage, "_LOCAL_INTERVAL_S", 0.05)
    monkeypatch.setattr(usage, "_REMOTE_INTERVAL_S", 0.05)
    with recorded(store, work="tune", label="trial 3", num_threads=1, on_gpu=False):
        deadline, seen = time.monotonic() + 10, []
        while time.monotonic() < deadline:
            # Unlike an object store, a folder behind a file system's interface shows half a file.
            with suppress(DataError):
                seen = read_usage(store) if store.exists(FOLDER) else []
            if seen and seen[0].seconds >= 0.2:
                break
            time.sleep(0.02)
    assert seen[0].seconds >= 0.2 and not seen[0].finished


def test_a_failure_is_a_life_that_did_not_finish(store):
    with (
        pytest.raises(KeyError),
        recorded(store, work="compress", label="cut", num_threads=1, on_gpu=False),
    ):
        raise KeyError
    assert [life.finished for life in read_usage(store)] == [False]


def test_the_peak_holds_what_was_allocated_inside(tmp_path):
    store = Store.open(str(tmp_path))
    # More than this process, which has run other tests, has ever held.
    held, most = psutil.Process().memory_info().rss, resource.getrusage(resource.RUSAGE_SELF)
    size = max(0, most.ru_maxrss * 1024 - held) + (300 << 20)
    with recorded(store, work="train", label="large", num_threads=1, on_gpu=False):
        array = np.ones(size, dtype=np.int8)
        del array
    with recorded(store, work="train", label="small", num_threads=1, on_gpu=False):
        pass
    large, small = (life.peak_memory_bytes for life in read_usage(store))
    assert large - small > 0.8 * size  # the kernel's mark alone would say the same of both


def test_random_states_stay_as_they_were(tmp_path):
    before = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
    with recorded(Store.open(str(tmp_path)), work="train", label="t", num_threads=1, on_gpu=False):
        pass
    after = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
    assert before == after


def test_work_goes_on_where_nothing_can_be_written(tmp_path):
    (tmp_path / FOLDER).write_text("a file in the folder's place")
    with (
        pytest.warns(UserWarning, match="usage not written"),
        recorded(Store.open(str(tmp_path)), work="train", label="t", num_threads=1, on_gpu=False),
    ):
        done = True
    assert done


def test_a_folder_without_usage_has_none(store):
    assert read_usage(store) == []


@pytest.mark.parametrize(
    "change", [{"version": 2}, {"format": "other"}, {"work": "play"}, {"extra": 1}]
)
def test_another_form_is_refused(tmp_path, change):
    store = Store.open(str(tmp_path))
    with recorded(store, work="train", label="t", num_threads=1, on_gpu=False):
        pass
    (path,) = (tmp_path / FOLDER).iterdir()
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(DataError, match="usage in"):
        read_usage(store)
