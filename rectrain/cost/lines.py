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
from functools import lru_cache

import numpy as np

from rectrain.cost.case import Case, Owned, Strategy
from rectrain.cost.ledger import Behaviour, Kind, Stage
from rectrain.cost.machines import Server
from rectrain.cost.traffic import Floats

__all__ = ["Line", "cited", "labour_lines", "prices_by_month", "software_lines", "training_lines"]

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


def cited(*sources: str) -> str:
    """Sources in one text, as far as there are any."""
    return "; ".join(filter(None, sources))


def prices_by_month(now: float, change: float, months: int) -> Floats:
    """float64 [months] of what costs so much now and moves by `change` a year."""
    return np.asarray(now * _moved(change, months))


@lru_cache(maxsize=64)  # the same in all draws of a forecast
def _moved(change: float, months: int) -> Floats:
    return np.asarray((1 + change) ** (np.arange(months) / 12))


def _device_hour(case: Case, strategy: Strategy, owned: Owned | None) -> tuple[Floats, str]:
    """What an hour of the measured device costs in training in each month, and where that is known
    from: on one's own machine, where the strategy has one."""
    if owned is not None:  # what it was bought for stays
        own = owned.rented(case.kwh)
        source = cited(own.name, own.source, case.sources.get("kwh", ""))
        return np.full(case.traffic.horizon_months, own.device_hour), source
    return _rented_hour(case.servers, case, strategy)


def _rented_hour(servers: Sequence[Server], case: Case, strategy: Strategy) -> tuple[Floats, str]:
    """The same on the cheapest of these as the strategy buys; where none is sold so, of all."""
    traffic = case.traffic
    wanted = "spot" if strategy.purchase == "spot" else "on demand"  # no term for a few hours
    best = min(
        [server for server in servers if server.purchase == wanted] or servers,
        key=lambda server: server.device_hour,
    )
    again = 1.0
    if best.purchase == "spot":
        lost_h = (traffic.checkpoint_minutes / 2 + traffic.restart_minutes) / 60
        again += best.interruptions_per_hour * lost_h
    price = prices_by_month(
        again * best.device_hour, traffic.hardware_price_change, traffic.horizon_months
    )
    return price, cited(f"{best.name} {best.purchase}", best.source)


def training_lines(case: Case, strategy: Strategy, owned: Owned | None) -> Iterator[Line]:
    """Of devices that train: at first, and again in the traffic file's rhythm.

    Args:
        case: what is known.
        strategy: of it.
        owned: the strategy's machine of one's own, which trains then; hours of GPUs are rented.
    """
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
        for share, kind in ((1 - on_gpu, ""), (on_gpu, " on GPUs")):
            if share:
                if kind:
                    price, source = _rented_hour(training.gpu_servers[model], case, strategy)
                else:
                    price, source = _device_hour(case, strategy, owned)
                yield Line(
                    stage, part, "hardware", "fixed", f"{label}{kind}", "device hour",
                    cited(training.source, source), hours * share, price,
                )  # fmt: skip


def labour_lines(case: Case, strategy: Strategy) -> Iterator[Line]:
    """Of people."""
    traffic, effort = case.traffic, case.traffic.effort
    first, again = traffic.trainings()
    tuning = effort.tuning + (effort.shrinking if strategy.route != "large" else 0.0)
    hourly = {"engineer": case.engineer_h, "operator": case.operator_h}
    rows: tuple[tuple[Stage, str, str, Floats, str], ...] = (
        ("pretraining", "data", "data", first * effort.data, "engineer"),
        ("pretraining", "labelling", "labelling", first * effort.labelling, "engineer"),
        ("tuning", "time", "choosing and shrinking", first * tuning, "engineer"),
        ("deployment", "software", "bringing into operation", first * effort.deployment,
         "engineer"),
        ("maintenance", "time", "watching and mending",
         np.full(len(first), effort.maintenance), "operator"),
        ("maintenance", "time", "checking new versions", again * effort.retraining, "engineer"),
    )  # fmt: skip
    for stage, part, label, hours, who in rows:
        price = prices_by_month(hourly[who], traffic.labour_price_change, len(first))
        source = cited("effort in the traffic file", case.sources.get(who, ""))
        yield Line(stage, part, "labour", "fixed", label, "hour", source, hours, price)


def software_lines(case: Case, rented: Floats) -> Iterator[Line]:
    """Of licences, of what is kept, and of answers that leave the cloud.

    Args:
        case: what is known.
        rented: float64 [H], requests that the cloud answers. The place of a machine of one's own
            has the network in its price.
    """
    months = np.ones(len(rented))
    first, _ = case.traffic.trainings()
    for name, (amount, unit, source) in case.licences.items():
        yield Line(
            "deployment", "software", "software", "fixed", f"licence {name}", unit,
            source, months if unit == "month" else first, months * amount,
        )  # fmt: skip
    yield Line(
        "maintenance", "resources", "hardware", "fixed", "storage", "gib month",
        case.sources.get("gib month", ""), months * case.traffic.stored_gib,
        months * case.gib_month,
    )  # fmt: skip
    gib = rented * case.traffic.answer_kib / _KIB**2
    yield Line(
        "maintenance", "resources", "hardware", "marginal", "answers out of the cloud", "gib",
        case.sources.get("gib", ""), gib, months * case.egress_gib,
    )  # fmt: skip
