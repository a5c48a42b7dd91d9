"""A search before it starts: what it will do, and how many trials run at a time."""

from __future__ import annotations

from collections.abc import Mapping

from rectrain.errors import ResourceError, without_credentials
from rectrain.tune.config import SearchConfig
from rectrain.tune.space import Point, Space

__all__ = [
    "describe_search",
    "needed_cpus",
    "num_concurrent",
    "point_text",
    "trial_resources",
]


def trial_resources(config: SearchConfig) -> dict[str, float]:
    """What Tune reserves for one trial's own process.

    A separate one has no CPU: what it waits for, Ray Train's workers, asks for its own, and a trial
    that held CPUs while its workers wait for them would wait for ever. Tune wants something to
    reserve, so it is a byte.
    """
    if config.way == "separate":
        return {"memory": 1.0}
    return {"CPU": float(config.threads_per_trial)}


def needed_cpus(config: SearchConfig) -> int:
    """CPUs that one trial keeps busy, its workers' among them."""
    if config.way == "elastic":
        return config.threads_per_trial
    return config.train.min_workers * config.train.threads_per_worker


def num_concurrent(config: SearchConfig, have: Mapping[str, float]) -> int:
    """How many trials run at a time: all that they need is there for each of them.

    Args:
        config: of the search.
        have: the cluster's "CPU" and "GPU".

    Raises:
        ResourceError: not even one fits.
    """
    cpus = have.get("CPU", 0.0)
    fitting = int(cpus // needed_cpus(config))
    gpus = have.get("GPU", 0.0)
    if config.way == "separate" and gpus:
        fitting = min(fitting, int(gpus // config.train.min_workers))
    if fitting == 0:
        raise ResourceError(
            what="a trial",
            got=f"{needed_cpus(config)} CPUs that it keeps busy",
            rule=f"the cluster has {cpus:g} CPUs and {gpus:g} GPUs",
            fix="lower train.num_workers, train.threads_per_worker or threads_per_trial, or add "
            "nodes",
        )
    return min(fitting, config.max_concurrent or fitting)


def describe_search(config: SearchConfig, space: Space, *, num_finished: int) -> str:
    """The plan as text.

    Args:
        config: of the search.
        space: its points.
        num_finished: trials that have ended before.
    """
    small, large = (space.bert_config(point) for point in (space.smallest, space.largest))
    sizes = " to ".join(
        f"{one.num_hidden_layers} layers of {one.hidden_size}, {one.num_attention_heads} heads, "
        f"inner size {one.intermediate_size}"
        for one in (small, large)
    )
    values = "; ".join(
        f"{name} {', '.join(map(str, values))}" for name, values in space.values.items()
    )
    train, limits = config.train, config.limits.model_dump(exclude_none=True)
    bounds = ", ".join(f"{name} ≤ {value:g}" for name, value in limits.items()) or "none"
    budget = "" if config.budget_s is None else f", {config.budget_s:g} device-seconds at most"
    lines = [
        f"teacher: {without_credentials(config.teacher)}",
        f"space: {space.size:,} points; {values}",
        f"shapes: {sizes}",
        f"trials: {config.num_trials} by {config.sampler}{budget}, {config.way}; "
        f"{num_finished} done",
        f"objectives: {config.objective}; limits: {bounds}",
        f"training of {'the super-network' if config.way == 'elastic' else 'a trial'}: "
        f"{train.num_steps} steps, {train.max_workers} workers, ZeRO-{train.zero_stage}",
        f"latency: {config.measure.requests} requests of {config.measure.rows} rows × "
        f"{config.measure.rounds}, {config.measure.backend}, {config.measure.threads} threads, "
        f"alone",
        f"price: {config.price.core_hour:g} {config.price.currency} for a core and hour",
        f"at the end: {', '.join(config.finish.models) or 'no models'} ({config.finish.package})",
        f"output: {without_credentials(config.output)}",
    ]
    return "\n".join(lines)


def point_text(point: Point) -> str:
    """A point for a line: "layers 2, heads 6, intermediate 192"."""
    return ", ".join(f"{name.rpartition('.')[2]} {value}" for name, value in point.items())
