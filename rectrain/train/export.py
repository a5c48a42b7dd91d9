"""The trained encoder as an ordinary Hugging Face BERT with a model card."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save as to_safetensors
from transformers import BertModel

from rectrain.data.texts import MLM
from rectrain.tasks import TASKS
from rectrain.train.build import TrainedEncoder
from rectrain.train.storage import Store
from rectrain.train.tracking import read_records

__all__ = ["base_model", "encoder_files", "export_encoder", "history"]

_FOLDER = "encoder"


def export_encoder(loaded: TrainedEncoder, store: Store) -> None:
    """Writes `encoder/` into a run's folder: transformers and sentence-transformers load it.

    Args:
        loaded: the trained encoder.
        store: the run's folder; its metrics.jsonl gives the card its figures.
    """
    folder = store.sub(_FOLDER)
    validation = _validation(store, step=loaded.checkpoint.step)
    max_length = max(int(facts["max_length"]) for facts in loaded.checkpoint.meta["tasks"].values())
    tokenizer = Path(loaded.tokenizer_path)
    files = encoder_files(
        loaded.encoder,
        tokenizer={path.name: path.read_bytes() for path in sorted(tokenizer.iterdir())},
        max_length=max_length,
        card=_card(loaded, validation=validation),
    )
    for name, data in files.items():
        folder.write(name, data)


def encoder_files(
    bert: BertModel, *, tokenizer: Mapping[str, bytes], max_length: int, card: str
) -> dict[str, bytes]:
    """An encoder as transformers and sentence-transformers read it: path -> content.

    Args:
        bert: the encoder, whole (not split over ranks), without adapters.
        tokenizer: its files.
        max_length: tokens that sentence-transformers keeps of a text.
        card: the README.md.
    """
    weights = {name: tensor.contiguous() for name, tensor in bert.state_dict().items()}
    config = bert.config.to_dict() | {"architectures": ["BertModel"]}
    config.pop("_name_or_path", None)  # a path of this machine
    return {
        "config.json": _json(config),
        "model.safetensors": to_safetensors(weights, metadata={"format": "pt"}),
        "README.md": card.encode(),
        "modules.json": _json(_MODULES),
        "sentence_bert_config.json": _json({"max_seq_length": max_length, "do_lower_case": False}),
        "1_Pooling/config.json": _json(
            {"word_embedding_dimension": bert.config.hidden_size, "pooling_mode_mean_tokens": True}
        ),
        **tokenizer,
    }


_MODULES = [
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
]


def _json(value: object) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True) + "\n").encode()


def _validation(store: Store, *, step: int) -> dict[str, float]:
    path = store.local
    records = read_records(path / "metrics.jsonl") if path is not None else []
    known: dict[int, dict[str, float]] = {
        r["step"]: r["validation"] for r in records if r["kind"] == "validation"
    }
    return known.get(step, {})


def _card(loaded: TrainedEncoder, *, validation: Mapping[str, float]) -> str:
    meta: dict[str, Any] = loaded.checkpoint.meta
    tasks = list(meta["tasks"])
    is_pretrained = MLM in tasks
    names = {MLM: ("loss", "perplexity")} if is_pretrained else {t: (t,) for t in tasks}
    rows = [
        f"| {task} | {name if is_pretrained else TASKS[task].primary} | "
        f"{f'{validation[name]:.4f}' if name in validation else 'not measured'} |"
        for task in tasks
        for name in names[task]
    ]
    return "\n".join(
        [
            "---",
            "library_name: transformers",
            "license: other",
            "license_name: that-of-the-base-encoder-and-data",
            f"base_model: {base_model(meta)}",
            "pipeline_tag: feature-extraction",
            "---",
            "",
            "# Shared text encoder of a rectrain model",
            "",
            f"{history(meta)} A text's vector is the mean of its tokens' last hidden states.",
            "",
            "Licence: the weights derive from the base encoder and the training data; state theirs "
            "here before publishing.",
            "",
            "| task | metric | validation |",
            "|---|---|---|",
            *rows,
            "",
            "The heads are not part of this folder; the figures are of the whole model, on the "
            "first rows of the validation split.",
            "",
        ]
    )


def history(meta: Mapping[str, Any]) -> str:
    """What a run has done to its encoder, in a sentence."""
    train, tasks = meta["config"]["train"], ", ".join(meta["tasks"])
    begun = f"`{train.get('start_from') or meta['config']['model']['encoder']}`"
    if train.get("freeze") == "encoder":
        return f"The BERT of {begun}, unchanged: heads for {tasks} were trained on its vectors."
    trained = "pre-trained by masked words" if MLM in meta["tasks"] else "trained jointly"
    taught = f", taught by `{train['teacher']}`" if train.get("teacher") else ""
    return f"A BERT {trained} on {tasks} for {meta['step']:,} steps, from {begun}{taught}."


def base_model(meta: Mapping[str, Any]) -> str:
    """The encoder that the first of the runs behind a checkpoint began with, as far as known."""
    start = meta["config"]["train"].get("start_from")
    if start is None:
        return str(meta["config"]["model"]["encoder"])
    before = Path(start) / "meta.json"  # a URI's may be behind a password, which isn't stored
    return base_model(json.loads(before.read_bytes())) if before.is_file() else str(start)
