"""A user's own features: a YAML file that extends the tasks' field tables."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from rectrain.data.fields import FieldTable
from rectrain.errors import DataError

__all__ = ["extend_tables", "read_own_features"]


def read_own_features(path: str) -> dict[str, dict[str, dict[str, Any]]]:
    """Read {task: {name: {kind: numeric|categorical|vector, low, high, size, description}}}.

    Raises:
        DataError: no such file, or another form.
    """
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise _wrong(path, error) from error
    if not isinstance(content, dict):
        raise _wrong(path, content)
    for task, features in content.items():
        if not isinstance(features, dict):
            raise _wrong(f"{path}: {task}", features)
    return content


def extend_tables(
    tables: Mapping[str, FieldTable], own: Mapping[str, Mapping[str, Mapping[str, Any]]]
) -> dict[str, FieldTable]:
    """The tables with a user's own features added.

    Raises:
        DataError: an unknown task, or a feature that `FieldTable.extend` refuses.
    """
    for task in own:
        if task not in tables:
            raise DataError(
                what="task of own features", got=task, rule=f"known are {', '.join(tables)}",
                fix="name one of them",
            )  # fmt: skip
    return {task: table.extend(own.get(task, {})) for task, table in tables.items()}


def _wrong(path: str, got: object) -> DataError:
    return DataError(
        what=f"features file {path}", got=got,
        rule="must be YAML: {task: {name: {kind: numeric}}}", fix="see docs/data.md, own features",
    )  # fmt: skip
