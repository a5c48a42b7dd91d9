"""What trainings leave in the cluster when the process of their trial is ended.

Ray Train's controller reserves CPUs for its workers, and removes the reservation at its end. One
that dies with its trial can't. Ray's own cleaner asks the dashboard whether it lives, and waits for
ever where there is none, as in a cluster that a job starts for itself: the CPUs would be lost to
the search, and its next trials, or the training of the chosen models, would wait for them.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray._private.state import state
from ray.core.generated import gcs_pb2
from ray.util.placement_group import PlacementGroup, remove_placement_group

__all__ = ["remove_leftovers", "removing_leftovers"]

_log = logging.getLogger(__name__)
_INTERVAL_S = 2.0
_Actor: Any = getattr(gcs_pb2, "ActorTableData")  # noqa: B009 - made at import, without a type


@contextmanager
def removing_leftovers() -> Iterator[None]:
    """Removes them every few seconds while the work inside goes on."""
    ended = threading.Event()

    def loop() -> None:
        while not ended.wait(_INTERVAL_S):
            try:
                remove_leftovers()
            except Exception as error:  # as while a head is away: the next turn may do
                _log.warning("reservations of ended trials stay for now: %s", error)

    thread = threading.Thread(target=loop, name="rectrain-leftovers", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def remove_leftovers() -> int:
    """Removes this job's reservations whose workers were all started by an actor that is dead.

    Returns:
        How many.
    """
    actors = _actors()
    dead = _Actor.DEAD
    processes = {one.address.worker_id for one in actors if one.state != dead}
    gone = {one.address.worker_id for one in actors if one.state == dead} - processes - {b""}
    makers: dict[bytes, set[bytes]] = {}
    for one in actors:
        if one.placement_group_id:
            makers.setdefault(one.placement_group_id, set()).add(one.owner_address.worker_id)
    left = [group for group, owners in makers.items() if owners <= gone and _is_there(group)]
    for group in left:
        remove_placement_group(_group(group))
    return len(left)


def _actors() -> list[Any]:
    """This job's, dead ones among them."""
    accessor: Any = state._connect_and_get_accessor()
    job = ray.JobID.from_hex(ray.get_runtime_context().get_job_id())
    return [_Actor.FromString(one) for one in accessor.get_actor_table(job, None)]


def _is_there(group: bytes) -> bool:
    found: Any = ray.util.placement_group_table(_group(group))
    return found.get("state") not in (None, "REMOVED")


def _group(group: bytes) -> PlacementGroup:
    return PlacementGroup(ray.PlacementGroupID(group))
