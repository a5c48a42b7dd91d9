"""What a search's folder says to people and programs: front.html and front.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rectrain.report.front import front_of, render_front
from rectrain.train.storage import Store
from rectrain.tune.pareto import importances
from rectrain.tune.trials import OBJECTIVES, Trial, open_study, read_facts, read_study

__all__ = ["write_front"]


def write_front(root: Path, *, made: Mapping[str, Mapping[str, Any]] | None = None) -> Path:
    """Writes both files from the study.

    Args:
        root: the search's folder.
        made: name -> what the search says of a chosen model.

    Returns:
        The page.
    """
    path = root / "study.db"
    trials, facts = read_study(path), read_facts(path)
    chosen = {int(one["trial"]) for one in (made or {}).values()}
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
        "models": dict(made or {}),
    }
    store = Store.open(str(root))
    store.replace("front.json", (json.dumps(content, indent=1) + "\n").encode())
    store.replace("front.html", page.encode())
    return root / "front.html"


def _facts(trial: Trial) -> dict[str, Any]:
    worth = None if trial.objectives is None else asdict(trial.objectives)
    return {
        "trial": trial.number,
        "parameters": dict(trial.parameters),
        "objectives": worth,
        "constraints": dict(trial.constraints or {}),
        **(trial.facts or {}),
    }
