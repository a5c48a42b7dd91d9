"""A cut encoder as a folder: a BERT made smaller, fitted to its parent, in Hugging Face layout."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from transformers import BertModel

from rectrain.compress.quantize import pack
from rectrain.data.tokenize import load_tokenizer, tokenizer_hash
from rectrain.errors import EncoderError
from rectrain.model.encoder import load_encoder
from rectrain.model.refit import refit
from rectrain.model.shape import Shape
from rectrain.model.slicing import cut, measure_importance
from rectrain.train.build import LoadedModel
from rectrain.train.export import encoder_files

__all__ = ["cut_and_refit", "open_cut", "write_encoder"]


def cut_and_refit(large: BertModel, *, shape: Shape, texts: Sequence[Sequence[int]]) -> BertModel:
    """The most important parts of a BERT, fitted to its hidden states.

    Args:
        large: left as it is.
        shape: what is left.
        texts: token ids of some hundred texts of all tasks.
    """
    packed = [pack(texts)]
    importance = measure_importance(large, packed)
    student = cut(large, shape=shape, importance=importance)
    refit(student, large, shape=shape, importance=importance, texts=packed)
    return student


def write_encoder(bert: BertModel, folder: Path, *, tokenizer: Path) -> None:
    """Writes what `model.encoder` of a run may name.

    Args:
        bert: the encoder.
        folder: which is there.
        tokenizer: directory of its tokenizer.
    """
    shutil.copytree(tokenizer, folder, dirs_exist_ok=True)
    # Not by save_pretrained, which shows a bar and wakes DeepSpeed in this process.
    files = encoder_files(bert, tokenizer={}, max_length=0, card="")
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_bytes(files[name])


def open_cut(directory: str, teacher: LoadedModel) -> BertModel:
    """The inverse of `write_encoder`.

    Args:
        directory: of the encoder.
        teacher: the model whose encoder it was cut from.

    Raises:
        EncoderError: it can't be read, or has another tokenizer than the teacher.
    """
    if tokenizer_hash(load_tokenizer(directory)) != teacher.checkpoint.meta["tokenizer_sha256"]:
        raise EncoderError(
            what=f"encoder {directory}",
            got="another tokenizer than the teacher's",
            rule="token ids must mean the same",
            fix="give one that was cut from this teacher's",
        )
    large = teacher.model.encoder.config
    return load_encoder(
        directory, vocab_size=large.vocab_size, max_length=large.max_position_embeddings
    )
