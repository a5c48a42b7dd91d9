"""Calibration: a model's output for a row of a 0/1 task becomes a probability that comes true.

Both kinds work on the logit z of the model's output and rise strictly with it, so they change no
ranking, and areas under curves stay as they are.

Shapes: n rows.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict

from rectrain.metrics import Examples, metric

__all__ = [
    "STRICT",
    "Calibration",
    "Reliability",
    "fit_calibration",
    "folds",
    "logit",
    "reliability",
]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Kind = Literal["temperature", "isotonic"]

STRICT = ConfigDict(extra="forbid", allow_inf_nan=False, strict=True)
"""Of what stands in a file: unknown keys, other types, NaN and infinity are refused."""

_MIN_PROBABILITY = 1e-15  # a sigmoid in float64 is 1 from a logit of 37 on
_MIN_SLOPE = 0.01  # of a model that says nothing, or the opposite: its ranking stays
_STEPS = 50  # Newton; 6 are usual
_MAX_BINS, _MIN_BIN_ROWS = 50, 25
_APART = 1e-9  # logits between two knots, at least
_TILT = 1e-3  # of isotonic's flat blocks, in logits a logit: they keep their ranking


@dataclass(frozen=True)
class Calibration:
    """From a model's output to a probability.

    - temperature: p = σ(z / T + b). T is that of Guo et al. 2017 (On Calibration of Modern Neural
      Networks, §4.2), b the second number of Platt 1999, for data whose base rate is another than
      training's, as that of sampled clicks.
    - isotonic: logit p is linear between the knots, and beyond them as steep as 1 / T. The knots
      are the ends of blocks of pooled adjacent violators (Zadrozny & Elkan 2002), tilted a little.

    Attributes:
        kind: which.
        temperature: T > 0.
        bias: b.
        knots: of isotonic: (z, logit of the calibrated probability), both strictly rising.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    kind: Kind
    temperature: float
    bias: float
    knots: tuple[tuple[float, float], ...] = ()

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(f"temperature {self.temperature} is not above 0")
        if bool(self.knots) != (self.kind == "isotonic"):
            raise ValueError("isotonic has knots, temperature has none")
        if self.knots and not (np.diff(self.knots, axis=0) > 0).all():
            raise ValueError("knots must rise strictly")

    def probability(self, scores: NDArray[np.floating[Any]]) -> Floats:
        """Calibrated probabilities.

        Args:
            scores: float [...], the probabilities that the model gives (`PackagedModel.predict`).

        Returns:
            float64 of the same shape, in 0..1.
        """
        return _sigmoid(self.logits(scores))

    def logits(self, scores: NDArray[np.floating[Any]]) -> Floats:
        """Logits of `probability`."""
        z = logit(scores)
        if not self.knots:
            return np.asarray(z / self.temperature + self.bias)
        at, value = np.array(self.knots).T
        inside = np.interp(z, at, value)
        outside = (np.minimum(z - at[0], 0) + np.maximum(z - at[-1], 0)) / self.temperature
        return np.asarray(inside + outside)


def logit(scores: NDArray[np.floating[Any]]) -> Floats:
    """log p / (1 - p), p held 1e-15 away from 0 and 1; float64."""
    p = np.clip(np.asarray(scores, dtype=np.float64), _MIN_PROBABILITY, 1 - _MIN_PROBABILITY)
    return np.asarray(np.log(p) - np.log1p(-p))


def _sigmoid(z: Floats) -> Floats:
    return np.asarray(0.5 * (1 + np.tanh(0.5 * z)))


# --- fitting ---------------------------------------------------------------------------------


def folds(groups: Ints, *, seed: int = 0) -> Ints:
    """int64 [n], 0 or 1: a half for each row; the rows of a group stay together."""
    codes = np.unique(groups, return_inverse=True)[1].reshape(-1)
    size = int(codes.max()) + 1 if len(codes) else 0
    return np.asarray((np.random.default_rng(seed).permutation(size) % 2)[codes], dtype=np.int64)


def fit_calibration(
    scores: NDArray[np.floating[Any]],
    labels: NDArray[np.floating[Any]],
    weights: NDArray[np.floating[Any]] | None = None,
    *,
    fold: Ints | None = None,
) -> Calibration:
    """The calibration that predicts best.

    Isotonic where its log loss on rows of one half, fitted on the other, is lower than that of
    temperature, summed over both halves; then fitted on all rows.

    Args:
        scores: float [n], the model's probabilities.
        labels: float [n], 0 or 1.
        weights: float [n] >= 0; None: ones.
        fold: int64 [n], the half of each row (see `folds`); None: rows are halved alone.
    """
    z, y = logit(scores), (np.asarray(labels) > 0).astype(np.float64)
    w = np.ones(len(z)) if weights is None else np.asarray(weights, dtype=np.float64)
    half = folds(np.arange(len(z))) if fold is None else fold
    losses = {"temperature": 0.0, "isotonic": 0.0}
    for held_out in (0, 1):
        fit, judge = half != held_out, half == held_out
        fitted: tuple[Calibration, ...] = (_temperature(z[fit], y[fit], w[fit]),)
        fitted += (_isotonic(z[fit], y[fit], w[fit], fitted[0]),)
        for kind, one in zip(losses, fitted, strict=True):
            chance = one.logits(_sigmoid(z[judge]))
            losses[kind] += float(w[judge] @ (np.logaddexp(0, chance) - y[judge] * chance))
    best = _temperature(z, y, w)
    return _isotonic(z, y, w, best) if losses["isotonic"] < losses["temperature"] else best


def _temperature(z: Floats, y: Floats, w: Floats) -> Calibration:
    """Newton's method on Σ w · log loss + ((a - 1)² + b²) / 2, a = 1 / T.

    The last term weighs as much as one row or so: it makes a and b finite for any labels.
    """
    design = np.stack([z, np.ones_like(z)], axis=1)
    prior = np.array([1.0, 0.0])

    def loss(theta: Floats) -> float:
        value = design @ theta
        return float(w @ (np.logaddexp(0, value) - y * value) + ((theta - prior) ** 2).sum() / 2)

    theta = prior
    for _ in range(_STEPS):
        p = _sigmoid(design @ theta)
        gradient = design.T @ (w * (p - y)) + theta - prior
        hessian = (design.T * (w * p * (1 - p))) @ design + np.eye(2)
        step, size = np.linalg.solve(hessian, gradient), 1.0
        while loss(theta - size * step) > loss(theta) and size > 1e-6:
            size /= 2
        theta = theta - size * step
        if np.abs(step).max() < 1e-10:
            break
    return Calibration("temperature", 1 / max(float(theta[0]), _MIN_SLOPE), float(theta[1]))


def _isotonic(z: Floats, y: Floats, w: Floats, base: Calibration) -> Calibration:
    """Isotonic regression over bins of equal counts, each with one more row as `base` says: no
    knot is at 0 or 1."""
    from sklearn.isotonic import IsotonicRegression

    order = np.argsort(z, kind="stable")
    order = order[w[order] > 0]
    count = int(np.clip(len(order) // _MIN_BIN_ROWS, 1, _MAX_BINS))
    bins = [part for part in np.array_split(order, count) if len(part)]
    if not bins:
        return base
    size = np.array([w[part].sum() for part in bins])
    at = np.array([w[part] @ z[part] for part in bins]) / size
    expected = base.probability(_sigmoid(at))
    rate = (np.array([w[part] @ y[part] for part in bins]) + expected) / (size + 1)
    place_of = np.arange(len(bins))
    pooled = IsotonicRegression().fit(place_of, rate, sample_weight=size + 1).predict(place_of)
    ends = np.concatenate([[True], np.diff(pooled) > 0]) | np.concatenate(
        [np.diff(pooled) > 0, [True]]
    )
    value = logit(pooled) + _TILT * at
    knots = _rising(zip(at[ends].tolist(), value[ends].tolist(), strict=True))
    return Calibration("isotonic", base.temperature, base.bias, knots)


def _rising(knots: Iterable[tuple[float, float]]) -> tuple[tuple[float, float], ...]:
    """Those that lie above the one before: bins of one score differ by no more than rounding."""
    kept: list[tuple[float, float]] = []
    for z, value in knots:
        if not kept or (z - kept[-1][0] > _APART and value > kept[-1][1]):
            kept.append((z, value))
    return tuple(kept)


# --- judging ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reliability:
    """What probabilities promise and what comes true, in bins of equal counts.

    Attributes:
        predicted: float64 [bins], mean probability.
        observed: float64 [bins], share of positives.
        error: expected calibration error (Naeini et al. 2015): Σ over bins of their share times
            |observed - predicted|, 0..1.
    """

    predicted: Floats
    observed: Floats
    error: float


def reliability(
    probability: Floats, labels: Floats, weights: Floats, *, num_bins: int = 15
) -> Reliability:
    """The reliability of probabilities.

    Args:
        probability: float64 [n].
        labels: float64 [n], 0 or 1.
        weights: float64 [n] >= 0.
        num_bins: at most, of those that are drawn; `error` is the metric `ece`.
    """
    order = np.argsort(probability, kind="stable")
    order = order[weights[order] > 0]
    bins = [part for part in np.array_split(order, min(num_bins, len(order) or 1)) if len(part)]
    size = np.array([weights[part].sum() for part in bins])
    means = [
        np.array([weights[part] @ values[part] for part in bins]) / size
        for values in (probability, (labels > 0).astype(np.float64))
    ]
    error = metric("ece")(Examples(label=labels, score=probability, weight=weights))
    return Reliability(means[0], means[1], error)
