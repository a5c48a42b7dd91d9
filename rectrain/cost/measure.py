"""From what was measured to entries of the ledger.

What a model took is what its own folder tells of (`rectrain.train.usage`), and what went into it:
the run that it started from, the run that pre-trained its encoder, the large model that it is made
of, the search that found its shape. A device-second counts whether the device was busy or waited:
it was held. Not in it: starting Ray and its workers, preparing data, evaluating; the last seconds
of a life that was killed; lives that `--overwrite` removed; anything that versions before this one
have trained.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from rectrain.config import yaml_mapping
from rectrain.cost.ledger import Ledger, Stage, exact
from rectrain.cost.prices import Instance, Purchase, charge
from rectrain.errors import ConfigError, DataError
from rectrain.train.storage import Store
from rectrain.train.usage import FOLDER, Usage, Work, read_usage

__all__ = [
    "STAGES",
    "Past",
    "device_hours",
    "history",
    "maker",
    "training_ledger",
]

#: Where each kind of work belongs in the ledger: making a model, and making it fit.
STAGES: Mapping[Work, tuple[Stage, str]] = {
    "pretrain": ("pretraining", "training"),
    "train": ("pretraining", "training"),
    "compress": ("tuning", "resources"),
    "tune": ("tuning", "resources"),
}

_RUN, _COMPRESSION, _SEARCH = "config.yaml", "compress.yaml", "tune.yaml"
_WORK: Mapping[str, Work] = {_SEARCH: "tune", _COMPRESSION: "compress"}


@dataclass(frozen=True)
class Past:
    """Work that went into a model.

    Attributes:
        folder: where it was done.
        work: what kind it was.
        lives: of its processes, the earliest first; none where the folder is gone, or older than
            the recording of usage.
    """

    folder: str
    work: Work
    lives: tuple[Usage, ...]

    @property
    def device_seconds(self) -> float:
        """Of all lives."""
        return sum(life.device_seconds for life in self.lives)


def history(folder: str) -> list[Past]:
    """All work that went into a model, the earliest first; each once.

    Args:
        folder: of a run, a compression, a search, or of a package that one of them made. Models
            that a search made have their own work beside the search's.

    Raises:
        DataError: nothing there says how it was made; or a record of another form.
        ConfigError: stored settings that can't be read.
    """
    made_in = maker(folder)
    if made_in is None:
        raise DataError(
            what="folder of a model",
            got=folder,
            rule=f"must be a run (with {_RUN}), a compression (with {_COMPRESSION}), a search "
            f"(with {_SEARCH}), or a package in one",
            fix="give the folder that jobs.train, jobs.pretrain, jobs.compress or jobs.tune wrote",
        )
    found: dict[str, Past] = {}
    _collect(made_in, found)
    return list(found.values())


def maker(folder: str) -> str | None:
    """Where a package was made, or else the folder itself, absolute as in stored settings.

    Args:
        folder: as of `history`.

    Returns:
        None where neither it nor the folder around it holds settings or usage.
    """
    absolute = folder.rstrip("/") if "://" in folder else Store.open(folder).root
    around = absolute.rpartition("/")[0]
    places = [absolute, around]
    if around.rpartition("/")[0].endswith("/chosen"):  # by a search: beside the run of its heads
        places.append(f"{around}/heads")
    for place in places:
        store = Store.open(place or "/")
        if any(store.exists(name) for name in (*_WORK, _RUN, FOLDER)):
            return place
    return None


def _collect(folder: str, found: dict[str, Past]) -> None:
    """Adds a folder's work, after that of what it was made from."""
    if folder in found:
        return
    store = Store.open(folder)
    file = next((name for name in (*_WORK, _RUN) if store.exists(name)), None)
    settings = yaml_mapping(store.read(file), name=f"{folder}/{file}") if file else {}
    for origin in _origins(settings):
        _collect(origin, found)
    places = [store, *(store.sub(part) for part in _parts(store, file))]
    lives = sorted((life for one in places for life in read_usage(one)), key=lambda one: one.start)
    # Runs within a compression or a search are part of it.
    work = _WORK.get(file or "") or (lives[0].work if lives else "train")
    found[folder] = Past(folder, work, tuple(lives))


def _parts(store: Store, file: str | None) -> Sequence[str]:
    """Runs within a folder, which has such settings."""
    if file == _COMPRESSION:
        return ("distilled", "heads")
    if file == _SEARCH:
        trials = store.sub("trials").folders()
        return ("supernet", *(f"trials/{trial}/run" for trial in trials))
    return ()


def _origins(settings: Mapping[str, Any]) -> Iterator[str]:
    """Folders of what a run, a compression or a search was made from, by its settings."""
    train = settings.get("train") or {}
    encoder = settings.get("encoder") or (settings.get("model") or {}).get("encoder") or ""
    if train.get("start_from"):
        yield _run_of(train["start_from"])
    elif made_in := _maker_of_encoder(encoder):
        yield made_in
    if teacher := settings.get("teacher") or train.get("teacher"):
        yield _run_of(teacher)


def _maker_of_encoder(encoder: str) -> str | None:
    """The run that exported an encoder, as RUN/encoder, or the search that cut it, as
    SEARCH/chosen/TRIAL/cut."""
    run, _, last = encoder.rpartition("/")
    if last == "encoder" and Store.open(run).exists(_RUN):
        return run
    search, *inner = encoder.rsplit("/", 3)
    if inner[:1] == ["chosen"] and inner[2:] == ["cut"] and Store.open(search).exists(_SEARCH):
        return search
    return None


def _run_of(checkpoint: str) -> str:
    """The run's folder of a checkpoint's, or the same."""
    run, _, step = checkpoint.rstrip("/").rpartition("/checkpoints/")
    return run if run and "/" not in step else checkpoint.rstrip("/")


def device_hours(pasts: Sequence[Past]) -> dict[Work, float]:
    """Device hours by kind of work; only kinds that were done."""
    hours: dict[Work, float] = defaultdict(float)
    for past in pasts:
        if past.lives:
            hours[past.work] += past.device_seconds / 3600
    return dict(hours)


def training_ledger(
    pasts: Sequence[Past], instance: Instance, *, name: str, purchase: Purchase = "on_demand"
) -> Ledger:
    """What measured work costs on an instance: one entry a folder and chip, once and fixed.

    Instance hours = device-seconds / 3600 / (devices of the instance × speed of one over the
    measured device). A whole instance may be rented for a part of its devices: give the devices
    that are paid for to the run (`train.threads_per_worker`), or the figure is too small.

    Args:
        pasts: from `history`.
        instance: that is paid for.
        name: of the instance.
        purchase: how.

    Raises:
        ConfigError: work on GPUs and an instance without, or the other way round; or no such price.
    """
    price = instance.hourly(purchase)
    ledger = Ledger()
    for past in pasts:
        seconds: dict[tuple[str, str], list[Usage]] = defaultdict(list)
        for life in past.lives:
            seconds[life.device, life.chip].append(life)
        for (device, chip), lives in seconds.items():
            _check_device(device, instance, folder=past.folder, name=name)
            stage, part = STAGES[past.work]
            measured = sum((exact(life.seconds) * life.num_devices for life in lives), Fraction(0))
            ledger = ledger.add(
                charge(
                    price,
                    measured / 3600 / (instance.num_devices * exact(instance.speed)),
                    stage=stage,
                    part=part,
                    kind="hardware",
                    behaviour="fixed",
                    label=f"{past.work} {past.folder.rpartition('/')[2]}",
                    period="once",
                    note=f"measured {float(measured):,.0f} device-seconds on {chip} in "
                    f"{len(lives)} lives; on {name}, {purchase}",
                )
            )
    return ledger


def _check_device(device: str, instance: Instance, *, folder: str, name: str) -> None:
    if device != instance.device:
        raise ConfigError(
            what=f"instance {name} for {folder}",
            got=f"a {instance.device} machine",
            rule=f"device-seconds were measured on a {device}, and say nothing of the other",
            fix=f"choose a {device} instance, or measure a run on a {instance.device}",
        )
