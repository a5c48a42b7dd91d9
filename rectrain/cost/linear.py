"""The linear cost model: hardware, software and labour in a model's parameters and complexity.

    H = k_P P + k_C C,   S = m_P P + m_C C,   L = n_P P + n_C C,   cost = H + S + L

P is millions of parameters, C forward GFLOP per 1,000 real tokens. Coefficients are given, or
fitted to what runs have cost. It is a model of small changes around what was measured: it has no
term for what does not depend on the model (add that to the ledger), and none for P × C.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls  # type: ignore[import-untyped]

from rectrain.cost.ledger import Kind
from rectrain.errors import ConfigError, DataError

__all__ = [
    "Candidate",
    "Coefficients",
    "Fit",
    "LinearCost",
    "Run",
    "fit",
    "minimum",
    "relative_nnls",
]

Floats = NDArray[np.float64]

_KINDS: tuple[Kind, ...] = get_args(Kind)
_RESAMPLES = 1000
_LEAST_RATIOS = 3
_SAME_RATIO = 1e-3  # relative difference of P : C: closer ones are one


class Coefficients(NamedTuple):
    """of_p: cost of a million parameters; of_c: of a GFLOP per 1,000 tokens; both >= 0."""

    of_p: float
    of_c: float

    def cost(self, p: float, c: float) -> float:
        """of_p P + of_c C."""
        return self.of_p * p + self.of_c * c


@dataclass(frozen=True)
class LinearCost:
    """Coefficients of each kind, in one currency and for one period."""

    hardware: Coefficients
    software: Coefficients
    labour: Coefficients

    def __post_init__(self) -> None:
        if min(min(getattr(self, kind)) for kind in _KINDS) < 0:
            raise ConfigError(
                what="coefficients of the linear cost model", got=self,
                rule="must be at least 0", fix="leave out what costs nothing",
            )  # fmt: skip

    @property
    def whole(self) -> Coefficients:
        """Of hardware, software and labour together."""
        each = [getattr(self, kind) for kind in _KINDS]
        return Coefficients(sum(one.of_p for one in each), sum(one.of_c for one in each))

    def costs(self, p: float, c: float) -> dict[Kind, float]:
        """Each kind's cost of a model.

        Args:
            p: millions of parameters.
            c: forward GFLOP per 1,000 real tokens.
        """
        return {kind: getattr(self, kind).cost(p, c) for kind in _KINDS}

    def total(self, p: float, c: float) -> float:
        """H + S + L of a model."""
        return sum(self.costs(p, c).values())


@dataclass(frozen=True)
class Run:
    """What a model has cost, by kind, in one currency and for one period.

    Attributes:
        name: of the model.
        p: millions of parameters.
        c: forward GFLOP per 1,000 real tokens.
        costs: kind -> measured cost, at least 0.
    """

    name: str
    p: float
    c: float
    costs: Mapping[Kind, float]


@dataclass(frozen=True)
class Fit:
    """A fitted model and how sure it is.

    Attributes:
        model: of all runs.
        draws: float64 [resamples, 3, 2], coefficients of resampled runs: hardware, software and
            labour by P and C.
        relative_error: kind -> root mean square of (fitted - measured) / measured, over runs that
            cost something; in sample.
    """

    model: LinearCost
    draws: Floats
    relative_error: Mapping[Kind, float]

    def interval(self, p: float, c: float, *, level: float = 0.95) -> tuple[float, float]:
        """A bootstrap percentile interval of the total cost of a model.

        Args:
            p, c: as of `LinearCost.costs`.
            level: probability, 0..1.
        """
        totals = self.draws.sum(axis=1) @ np.array([p, c])
        low, high = np.quantile(totals, [(1 - level) / 2, (1 + level) / 2])
        return float(low), float(high)


def fit(runs: Sequence[Run], *, seed: int = 0, resamples: int = _RESAMPLES) -> Fit:
    """Coefficients by non-negative least squares, with a bootstrap over runs.

    Each run's residual is divided by what it cost, so that a dear run does not outweigh cheap
    ones: min over x >= 0 of Σ_r ((x_P P_r + x_C C_r - y_r) / y_r)² (Lawson and Hanson 1974,
    "Solving Least Squares Problems", chapter 23, by scipy.optimize.nnls). Uncertainty: runs are
    drawn again with replacement (Efron and Tibshirani 1993, "An Introduction to the Bootstrap",
    section 9.5, pairs); draws in which all runs have one ratio P : C are drawn anew.

    Args:
        runs: of at least three ratios P : C: two coefficients meet any two of them, so two can't
            show that the model is wrong.
        seed: of the draws.
        resamples: number of draws.

    Raises:
        DataError: too few ratios, or costs that are none.
    """
    shapes = np.array([[run.p, run.c] for run in runs], dtype=float).reshape(-1, 2)
    costs = np.array([[run.costs.get(kind, 0.0) for kind in _KINDS] for run in runs], dtype=float)
    _check(shapes, costs)
    chosen = _solved(shapes, costs)
    rng = np.random.default_rng(seed)
    draws = np.empty((resamples, len(_KINDS), 2))
    for place in range(resamples):
        rows = rng.integers(0, len(runs), len(runs))
        while _num_ratios(shapes[rows]) < 2:
            rows = rng.integers(0, len(runs), len(runs))
        draws[place] = _solved(shapes[rows], costs[rows])
    model = LinearCost(*(Coefficients(*map(float, row)) for row in chosen))
    return Fit(model, draws, _relative_errors(shapes @ chosen.T, costs))


def _check(shapes: Floats, costs: Floats) -> None:
    ratios = _num_ratios(shapes)
    if ratios < _LEAST_RATIOS:
        raise DataError(
            what="fit of the linear cost model",
            got=f"{ratios} ratios P : C in runs with (P, C) {shapes.round(3).tolist()}",
            rule="needs runs of at least three ratios of parameters to complexity",
            fix="measure models of other widths and depths",
        )
    if not (np.isfinite(shapes).all() and np.isfinite(costs).all()) or costs.min() < 0:
        raise DataError(
            what="runs of the linear cost model", got=costs.tolist(),
            rule="costs must be finite and at least 0", fix="leave the run out",
        )  # fmt: skip


def _num_ratios(shapes: Floats) -> int:
    """How many ratios P : C there are that differ by more than rounding."""
    with np.errstate(divide="ignore"):
        ratios = np.sort(np.log(shapes[:, 0]) - np.log(shapes[:, 1]))
    return int((np.diff(ratios) > _SAME_RATIO).sum()) + min(len(ratios), 1)


def _solved(shapes: Floats, costs: Floats) -> Floats:
    """[3, 2]: of each kind its two coefficients."""
    return np.array([relative_nnls(shapes, measured) for measured in costs.T])


def relative_nnls(known: Floats, measured: Floats) -> Floats:
    """float64 [terms], at least 0: min of Σ_r ((known_r · x - y_r) / y_r)²; see `fit`.

    Where y_r is 0, the smallest other y is divided by; where all are, x is 0.

    Args:
        known: float64 [runs, terms]; terms may be of very different sizes.
        measured: float64 [runs], y, at least 0.
    """
    if not measured.any():
        return np.zeros(known.shape[1])
    size = np.maximum(known.max(axis=0), np.finfo(np.float64).tiny)
    scale = 1 / np.where(measured > 0, measured, measured[measured > 0].min())
    found, _ = nnls(known / size * scale[:, None], measured * scale)
    return np.asarray(found / size)


def _relative_errors(fitted: Floats, measured: Floats) -> dict[Kind, float]:
    errors: dict[Kind, float] = {}
    for kind, model, real in zip(_KINDS, fitted.T, measured.T, strict=True):
        paid = real > 0
        if paid.any():
            errors[kind] = float(np.sqrt(np.mean(((model - real)[paid] / real[paid]) ** 2)))
    return errors


@dataclass(frozen=True)
class Candidate:
    """A model that could be chosen.

    Attributes:
        name: of the model.
        p, c: as of `LinearCost.costs`.
        quality: larger is better.
        latency_ms: smaller is better.
    """

    name: str
    p: float
    c: float
    quality: float
    latency_ms: float


def minimum(
    candidates: Iterable[Candidate],
    cost: LinearCost,
    *,
    least_quality: float = -np.inf,
    most_latency_ms: float = np.inf,
) -> Candidate:
    """min over candidates of H + S + L, subject to quality >= q and latency <= l.

    Of equal costs the better model, then the faster, then the first by name.

    Args:
        candidates: to choose from.
        cost: of a model.
        least_quality: q.
        most_latency_ms: l.

    Raises:
        ConfigError: no candidate keeps both bounds; says which come nearest.
    """
    known = list(candidates)
    kept = [
        one for one in known if one.quality >= least_quality and one.latency_ms <= most_latency_ms
    ]
    if not kept:
        best = max((one.quality for one in known), default=float("nan"))
        fastest = min((one.latency_ms for one in known), default=float("nan"))
        raise ConfigError(
            what="bounds of the cheapest model",
            got=f"quality >= {least_quality:g} and latency <= {most_latency_ms:g} ms",
            rule=f"at least one of {len(known)} models must keep both; the best has a quality of "
            f"{best:g}, the fastest a latency of {fastest:g} ms",
            fix="lower the quality, allow more latency, or add models",
        )
    return min(kept, key=lambda o: (cost.total(o.p, o.c), -o.quality, o.latency_ms, o.name))
