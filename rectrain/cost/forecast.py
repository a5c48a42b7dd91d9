"""What strategies cost and bring, month by month (M9): pure functions of a case.

    requests of month m   = mean rate · (1 + growth)^m · season · 3600 · 730
    return = worth - cost,  ROI = return / cost

Not counted: discounting, taxes, what a wrong answer costs a shop's name.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from rectrain.cost.case import Case, Strategy
from rectrain.cost.fleet import Fleet, fleet
from rectrain.cost.ledger import Entry, Ledger, exact
from rectrain.cost.lines import Line, labour_lines, software_lines, training_lines
from rectrain.cost.traffic import SECONDS_PER_MONTH, Floats

__all__ = ["Forecast", "break_even", "forecast", "lead", "payback"]

_GRID, _RANGE = 284, 1000.0  # steps of 1000 ** (2 / 284) = 1.05


@dataclass(frozen=True)
class Forecast:
    """What a strategy costs and brings.

    Attributes:
        strategy: which.
        lines: what is paid.
        requests, worth: float64 [H], of each month.
        machines: float64 [H], that serve, on average over the month.
        machine: what they are.
    """

    strategy: Strategy
    lines: tuple[Line, ...]
    requests: Floats
    worth: Floats
    machines: Floats
    machine: str

    @cached_property
    def costs(self) -> Floats:
        """float64 [H], of each month."""
        return np.asarray(sum(line.amounts for line in self.lines))

    @property
    def cost(self) -> float:
        """Of the whole horizon."""
        return float(self.costs.sum())

    @property
    def net(self) -> float:
        """Worth less cost, of the whole horizon."""
        return float(self.worth.sum()) - self.cost

    @property
    def roi(self) -> float:
        """Return on what is spent."""
        return self.net / self.cost if self.cost else 0.0

    @property
    def monthly(self) -> float:
        """Cost of a month, on average."""
        return self.cost / len(self.requests)

    @property
    def per_1000(self) -> float:
        """Cost of 1,000 requests, everything included."""
        return 1000 * self.cost / float(self.requests.sum())

    @property
    def serving_per_1000(self) -> float:
        """Of the machines that answer, alone."""
        return 1000 * float(self.serving.sum()) / float(self.requests.sum())

    @property
    def serving(self) -> Floats:
        """float64 [H], what the machines that answer cost in each month."""
        own = (line.amounts for line in self.lines if _serves(line))
        return np.asarray(sum(own, np.zeros(len(self.requests))))

    @property
    def besides(self) -> float:
        """Cost of a month, on average, that no other machines and no other traffic would change."""
        fixed = [
            float(line.amounts.sum())
            for line in self.lines
            if line.behaviour == "fixed" and not _serves(line)
        ]
        return sum(fixed) / len(self.requests)

    def parts(self) -> dict[str, float]:
        """Label -> amount over the horizon."""
        found: dict[str, float] = {}
        for line in self.lines:
            found[line.label] = found.get(line.label, 0.0) + float(line.amounts.sum())
        return found

    def ledger(self, currency: str) -> Ledger:
        """An entry for every line and month in which it is paid; they add up to `cost`."""
        return Ledger(tuple(self._entries(currency)))

    def _entries(self, currency: str) -> Iterator[Entry]:
        for line in self.lines:
            for month, (quantity, price) in enumerate(
                zip(line.quantity.tolist(), line.price.tolist(), strict=True), 1
            ):
                if quantity:
                    yield Entry(
                        stage=line.stage, part=line.part, kind=line.kind,
                        behaviour=line.behaviour,
                        label=f"{self.strategy}: {line.label}, month {month}",
                        quantity=exact(quantity), unit=line.unit, unit_price=exact(price),
                        currency=currency, period="once", source=line.source,
                    )  # fmt: skip


def _serves(line: Line) -> bool:
    """Whether it is of the machines that answer."""
    return (line.stage, line.kind) == ("deployment", "hardware")


def forecast(case: Case, strategy: Strategy, *, served: Fleet | None = None) -> Forecast:
    """What a strategy costs and brings in each month of the horizon.

    Args:
        case: what is known.
        strategy: one of `strategies(case)`.
        served: its machines, where they are known.
    """
    route = case.routes[strategy.route]
    requests = case.traffic.mean * SECONDS_PER_MONTH * case.traffic.months()
    served = served or fleet(case, route, strategy)
    lines = (
        *served.lines, *training_lines(case, strategy, served.owned),
        *labour_lines(case, strategy), *software_lines(case, requests * served.in_cloud),
    )  # fmt: skip
    return Forecast(
        strategy=strategy,
        lines=tuple(line for line in lines if line.amounts.any()),
        requests=requests,
        worth=requests / 1000 * route.worth_per_1000,
        machines=served.machines,
        machine=served.machine,
    )


# --- comparisons -------------------------------------------------------------------------------


def lead(one: Forecast, other: Forecast) -> Floats:
    """float64 [H]: at the end of each month, by how much its worth less its costs, summed from the
    first month on, is above that of the other; below 0 it is behind."""
    return np.cumsum(other.costs - other.worth) - np.cumsum(one.costs - one.worth)


def payback(extra: Forecast, plain: Forecast) -> int | None:
    """The month, from 1, from whose end on it is behind no more; see `lead`.

    Args:
        extra: is behind at first, as what needs further training is.
        plain: what it is compared with.

    Returns:
        0: it never is behind; None: it is, at the horizon's end.
    """
    ahead = lead(extra, plain)
    behind = np.flatnonzero(ahead < 0)
    if not len(behind):
        return 0
    last = int(behind[-1]) + 1
    return None if last == len(ahead) else last + 1


def break_even(case: Case, one: Strategy, other: Strategy) -> tuple[float, ...]:
    """Mean rates, requests a second, at which the cheaper of two strategies changes, rising.

    Looked for between a thousandth and a thousandfold of the case's traffic, on a grid of 5% and
    then by halving; whole machines make several changes possible.
    """

    def ahead(factor: float) -> bool:
        there = replace(case, traffic=case.traffic.times(factor))
        return forecast(there, one).cost < forecast(there, other).cost

    factors = _RANGE ** np.linspace(-1, 1, _GRID + 1)
    signs = [ahead(factor) for factor in factors]
    found = []
    for place in np.flatnonzero(np.diff(np.array(signs, dtype=np.int8))):
        low, high = factors[place], factors[place + 1]
        for _ in range(20):
            middle = float(np.sqrt(low * high))
            low, high = (middle, high) if ahead(middle) == signs[place] else (low, middle)
        found.append(float(high * case.traffic.mean))
    return tuple(found)
