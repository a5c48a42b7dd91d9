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
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, Literal, NamedTuple, TypeAlias

from rectrain.config import yaml_mapping
from rectrain.cost.ledger import Entry, Ledger, Stage, exact
from rectrain.cost.prices import Instance, Prices, charge
from rectrain.errors import ConfigError, DataError
from rectrain.train.storage import Store
from rectrain.train.usage import FOLDER, Usage, Work, read_usage

__all__ = [
    "STAGES",
    "Device",
    "Made",
    "Past",
    "apart",
    "device_hours",
    "history",
    "instance_for",
    "maker",
    "most_memory",
    "runs_of",
    "training_ledger",
]

Device: TypeAlias = Literal["cpu", "gpu"]

#: Where each kind of work belongs in the ledger: making a model, and making it fit.
STAGES: Mapping[Work, tuple[Stage, str]] = {
    "pretrain": ("pretraining", "training"),
    "train": ("pretraining", "training"),
    "compress": ("tuning", "resources"),
    "tune": ("tuning", "resources"),
}

_RUN, _COMPRESSION, _SEARCH = "config.yaml", "compress.yaml", "tune.yaml"
_OURS = "zero_stage"  # a setting of every training of ours, and of no other program's
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
        if _file(store) or store.exists(FOLDER):
            return place
    return None


def _file(store: Store) -> str | None:
    """The settings of the work that was done in a folder; others' files may have a run's name."""
    return next((name for name in _WORK if store.exists(name)), _RUN if _is_run(store) else None)


def _is_run(store: Store) -> bool:
    if not store.exists(_RUN) or store.exists(FOLDER):
        return store.exists(_RUN)
    try:
        settings = yaml_mapping(store.read(_RUN), name=f"{store.root}/{_RUN}")
    except ConfigError:
        return False
    train = settings.get("train")
    return isinstance(train, Mapping) and _OURS in train


def _collect(folder: str, found: dict[str, Past]) -> None:
    """Adds a folder's work, after that of what it was made from."""
    if folder in found:
        return
    store = Store.open(folder)
    file = _file(store)
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


def runs_of(past: Past) -> list[Store]:
    """The folders of trainings and pre-trainings in a work: its own, or those within it."""
    store = Store.open(past.folder)
    file = _file(store)
    places = [store, *(store.sub(part) for part in _parts(store, file))]
    return [one for one in places if _is_run(one)]


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
    if last == "encoder" and _is_run(Store.open(run)):
        return run
    search, *inner = encoder.rsplit("/", 3)
    if inner[:1] == ["chosen"] and inner[2:] == ["cut"] and Store.open(search).exists(_SEARCH):
        return search
    return None


def _run_of(checkpoint: str) -> str:
    """The run's folder of a checkpoint's, or the same."""
    run, _, step = checkpoint.rstrip("/").rpartition("/checkpoints/")
    return run if run and "/" not in step else checkpoint.rstrip("/")


class Made(NamedTuple):
    """What went into a model, apart: `last` made it, as trainings to come will; `before` is what it
    started from (pre-training, earlier runs, what its teacher took); `search` found its shape."""

    last: tuple[Past, ...]
    before: tuple[Past, ...]
    search: tuple[Past, ...]


def apart(pasts: Sequence[Past]) -> Made:
    """Takes a model's history apart.

    Args:
        pasts: of `history`, whose last is the work that made the model; or some of them.
    """
    search = tuple(past for past in pasts if past.work == "tune")
    others = tuple(past for past in pasts if past.work != "tune")
    return Made(others[-1:], others[:-1], search)


def device_hours(pasts: Sequence[Past]) -> dict[Device, float]:
    """Device hours by what computed; of a killed life also what was lost with it."""
    hours: dict[Device, float] = defaultdict(float)
    for past in pasts:
        for life in past.lives:
            hours[life.device] += life.device_seconds / 3600
    return dict(hours)


def most_memory(lives: Sequence[Usage]) -> int:
    """Bytes: the most that processes which worked together held, each at its own worst moment.

    Processes of one work (`label`) and one size of its group work together, a rank each; of a rank
    the worst of its lives counts. 0 where there are none.
    """
    groups: dict[tuple[str, int], dict[int, int]] = defaultdict(dict)
    for life in lives:
        ranks = groups[life.label, life.world_size]
        ranks[life.rank] = max(ranks.get(life.rank, 0), life.peak_memory_bytes)
    return max((sum(ranks.values()) for ranks in groups.values()), default=0)


def training_ledger(pasts: Sequence[Past], prices: Prices) -> Ledger:
    """What measured work costs on demand: once and fixed, two entries a folder and chip.

    Instance hours = device-seconds / 3600 / (devices of the instance × speed of one over the
    measured device). A whole instance may be rented for a part of its devices: give the devices
    that are paid for to the run (`train.threads_per_worker`), or the figure is too small. The
    instance is of the measured chip, where the prices have it, else the first of its kind: a GPU's
    seconds are never priced on a CPU. Beside it stands the most memory that was held, which comes
    with the instance: a quantity without a price.

    Args:
        pasts: from `history`.
        prices: of instances.

    Raises:
        ConfigError: the prices have no instance of that kind.
    """
    ledger = Ledger()
    for past in pasts:
        found: dict[tuple[Device, str], list[Usage]] = defaultdict(list)
        for life in past.lives:
            found[life.device, life.chip].append(life)
        for (device, chip), lives in found.items():
            ledger = ledger.add(*_entries(past, lives, prices, device, chip))
    return ledger


def _entries(
    past: Past, lives: Sequence[Usage], prices: Prices, device: Device, chip: str
) -> tuple[Entry, Entry]:
    """Time, and memory."""
    name, instance = instance_for(prices, device, chip, folder=past.folder)
    stage, part = STAGES[past.work]
    label = f"{past.work} {past.folder.rpartition('/')[2]}"
    measured = sum((exact(life.seconds) * life.num_devices for life in lives), Fraction(0))
    time = charge(
        instance.on_demand,
        measured / 3600 / (instance.num_devices * exact(instance.speed)),
        stage=stage,
        part=part,
        kind="hardware",
        behaviour="fixed",
        label=label,
        period="once",
        note=f"measured {float(measured):,.0f} device-seconds on {chip} in {len(lives)} lives; on "
        f"{name}, on demand",
    )
    where = "of GPUs" if device == "gpu" else "of processes"
    memory = replace(
        time,
        label=f"{label}: most memory {where}",
        quantity=Fraction(most_memory(lives), 2**30),
        unit="gib held",
        unit_price=Fraction(0),
        source=f"recorded in {len(lives)} lives; comes with {name}",
    )
    return time, memory


def instance_for(prices: Prices, device: Device, chip: str, *, folder: str) -> tuple[str, Instance]:
    """The instance that work on a device is paid on, and its name: of the same chip, or the first
    of its kind.

    Args:
        prices: of instances.
        device, chip: that the work was measured on.
        folder: of the work, for errors.

    Raises:
        ConfigError: there is none of this kind.
    """
    found = prices.of_chip(device, chip)
    if not found:
        raise ConfigError(
            what="instances of the prices",
            got=f"none with a {device}",
            rule=f"device-seconds of {folder} were measured on a {device}, and say nothing of the "
            "other kind",
            fix=f"add a {device} instance to your prices file",
        )
    return next(iter(found.items()))
