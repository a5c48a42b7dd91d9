"""Doubt: what the large model is expected to gain on a request, seen from the small one's scores.

The best rule defers where the expected gain is highest (Chow 1970 for errors of one model;
Jitkrittum et al. 2023, When Does Confidence-Based Cascade Deferral Suffice?, §3.2 for two). Large's
calibrated scores stand for the truth, so that a gain is a number without the noise of labels.

A confidence is exp(-doubt / mean doubt of held-out requests): 0..1, higher is surer; e⁻¹ = 0.37 is
that of a request of mean doubt.

Shapes: n rows or candidates, L lists, k places that count.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict
from scipy.special import ndtr  # type: ignore[import-untyped]

from rectrain.cascade.calibration import STRICT

__all__ = [
    "ListDoubt",
    "RowDoubt",
    "auc_gains",
    "fit_list_doubt",
    "fit_row_doubt",
    "list_temperature",
]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_KNOTS, _BANDWIDTH = 25, 0.04  # of the curve; the kernel's width is a share of the rows
_MIN_SCALE = 1e-12  # where large gains nothing anywhere
_MIN_NOISE = 1e-6  # of two models that agree
_GOLDEN_STEPS = 60
_LOW, _HIGH = np.log(1e-3), np.log(1e3)  # a list's 1 / T is looked for in between


@dataclass(frozen=True)
class RowDoubt:
    """Doubt of a row of a 0/1 task: a curve over the small model's calibrated logit.

    Attributes:
        knots: (calibrated logit, doubt), logits rising; linear between, constant beyond.
        scale: mean doubt of held-out rows.
        kind: says which of the two it is in a file.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    knots: tuple[tuple[float, float], ...]
    scale: float
    kind: Literal["probability"] = "probability"

    def __post_init__(self) -> None:
        if not self.knots or not (np.diff([at for at, _ in self.knots]) > 0).all():
            raise ValueError("knots must rise strictly")
        if not self.scale > 0:
            raise ValueError(f"scale {self.scale} is not above 0")

    def confidences(self, logits: Floats) -> Floats:
        """float64 [n], 0..1, of calibrated logits float64 [n]."""
        at, value = np.array(self.knots).T
        return np.asarray(np.exp(-np.interp(logits, at, value) / self.scale))


@dataclass(frozen=True)
class ListDoubt:
    """Doubt of a ranked list: the gain expected of ordering it as the large model would.

    With u = scores / temperature, best first, P = softmax(u) stands for each candidate's share of
    the relevance (the likelihood of the list-wise softmax that the heads are trained with; Cao et
    al. 2007, ListNet), and large sees u + ε, ε ~ N(0, noise²). Exchanging places i < j gains
    (dᵢ - dⱼ)(wⱼ - wᵢ)⁺ of DCG, d = 1 / log2(1 + place) up to place k and 0 beyond, w = e^(u + ε).
    Its expectation is closed (Margrabe 1978, of the exchange of two log-normal values):

        Eᵢⱼ = Pⱼ Φ(a) - Pᵢ Φ(a - σ),  a = (uⱼ - uᵢ) / σ + σ / 2,  σ = √2 noise

        doubt = Σ over i < j of (dᵢ - dⱼ) Eᵢⱼ / Σ over i of dᵢ Pᵢ

    A wide gap makes Φ(a) vanish; a close pair far down is cheap (d), one of little relevance too
    (P). The sum takes pairs as if each could be exchanged alone: exact for two candidates, else it
    only orders lists.

    Attributes:
        temperature: of the list's scores.
        noise: standard deviation of large's scores around small's, in units of temperature.
        places: k.
        depth: candidates that are looked at, the best.
        scale: mean doubt of held-out lists.
        kind: says which of the two it is in a file.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    temperature: float
    noise: float
    places: int
    depth: int
    scale: float
    kind: Literal["margin"] = "margin"

    def __post_init__(self) -> None:
        for name in ("temperature", "noise", "places", "depth", "scale"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} {getattr(self, name)} is not above 0")

    def doubt(self, scores: Floats) -> float:
        """The doubt of one list, float64 [n] in any order; >= 0, and 0 for one candidate."""
        u = -np.sort(-np.asarray(scores, dtype=np.float64) / self.temperature)[: self.depth]
        if len(u) < 2:
            return 0.0
        share = np.exp(u - u[0])
        share /= share.sum()
        place = np.arange(1, len(u) + 1)
        discount = np.where(place <= self.places, 1 / np.log2(place + 1.0), 0.0)
        top = slice(0, self.places)
        sigma = np.sqrt(2) * self.noise
        a = (u[None, :] - u[top, None]) / sigma + sigma / 2
        gain = share[None, :] * ndtr(a) - share[top, None] * ndtr(a - sigma)
        stake = np.maximum(discount[top, None] - discount[None, :], 0.0)
        return float((stake * gain).sum() / (discount @ share))

    def confidence(self, scores: Floats) -> float:
        """0..1, of one list."""
        return float(np.exp(-self.doubt(scores) / self.scale))


# --- fitting ---------------------------------------------------------------------------------


def auc_gains(small: Floats, large: Floats) -> Floats:
    """What each row adds to n times the AUC when large's probability replaces small's.

    A row of probability q, moved from place s to place t among rows of calibrated probabilities x
    (distribution F, mean π), gains ∫ from s to t of (q - x) dF(x) / (π (1 - π)): the density of
    positives passed is x dF / π, of negatives (1 - x) dF / (1 - π), and q of the row is positive.
    Here q = t = large. It is never negative, and for small differences
    f(s) (t - s)² / (2 π (1 - π)): where rows lie densely and the models disagree.

    Args:
        small, large: float64 [n], calibrated probabilities.

    Returns:
        float64 [n] >= 0.
    """
    at = np.sort(small)
    before = np.concatenate([[0.0], np.cumsum(at)])
    low, high = (np.searchsorted(at, end, side="left") for end in (small, large))
    moved = large * (high - low) - (before[high] - before[low])
    moved -= np.maximum(large - small, 0)  # on its way up a row does not pass itself
    rate = float(small.mean()) if len(small) else 0.5
    return np.asarray(np.maximum(moved, 0.0) / (len(at) * max(rate * (1 - rate), _MIN_SCALE)))


def fit_row_doubt(small_logits: Floats, gains: Floats) -> RowDoubt:
    """The curve of mean gain over small's logit: a Gaussian kernel over the rows' ranks, read at
    quantiles.

    Args:
        small_logits: float64 [n], calibrated.
        gains: float64 [n] (see `auc_gains`).
    """
    order = np.argsort(small_logits, kind="stable")
    z, gain = small_logits[order], gains[order]
    rank = (np.arange(len(z)) + 0.5) / max(len(z), 1)
    wanted = (np.arange(_KNOTS) + 0.5) / _KNOTS
    weight = np.exp(-0.5 * ((rank[None, :] - wanted[:, None]) / _BANDWIDTH) ** 2)
    mean = weight @ gain / weight.sum(axis=1)
    at = np.interp(wanted, rank, z)
    rising = np.concatenate([[True], np.diff(at) > 0])
    knots = tuple(zip(at[rising].tolist(), mean[rising].tolist(), strict=True))
    doubts = np.interp(z, at[rising], mean[rising])
    return RowDoubt(knots, max(float(doubts.mean()), _MIN_SCALE))


def list_temperature(scores: Floats, gains: Floats, lists: Ints) -> float:
    """T of the softmax over a list's scores that predicts best where its gain lies.

    Minimises the mean over lists of -Σ share of gain · log softmax(scores / T) by golden sections
    over log T, 1e-3 to 1e3; it is convex in 1 / T.

    Args:
        scores: float64 [n].
        gains: float64 [n] >= 0; lists without any are left out.
        lists: int64 [n], 0..L-1, neighbours.
    """
    total = np.bincount(lists, weights=gains)
    kept = total[lists] > 0
    if not kept.any():
        return 1.0
    _, codes = np.unique(lists[kept], return_inverse=True)
    first = np.flatnonzero(np.concatenate([[True], np.diff(codes) > 0]))
    score, share = scores[kept], (gains / np.where(total[lists] > 0, total[lists], 1))[kept]
    score = score - np.maximum.reduceat(score, first)[codes]

    def loss(log_slope: float) -> float:
        u = np.exp(log_slope) * score
        return float(np.log(np.add.reduceat(np.exp(u), first)).sum() - share @ u)

    low, high, ratio = _LOW, _HIGH, (np.sqrt(5) - 1) / 2
    for _ in range(_GOLDEN_STEPS):
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        low, high = (low, right) if loss(left) < loss(right) else (left, high)
    return float(np.exp(-(low + high) / 2))


def fit_list_doubt(
    small: Floats,
    large: Floats,
    gains: Floats,
    lists: Ints,
    *,
    places: int,
    depth: int,
) -> ListDoubt:
    """The doubt of a task's lists.

    Both temperatures are those of `list_temperature`; noise² is the variance of large / T_large -
    small / T_small within lists, candidates weighted by what either model expects of them: the
    sum over lists of Σ w (difference - mean)² over that of 1 - Σ w².

    Args:
        small, large: float64 [n], the models' scores of the candidates.
        gains: float64 [n] >= 0, 2^grade - 1.
        lists: int64 [n], 0..L-1, neighbours.
        places, depth: see `ListDoubt`.
    """
    temperatures = [list_temperature(scores, gains, lists) for scores in (small, large)]
    first = np.flatnonzero(np.concatenate([[True], np.diff(lists) > 0]))
    parts = [
        (own[0] / temperatures[0], own[1] / temperatures[1])
        for own in zip(np.split(small, first[1:]), np.split(large, first[1:]), strict=True)
    ]
    squares, freedom = np.array([_disagreement(*pair) for pair in parts]).sum(axis=0)
    noise = float(np.sqrt(squares / freedom)) if freedom > 0 else 0.0
    doubt = ListDoubt(temperatures[0], max(noise, _MIN_NOISE), places, depth, scale=1.0)
    scale = float(np.mean([doubt.doubt(one) for one in np.split(small, first[1:])]))
    return replace(doubt, scale=max(scale, _MIN_SCALE))


def _disagreement(small: Floats, large: Floats) -> tuple[float, float]:
    """A list's Σ w (difference - mean)² and 1 - Σ w², w its mean share in both softmaxes."""
    expected = [np.exp(u - u.max()) for u in (small, large)]
    weight = np.mean([one / one.sum() for one in expected], axis=0)
    difference = large - small
    return float(weight @ (difference - weight @ difference) ** 2), float(1 - weight @ weight)
