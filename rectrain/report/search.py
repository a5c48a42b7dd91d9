"""What a search's folder says to people and programs: front.html and front.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rectrain.errors import DataError
from rectrain.report.front import front_of, render_front
from rectrain.strict_json import strict_json
from rectrain.train.storage import Store
from rectrain.tune.pareto import importances
from rectrain.tune.trials import (
    OBJECTIVES,
    Trial,
    beyond,
    open_study,
    read_facts,
    read_study,
    with_numbers,
)

__all__ = ["FRONT_PAGE", "knee_of", "read_front", "write_front"]

FRONT, FRONT_PAGE = "front.json", "front.html"


def write_front(root: Path, *, made: Mapping[str, Mapping[str, Any]] | None = None) -> Path:
    """Writes both files from the study.

    Args:
        root: the search's folder.
        made: name -> what the search says of a chosen model; None before its end.

    Returns:
        The page.
    """
    path = root / "study.db"
    trials, facts = read_study(path), read_facts(path)
    chosen = {int(one["trial"]): beyond(one["constraints"]) for one in (made or {}).values()}
    found = importances(open_study(path))
    page = render_front(trials, facts, importances=found, chosen=chosen)
    front = front_of(trials)
    content = {
        "way": facts.way,
        "currency": facts.currency,
        "objectives": OBJECTIVES,
        "reference": facts.reference,
        "device_seconds": facts.preparation_seconds + sum(one.device_seconds for one in trials),
        "preparation_seconds": facts.preparation_seconds,
        "knee": front.knee,
        "front": [_facts(trial) for trial in front.trials],
        "importances": found,
        "models": None if made is None else dict(made),
    }
    store = Store.open(str(root))
    store.replace(FRONT, strict_json(content).encode())
    store.replace(FRONT_PAGE, page.encode())
    return root / FRONT_PAGE


def read_front(root: Path) -> dict[str, Any]:
    """What front.json of a search says that has come to its end.

    Args:
        root: the search's folder.

    Raises:
        DataError: there is none, or the search has not come to its end.
    """
    path = root / FRONT
    found: dict[str, Any] = json.loads(path.read_bytes()) if path.is_file() else {}
    if found.get("models") is None:
        raise DataError(
            what=f"search {root}",
            got=f"a {FRONT} of a search that goes on" if found else f"no {FRONT}",
            rule="must be the output of a search that has come to its end",
            fix="run jobs.tune to its end, and give its output",
        )
    models = {name: with_numbers(one) for name, one in found["models"].items()}
    return {**found, "front": [with_numbers(one) for one in found["front"]], "models": models}


def knee_of(front: Mapping[str, Any]) -> dict[str, Any] | None:
    """The knee of front.json: what was packaged of it, or its trial; None where there is no front.

    Args:
        front: of `read_front`.
    """
    trials = (one for one in front["front"] if one["trial"] == front["knee"])
    found: dict[str, Any] | None = front["models"].get("knee") or next(trials, None)
    return found


def _facts(trial: Trial) -> dict[str, Any]:
    worth = None if trial.objectives is None else asdict(trial.objectives)
    return {
        "trial": trial.number,
        "parameters": dict(trial.parameters),
        "objectives": worth,
        "constraints": dict(trial.constraints or {}),
        **(trial.facts or {}),
    }
