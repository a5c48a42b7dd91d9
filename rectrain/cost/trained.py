"""From the records of what went into models to what trainings of a case take.

A training to come is the work that made the model, done again: its last run, or the compression
with the runs in it. What that started from (pre-training, earlier runs, a teacher that is not the
large model) is paid once, with the first training; the search for a shape is not repeated at all,
and stands among what was spent. Lives that were killed count whole: a run that was killed has up to
one checkpoint interval a kill too much.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rectrain.cost.assemble import gpu_servers
from rectrain.cost.case import Method, Training
from rectrain.cost.machines import Server
from rectrain.cost.measure import Past, apart, device_hours, history, instance_for, maker
from rectrain.cost.prices import Prices
from rectrain.cost.traffic import Traffic

__all__ = ["last_work", "pasts_of", "trainings"]


def pasts_of(paths: Mapping[str, str]) -> dict[str, list[Past]]:
    """What went into each model, as far as it lies in the folder that it was made in.

    Args:
        paths: "large", and maybe "small" -> the package's folder. What went into the large model
            went into the small one, too, and is left out there.
    """
    pasts = {role: history(path) if maker(path) else [] for role, path in paths.items()}
    known = {past.folder for past in pasts["large"]}
    for role in pasts.keys() - {"large"}:
        pasts[role] = [past for past in pasts[role] if past.folder not in known]
    return pasts


def last_work(path: str) -> tuple[Past, ...]:
    """What made the model of a package; empty where that is not known.

    Args:
        path: the package's folder.
    """
    return apart(history(path) if maker(path) else []).last


def trainings(
    pasts: Mapping[str, Sequence[Past]],
    traffic: Traffic,
    prices: Prices,
    *,
    factors: Mapping[Method, float],
    source: str,
) -> tuple[Training, list[str]]:
    """What trainings take, and notes of how that is known.

    Args:
        pasts: of `pasts_of`.
        traffic: may say how long a training takes; what was recorded is the default.
        prices: of machines.
        factors: as of `Training`.
        source: of the factors.
    """
    told: list[str] = []
    hours = {"large": 0.0, "small": 0.0}
    gpu: dict[str, float] = {}
    servers: dict[str, tuple[Server, ...]] = {}
    said = {str(role): hours for role, hours in traffic.training_hours.items()}
    for role, found in pasts.items():
        made, before = apart(found), f"before {role}"
        for part, works in ((role, made.last), (before, made.before)):
            hours[part], gpu[part] = _whole(works)
            chips = {life.chip for past in works for life in past.lives if life.device == "gpu"}
            servers[part] = gpu_servers(prices, traffic.currency or prices.currency, chips=chips)
        how = f"recorded in {', '.join(map(_named, made.last))}"
        if role in said:
            hours[role], how = said[role], "as you said"
        elif not hours[role]:
            how = (
                "not recorded beside its package, so it counts as nothing"
                f" (--training_hours='{{{role}: HOURS}}' says what it takes)"
            )
        told.append(f"Training of {role}: {_said(hours[role], gpu[role])}, {how}.")
        if hours[before]:
            runs = ", ".join(_named(past) for past in made.before if past.lives)
            amount = _said(hours[before], gpu[before])
            told.append(f"What it started from, paid once: {amount}, recorded in {runs}.")
        if search := sum(device_hours(made.search).values()):
            told.append(f"The search for its shape: {search:.3g} device hours, not to be repeated.")
    told += _unknown_chips(pasts, prices)
    training = Training(
        large=hours["large"],
        small=hours["small"],
        factors=factors,
        source=source,
        before={role: hours[f"before {role}"] for role in pasts},
        gpu=gpu,
        gpu_servers=servers,
    )
    return training, told


def _unknown_chips(pasts: Mapping[str, Sequence[Past]], prices: Prices) -> list[str]:
    """What chips are taken for that no instance of the prices has."""
    seen = {
        (life.device, life.chip): past.folder
        for found in pasts.values()
        for past in found
        for life in past.lives
    }
    told = []
    for (device, chip), folder in seen.items():
        name, instance = instance_for(prices, device, chip, folder=folder)
        if not instance.has(chip):
            told.append(
                f"No instance of the prices has {chip}: what it computed is priced on {name}, as if"
                f" each of its devices were {instance.speed:g} of that chip's. Say yours in"
                " `instances` of a prices file."
            )
    return told


def _whole(pasts: Sequence[Past]) -> tuple[float, float]:
    """Device hours, and the share of them that a GPU computed."""
    recorded = device_hours(pasts)
    whole = sum(recorded.values())
    return whole, recorded.get("gpu", 0.0) / whole if whole else 0.0


def _named(past: Past) -> str:
    lives = f"{len(past.lives)} {'life' if len(past.lives) == 1 else 'lives'}"
    return f"{past.folder.rpartition('/')[2]} ({past.work}, {lives})"


def _said(hours: float, on_gpu: float) -> str:
    return f"{hours:.3g} device hours" + (f", {on_gpu:.0%} of them on GPUs" if on_gpu else "")
