"""The training runs of a search: the super-network's, one a trial, and the heads of what is chosen.

All learn of the teacher, from the rows in the shares that it was last trained on.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce
from pathlib import Path
from typing import Any

from rectrain.data.shards import Prepared
from rectrain.model.shape import Shape
from rectrain.train.build import LoadedModel
from rectrain.train.config import RunConfig, TrainConfig
from rectrain.tune.config import SearchConfig
from rectrain.tune.space import Space

__all__ = ["SUPERNET", "VECTORS", "heads_run", "separate_run", "supernet_run", "supernet_shape"]

SUPERNET = "supernet"
#: The teacher's vectors of all texts: all runs of a search have the same.
VECTORS = "vectors"
_MIXING = ("num_negatives", "temperature", "mixing_weights")
_HEAD_TOKENS = 4  # times as many in a micro-batch, where texts are vectors
_OF_THE_ENCODER = ("learning_rate", "layer_decay", "balancer", "distill_relation", "offload")


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
    return _run(
        config, teacher, data, name=SUPERNET, root=root, encoder=root / "start", changes=sizes
    )


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
    """
    run = _run(config, teacher, data, name="run", root=root, encoder=root / "cut", changes={})
    tree = run.model_dump()
    for key, value in settings.items():
        *parents, last = key.split(".")
        reduce(lambda part, name: part[name], parents, tree)[last] = value
    return RunConfig.model_validate(tree)


def heads_run(
    config: SearchConfig, teacher: LoadedModel, data: Mapping[str, Prepared], *, root: Path
) -> RunConfig:
    """The run that trains the heads of a chosen encoder.

    Args:
        config, teacher, data: as of `supernet_run`.
        root: folder of the model, whose cut/ is the encoder.
    """
    changes: dict[str, Any] = {
        field: TrainConfig.model_fields[field].default for field in _OF_THE_ENCODER
    }
    changes |= {"freeze": "encoder", "num_steps": config.finish.head_steps}
    return _run(config, teacher, data, name="heads", root=root, encoder=root / "cut",
                changes=changes, tokens=_HEAD_TOKENS * config.tokens_per_micro_batch)  # fmt: skip


def _run(
    config: SearchConfig,
    teacher: LoadedModel,
    data: Mapping[str, Prepared],
    *,
    name: str,
    root: Path,
    encoder: Path,
    changes: Mapping[str, Any],
    tokens: int | None = None,
) -> RunConfig:
    taught = teacher.checkpoint.meta["config"]
    rows = {key: taught["data"][key] for key in _MIXING}
    train = config.train.model_dump(exclude={"teacher", "teacher_sha256"})
    return RunConfig.model_validate(
        {
            "name": name,
            "output": str(root),
            "seed": config.seed,
            "data": {
                **rows,
                "paths": list(config.data or taught["data"]["paths"]),
                "tokens_per_micro_batch": tokens or config.tokens_per_micro_batch,
            },
            "model": {**taught["model"], "encoder": str(encoder)},
            "train": {
                **train,
                "teacher": config.teacher,
                "tasks": list(data),
                "vector_cache": str(Path(config.output) / VECTORS),
                **changes,
            },
            "tracking": {**config.tracking.model_dump(), "mlflow": "off"},
        }
    )
