"""The training runs of a search: the super-network's, one a trial, and the heads of what is chosen.

All learn of the teacher, as those of a compression do.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rectrain.compress.runs import heads_alone, learning
from rectrain.config import parse_mapping
from rectrain.data.shards import Prepared
from rectrain.errors import ConfigError
from rectrain.model.shape import Shape
from rectrain.train.build import LoadedModel, open_data
from rectrain.train.config import RunConfig
from rectrain.tune.config import SearchConfig
from rectrain.tune.space import Space

__all__ = [
    "SUPERNET",
    "VECTORS",
    "check_settings",
    "heads_run",
    "separate_run",
    "supernet_run",
    "supernet_shape",
    "with_settings",
]

SUPERNET = "supernet"
#: The teacher's vectors of all texts: all runs of a search have the same.
VECTORS = "vectors"


def supernet_shape(space: Space) -> Shape:
    """The super-network's own shape: the largest of the space."""
    return space.shape(space.largest)


def supernet_run(
    config: SearchConfig, teacher: LoadedModel, data: Mapping[str, Prepared], *, space: Space
) -> RunConfig:
    """The run that trains the super-network.

    Args:
        config: of the search, with absolute paths.
        teacher: its teacher.
        data: task -> prepared data.
        space: of the search.
    """
    root = Path(config.output)
    names = ("layers", "heads", "intermediate")
    sizes = {f"elastic_{name}": list(space.values[name]) for name in names}
    run = _run(config, teacher, data, name=SUPERNET, root=root, encoder=root / "start")
    return RunConfig.model_validate({**run, "train": {**run["train"], **sizes}})


def separate_run(
    config: SearchConfig,
    teacher: LoadedModel,
    data: Mapping[str, Prepared],
    *,
    root: Path,
    settings: Mapping[str, Any],
) -> RunConfig:
    """The run of one trial.

    Args:
        config, teacher, data: as of `supernet_run`.
        root: folder of the trial, whose cut/ is the encoder that it begins with.
        settings: by dotted key, in the place of the search's own.

    Raises:
        ConfigError: no run takes these.
    """
    run = _run(config, teacher, data, name="run", root=root, encoder=root / "cut")
    return parse_mapping(RunConfig, with_settings(run, settings), name="space.settings")


def check_settings(
    config: SearchConfig, teacher: LoadedModel, data: Mapping[str, Prepared]
) -> None:
    """Refuses a value of `space.settings` that no run takes, whatever the others are.

    Args:
        config, teacher, data: as of `supernet_run`.

    Raises:
        ConfigError: for the first such value.
    """
    searched, root = config.space.settings, Path(config.output)

    def refusal(values: tuple[Any, ...]) -> ConfigError | None:
        settings = dict(zip(searched, values, strict=True))
        try:
            open_data(separate_run(config, teacher, data, root=root, settings=settings))
        except ConfigError as error:
            return error
        return None

    for name, values in searched.items():
        for value in values:
            refusals = map(refusal, itertools.product(*{**searched, name: (value,)}.values()))
            first = next(refusals)
            if first is not None and all(refusals):
                raise first


def heads_run(
    config: SearchConfig,
    teacher: LoadedModel,
    data: Mapping[str, Prepared],
    *,
    root: Path,
    settings: Mapping[str, Any] | None = None,
) -> RunConfig:
    """The run that trains the heads of a chosen encoder; they begin anew, at the search's rate.

    Args:
        config, teacher, data: as of `supernet_run`.
        root: folder of the model, whose cut/ is the encoder.
        settings: of its trial; as of `separate_run`.
    """
    run = _run(config, teacher, data, name="heads", root=root, encoder=root / "cut")
    run = heads_alone(with_settings(run, settings or {}), num_steps=config.finish.head_steps)
    return RunConfig.model_validate(run)


def with_settings(tree: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Sections with settings by dotted key in the place of their own; `tree` stays as it is."""
    found = copy.deepcopy(dict(tree))
    for key, value in settings.items():
        *parents, last = key.split(".")
        place = found
        for name in parents:
            if not isinstance(place.get(name), dict):
                place[name] = {}
            place = place[name]
        place[last] = value
    return found


def _run(
    config: SearchConfig,
    teacher: LoadedModel,
    data: Mapping[str, Prepared],
    *,
    name: str,
    root: Path,
    encoder: Path,
) -> dict[str, Any]:
    """Settings of a run, by section."""
    taught = teacher.checkpoint.meta["config"]
    paths = config.data or taught["data"]["paths"]
    return {
        "name": name,
        "output": str(root),
        "seed": config.seed,
        **learning(taught, encoder, paths=paths, tokens=config.tokens_per_micro_batch),
        "train": {
            **config.train.model_dump(exclude={"teacher_sha256"}),
            "teacher": config.teacher,
            "tasks": list(data),
            "vector_cache": str(Path(config.output) / VECTORS),
        },
        "tracking": {**config.tracking.model_dump(), "mlflow": "off"},
    }
