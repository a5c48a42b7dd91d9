"""Prepared data is kept only if what its settings' files hold is the same."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from rectrain.data.config import PrepareConfig
from rectrain.data.prepare import _fields, _same_content
from rectrain.data.shards import Prepared
from rectrain.data.tokenize import load_tokenizer, tokenizer_hash
from rectrain.tasks import TASKS


def test_own_features_and_tokenizers_are_compared_by_content() -> None:
    config = PrepareConfig(source="tables", input=("x",), output="y", encoder="minilm")
    spec = TASKS["risk"]
    manifest = {
        "tasks": {"risk": {"fields": _fields(spec)}},
        "tokenizer": {"sha256": tokenizer_hash(load_tokenizer("minilm"))},
    }
    made = Prepared(Path("y"), json.loads(json.dumps(manifest)))
    assert _same_content(made, config=config, specs=TASKS)
    first, *rest = spec.fields.fields
    fields = dataclasses.replace(spec.fields, fields=(*rest, first))
    other = dataclasses.replace(spec, fields=fields)
    assert not _same_content(made, config=config, specs={"risk": other})
    elsewhere = Prepared(Path("y"), {**made.manifest, "tokenizer": {"sha256": "other"}})
    assert not _same_content(elsewhere, config=config, specs=TASKS)
