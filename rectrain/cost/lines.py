"""What is paid month by month: a line each, and those of training, people and software.

Each cost is a `Line`, quantity × unit price for every month, so a total, a picture and the ledger
are sums of the same. Lines of machines that answer are made in `fleet`.

    price in month m      = price now · (1 + change a year)^(m / 12)
    a training on spot    = its device hours · (1 + λ · (checkpoint interval / 2 + restart))

Hours that a GPU computed are paid as a GPU's, the others as those of the machine that was measured.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from rectrain.cost.case import Case, Strategy
from rectrain.cost.ledger import Behaviour, Kind, Stage
from rectrain.cost.plan import Server
from rectrain.cost.prices import HOURS_PER_MONTH
from rectrain.cost.traffic import Floats

__all__ = ["Line", "labour_lines", "prices_by_month", "software_lines", "training_lines"]

_KIB = 2**10


@dataclass(frozen=True)
class Line:
    """One thing that is paid, by month.

    Attributes:
        stage, part, kind, behaviour, label, unit, source: as of `ledger.Entry`.
        quantity, price: float64 [H], of each month; price is of a unit.
    """

    stage: Stage
    part: str
    kind: Kind
    behaviour: Behaviour
    label: str
    unit: str
    source: str
    quantity: Floats
    price: Floats

    @property
    def amounts(self) -> Floats:
        """float64 [H]."""
        return self.quantity * self.price


def prices_by_month(now: float, change: float, months: int) -> Floats:
    """float64 [months] of what costs so much now and moves by `change` a year."""
    return np.asarray(now * (1 + change) ** (np.arange(months) / 12))


def _device_hour(case: Case, strategy: Strategy) -> tuple[float, str]:
    """What an hour of the measured device costs in training, and where."""
    if strategy.hosting != "cloud" and case.owned:
        owned = case.owned[0]
        energy = owned.watts * case.kwh / 1000
        hour = owned.monthly / HOURS_PER_MONTH + energy
        return hour / (owned.server.threads * owned.server.speed), owned.server.name
    return _rented([one for one in case.servers if one.purchase == strategy.purchase], case)


def _gpu_hour(case: Case, strategy: Strategy) -> tuple[float, str]:
    """What an hour of a GPU costs in training, and where: always rented, and on demand where no GPU
    is sold as the strategy buys."""
    servers = case.training.gpu_servers
    alike = [one for one in servers if one.purchase == strategy.purchase]
    return _rented(alike or servers, case)


def _rented(servers: Sequence[Server], case: Case) -> tuple[float, str]:
    best = min(servers, key=lambda server: server.hourly / (server.threads * server.speed))
    again = 1.0
    if best.is_spot:
        lost_h = (case.traffic.checkpoint_minutes / 2 + case.traffic.restart_minutes) / 60
        again += best.interruptions_per_hour * lost_h
    hour = again * best.hourly / (best.threads * best.speed)
    return hour, f"{best.name} {best.purchase}"


def training_lines(case: Case, strategy: Strategy) -> Iterator[Line]:
    """Of devices that train: at first, and again in the traffic file's rhythm."""
    training, (first, again) = case.training, case.traffic.trainings()
    before = {model: first * hours for model, hours in training.before.items()}
    # The first training is of all weights: an adapter stands beside a model that is trained.
    rows: list[tuple[Stage, str, str, str, Floats]] = [
        ("pretraining", "training", "first training", "large", first * training.large),
        ("maintenance", "resources", "trainings again", "large",
         again * training.large * training.factors[strategy.method]),
    ]  # fmt: skip
    if "large" in before:
        rows.append(("pretraining", "training", "what the first training starts from",
                     "before large", before["large"]))  # fmt: skip
    if strategy.route != "large":
        rows += [
            ("tuning", "resources", "making the small model", "small", first * training.small),
            ("maintenance", "resources", "making the small model again", "small",
             again * training.small),
        ]  # fmt: skip
        if "small" in before:
            rows.append(("tuning", "resources", "what the small model starts from",
                         "before small", before["small"]))  # fmt: skip
    for stage, part, label, model, hours in rows:
        on_gpu = training.gpu.get(model, 0.0)
        for share, kind, hour_of in (
            (1 - on_gpu, "", _device_hour), (on_gpu, " on GPUs", _gpu_hour)
        ):  # fmt: skip
            if share:
                hour, where = hour_of(case, strategy)
                price = prices_by_month(hour, case.traffic.hardware_price_change, len(hours))
                yield Line(
                    stage, part, "hardware", "fixed", f"{label}{kind}", "device hour",
                    f"{training.source}; {where}", hours * share, price,
                )  # fmt: skip


def labour_lines(case: Case, strategy: Strategy) -> Iterator[Line]:
    """Of people."""
    traffic, effort = case.traffic, case.traffic.effort
    first, again = traffic.trainings()
    tuning = effort.tuning + (effort.shrinking if strategy.route != "large" else 0.0)
    rows: tuple[tuple[Stage, str, str, Floats, float], ...] = (
        ("pretraining", "data", "data", first * effort.data, case.engineer_h),
        ("pretraining", "labelling", "labelling", first * effort.labelling, case.engineer_h),
        ("tuning", "time", "choosing and shrinking", first * tuning, case.engineer_h),
        ("deployment", "software", "bringing into operation", first * effort.deployment,
         case.engineer_h),
        ("maintenance", "time", "watching and mending",
         np.full(len(first), effort.maintenance), case.operator_h),
        ("maintenance", "time", "checking new versions",
         again * effort.retraining, case.engineer_h),
    )  # fmt: skip
    for stage, part, label, hours, hourly in rows:
        price = prices_by_month(hourly, traffic.labour_price_change, len(first))
        source = f"effort in the traffic file; {case.sources.get('people', '')}"
        yield Line(stage, part, "labour", "fixed", label, "hour", source, hours, price)


def software_lines(case: Case, requests: Floats) -> Iterator[Line]:
    """Of licences, and of answers that leave the cloud; `requests` is float64 [H]."""
    months = np.ones(len(requests))
    for name, monthly in case.licences.items():
        yield Line(
            "deployment", "software", "software", "fixed", f"licence {name}", "month",
            case.sources.get("licence", ""), months, months * monthly,
        )  # fmt: skip
    gib = requests * case.traffic.answer_kib / _KIB**2
    yield Line(
        "deployment", "software", "software", "marginal", "answers out of the cloud", "gib",
        case.sources.get("gib", ""), gib, months * case.egress_gib,
    )  # fmt: skip
