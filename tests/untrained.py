"""A run's folder with an untrained model in the documented checkpoint form, made in a second."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import save

from rectrain.train.build import Model, attachments, new_model, open_data
from rectrain.train.config import RunConfig
from rectrain.train.provenance import checkpoint_meta


def write_run(
    folder: Path,
    data: Path,
    *,
    seed: int = 0,
    kind: type[RunConfig] = RunConfig,
    change: Callable[[Model], Any] = lambda model: None,
    change_meta: Callable[[dict[str, Any]], Any] = lambda meta: None,
    **sections: dict[str, Any],
) -> Path:
    """A run on prepared data whose only checkpoint holds the weights that training starts from.

    `change` may alter them first, `change_meta` what the checkpoint says; `sections` are settings.
    """
    config = kind.model_validate(
        {"name": folder.name, "seed": seed, "data": {"paths": [str(data)]},
         "model": {"encoder": "tiny"}, **sections}
    )  # fmt: skip
    prepared = open_data(config)
    model = new_model(config, prepared)
    change(model)
    meta = {**checkpoint_meta(config, prepared), "step": 1, "score": None}
    change_meta(meta)
    files = {
        "model-00000-00000.safetensors": save(dict(model.state_dict())),
        "meta.json": json.dumps(meta).encode(),
        **attachments(model, prepared),
    }
    checkpoint = folder / "checkpoints" / "step-00000001"
    for name, content in files.items():
        (checkpoint / name).parent.mkdir(parents=True, exist_ok=True)
        (checkpoint / name).write_bytes(content)
    facts = {
        name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in files.items()
    }
    manifest = json.dumps({"format": 1, "files": facts}).encode()
    (checkpoint / "manifest.json").write_bytes(manifest)
    (checkpoint / "COMPLETE").write_text(hashlib.sha256(manifest).hexdigest())
    return folder
