"""Trims a BERT's vocabulary to the pieces that its texts use; exact for every text made of these.

    keep = kept_pieces(tokenizer, texts)
    trimmed = trim(tokenizer, bert, keep)
    trimmed.tokenizer.save_pretrained(folder), trimmed.bert.save_pretrained(folder)
    measure_fallback(tokenizer, bert, trimmed, held_out_texts, max_length=64)

WordPiece takes the longest piece that fits, from left to right. Where all pieces of a text are
kept, none longer can come in between, so the text has the same pieces and the same vector. Where
one was dropped, smaller pieces stand in its place, at worst single characters: the text falls back.

Shapes: V pieces of the full vocabulary, W kept ones, D hidden size, n texts.
"""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor
from transformers import BertModel

from rectrain.data.batch import PackedTexts, split_texts
from rectrain.data.tokenize import load_tokenizer, reader, tokenize
from rectrain.errors import ConfigError, EncoderError
from rectrain.model.encoder import encode
from rectrain.model.slicing import with_weights

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

__all__ = [
    "Fallback",
    "FallbackTokenizer",
    "Trimmed",
    "kept_pieces",
    "measure_fallback",
    "trim",
]

Ints = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

_TOKENS = 4096  # encoded together when measuring


@dataclass(frozen=True)
class Trimmed:
    """A trimmed encoder.

    Attributes:
        tokenizer: an ordinary fast tokenizer of W pieces.
        bert: its encoder.
        ids: int64 [W], the full vocabulary's id of each piece, ascending.
    """

    tokenizer: PreTrainedTokenizerFast
    bert: BertModel
    ids: Ints


@dataclass(frozen=True)
class Fallback:
    """What trimming costs on some texts.

    Attributes:
        num_texts: n.
        num_fallbacks: texts with a dropped piece.
        cosine: mean cosine over all texts of the trimmed encoder's vector with the full one's.
        fallback_cosine: the same over the texts that fall back; 1 without any.
        worst_cosine: the least of all; 1 without any that falls back.
    """

    num_texts: int
    num_fallbacks: int
    cosine: float
    fallback_cosine: float
    worst_cosine: float

    @property
    def share(self) -> float:
        """Share of the texts that fall back, 0 to 1."""
        return self.num_fallbacks / self.num_texts


def kept_pieces(
    tokenizer: PreTrainedTokenizerFast,
    texts: Iterable[PackedTexts],
    *,
    max_pieces: int | None = None,
) -> Ints:
    """The pieces that stay when a vocabulary is trimmed to texts.

    Always kept are special and added tokens and single characters, at the start of a word and
    inside it, as far as the tokenizer can ever give them: one that lower-cases gives no "É", one
    that splits Chinese characters no "##中". So no word becomes unknown that wasn't before.

    Args:
        tokenizer: a fast WordPiece tokenizer.
        texts: ids by this tokenizer; those of all tasks that matter.
        max_pieces: where given, of the texts' pieces only the most frequent stay that fit; those
            always kept count, and stay even where they alone are more.

    Returns:
        Int64 [W], ids, ascending.

    Raises:
        EncoderError: the tokenizer is no WordPiece.
    """
    num_pieces = _num_ids(tokenizer)
    counts = np.zeros(num_pieces, dtype=np.int64)
    for part in texts:
        counts += np.bincount(part.input_ids.cpu().numpy(), minlength=num_pieces)
    always = _always_kept(tokenizer)
    used = np.flatnonzero((counts > 0) & ~always)
    used = used[np.argsort(-counts[used], kind="stable")]
    if max_pieces is not None:
        used = used[: max(0, max_pieces - int(always.sum()))]
    return np.sort(np.concatenate([np.flatnonzero(always), used])).astype(np.int64)


def trim(tokenizer: PreTrainedTokenizerFast, bert: BertModel, keep: Ints) -> Trimmed:
    """A tokenizer and encoder of the kept pieces, renumbered in their old order.

    Args:
        tokenizer: a fast WordPiece tokenizer; left as it is.
        bert: its encoder, of any width; left as it is. Its pooler, if any, doesn't come along.
        keep: int64, ids that stay; special and added tokens must be among them.

    Raises:
        ConfigError: an id that isn't in the vocabulary, or a special or added token is missing.
        EncoderError: the tokenizer is no WordPiece.
    """
    _continuing_prefix(tokenizer)
    ids = np.unique(np.asarray(keep, dtype=np.int64))
    _check_kept(tokenizer, ids)
    new_ids = _new_ids(ids, num_pieces=_num_ids(tokenizer))
    config = copy.deepcopy(bert.config)
    config.vocab_size = len(ids)
    if config.pad_token_id is not None:
        config.pad_token_id = int(new_ids[config.pad_token_id])
    weights = bert.state_dict()
    name = "embeddings.word_embeddings.weight"
    rows = torch.from_numpy(ids).to(weights[name].device)
    smaller = with_weights(config, weights | {name: weights[name].index_select(0, rows)})
    return Trimmed(_renumbered(tokenizer, new_ids), smaller, ids)


class FallbackTokenizer:
    """Tokenises for a trimmed encoder, and tells which texts fall back, at the cost of one pass.

    The full tokenizer reads every text, and its ids are looked up; only texts with a dropped piece
    are read once more, by the trimmed one. Ids are those that the trimmed tokenizer gives.

    Args:
        full: the tokenizer before trimming.
        trimmed: the one after.
    """

    def __init__(self, full: PreTrainedTokenizerFast, trimmed: PreTrainedTokenizerFast) -> None:
        # Making a tokenizer ready takes longer than reading a few texts.
        self._read_full = cache(partial(reader, full))
        self._read_trimmed = cache(partial(reader, trimmed))
        known = trimmed.get_vocab()
        self._new_ids = np.full(_num_ids(full), -1, dtype=np.int32)
        for piece, number in full.get_vocab().items():
            self._new_ids[number] = known.get(piece, -1)

    def tokenize(self, texts: Sequence[str], *, max_length: int) -> tuple[pa.ListArray, Flags]:
        """Token ids of the trimmed vocabulary, as `rectrain.data.tokenize.tokenize` gives them.

        A piece beyond max_length counts for nothing.

        Returns:
            list<int32>, one list a text; bool [n], which texts fall back.
        """
        return self.renumber(
            self._read_full(max_length=max_length)(texts),
            texts,
            max_length=max_length,
        )

    def renumber(
        self, tokens: pa.ListArray, texts: Sequence[str], *, max_length: int
    ) -> tuple[pa.ListArray, Flags]:
        """As `tokenize`, of texts that the full tokenizer has already read.

        Args:
            tokens: list<int32> [n], the full tokenizer's, cut to max_length.
            texts: n texts; only those that fall back are read.
            max_length: tokens of a text at most.
        """
        lengths = np.asarray(tokens.value_lengths())
        ids = self._new_ids[np.asarray(tokens.flatten())]
        fallback = np.zeros(len(tokens), dtype=bool)
        fallback[np.repeat(np.arange(len(tokens)), lengths)[ids < 0]] = True
        offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
        found = pa.ListArray.from_arrays(offsets, pa.array(ids, pa.int32()))
        if not fallback.any():
            return found, fallback
        again = [texts[place] for place in np.flatnonzero(fallback).tolist()]
        smaller = self._read_trimmed(max_length=max_length)(again)
        order = np.arange(len(tokens))
        order[fallback] = len(tokens) + np.arange(len(again))
        return pa.concat_arrays([found, smaller]).take(pa.array(order)), fallback


def measure_fallback(
    tokenizer: PreTrainedTokenizerFast,
    bert: BertModel,
    trimmed: Trimmed,
    texts: Sequence[str],
    *,
    max_length: int,
) -> Fallback:
    """Which of the texts fall back, and how far their vectors move.

    Args:
        tokenizer: the full one.
        bert: the encoder before trimming.
        trimmed: what `trim` made of both.
        texts: at least one.
        max_length: tokens of a text at most.
    """
    full = tokenize(texts, tokenizer=tokenizer, max_length=max_length)
    counting = FallbackTokenizer(tokenizer, trimmed.tokenizer)
    small, fallback = counting.renumber(full, texts, max_length=max_length)
    cosine = np.ones(len(texts))
    moved = np.flatnonzero(fallback)
    if len(moved):
        before, after = (
            _encode(model, tokens.take(pa.array(moved)))
            for model, tokens in ((bert, full), (trimmed.bert, small))
        )
        cosine[moved] = torch.cosine_similarity(before, after).cpu().numpy()
    return Fallback(
        num_texts=len(texts),
        num_fallbacks=len(moved),
        cosine=float(cosine.mean()),
        fallback_cosine=float(cosine[moved].mean()) if len(moved) else 1.0,
        worst_cosine=float(cosine.min()),
    )


@torch.no_grad()
def _encode(bert: BertModel, tokens: pa.ListArray) -> Tensor:
    """Vectors [n, D] in the order of the texts; the encoder is in evaluation mode afterwards."""
    lengths = np.asarray(tokens.value_lengths()).astype(np.int64)
    order = np.argsort(lengths, kind="stable")
    ordered = tokens.take(pa.array(order))
    device = next(bert.parameters()).device
    texts = PackedTexts(
        torch.from_numpy(np.asarray(ordered.flatten()).astype(np.int64)).to(device),
        torch.from_numpy(lengths[order]).to(device),
    )
    bert.train(False)
    vectors = torch.cat([encode(bert, part) for part in split_texts(texts, _TOKENS)])
    return vectors[torch.from_numpy(np.argsort(order)).to(device)]


def _always_kept(tokenizer: PreTrainedTokenizerFast) -> Flags:
    """Bool [V]: special and added tokens, and single characters that can come up."""
    kept = np.zeros(_num_ids(tokenizer), dtype=bool)
    kept[_special_ids(tokenizer)] = True
    backend = tokenizer.backend_tokenizer
    prefix = _continuing_prefix(tokenizer)
    for piece, number in tokenizer.get_vocab().items():
        if len(piece) == 1:
            kept[number] |= _words(backend, piece) == [piece]
        elif piece.startswith(prefix) and len(piece) == len(prefix) + 1:
            word = f"a{piece[-1]}"
            kept[number] |= _words(backend, word) == [word]
    return kept


def _words(backend: Any, text: str) -> list[str]:
    """The words of a text as WordPiece sees them."""
    if backend.normalizer is not None:
        text = backend.normalizer.normalize_str(text)
    if backend.pre_tokenizer is None:
        return [text]
    return [word for word, _ in backend.pre_tokenizer.pre_tokenize_str(text)]


def _special_ids(tokenizer: PreTrainedTokenizerFast) -> list[int]:
    return sorted({*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder})


def _continuing_prefix(tokenizer: PreTrainedTokenizerFast) -> str:
    """What a piece inside a word begins with, "##"; refuses what is no WordPiece."""
    from tokenizers.models import WordPiece

    model = tokenizer.backend_tokenizer.model
    if not isinstance(model, WordPiece):
        raise EncoderError(
            what="tokenizer", got=type(model).__name__,
            rule="only a WordPiece vocabulary can be trimmed",
            fix="leave the vocabulary whole, or take a BERT's tokenizer",
        )  # fmt: skip
    return str(model.continuing_subword_prefix)


def _num_ids(tokenizer: PreTrainedTokenizerFast) -> int:
    """One more than the highest id; a vocabulary may have gaps."""
    return max(tokenizer.get_vocab().values()) + 1


def _new_ids(ids: Ints, *, num_pieces: int) -> Ints:
    """Int64 [V]: the new id of each piece, -1 where it was dropped."""
    new_ids = np.full(num_pieces, -1, dtype=np.int64)
    new_ids[ids] = np.arange(len(ids))
    return new_ids


def _check_kept(tokenizer: PreTrainedTokenizerFast, ids: Ints) -> None:
    missing = sorted({*_special_ids(tokenizer)} - {*ids.tolist()})
    num_ids = _num_ids(tokenizer)
    outside = ids[(ids < 0) | (ids >= num_ids)]
    for wrong, rule in (
        (outside.tolist(), f"ids must be within 0 to {num_ids - 1}"),
        (missing, "special and added tokens must stay"),
    ):
        if wrong:
            raise ConfigError(
                what="pieces to keep", got=wrong, rule=rule, fix="take them from kept_pieces"
            )


def _renumbered(tokenizer: PreTrainedTokenizerFast, new_ids: Ints) -> PreTrainedTokenizerFast:
    """The tokenizer with other ids, made and read back in its own file format."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tokenizer.save_pretrained(folder)
        for path, change in (
            (folder / "tokenizer.json", _change_tokenizer),
            (folder / "tokenizer_config.json", _change_config),
        ):
            stored = json.loads(path.read_text(encoding="utf-8"))
            change(stored, new_ids)
            path.write_text(json.dumps(stored, ensure_ascii=False), encoding="utf-8")
        found = load_tokenizer(name)
    found.name_or_path = tokenizer.name_or_path
    return found


def _change_tokenizer(stored: dict[str, Any], new_ids: Ints) -> None:
    model = stored["model"]
    model["vocab"] = {
        piece: int(new_ids[number])
        for piece, number in sorted(model["vocab"].items(), key=lambda entry: entry[1])
        if new_ids[number] >= 0
    }
    for token in stored["added_tokens"]:
        token["id"] = int(new_ids[token["id"]])
    if stored.get("padding"):
        stored["padding"]["pad_id"] = int(new_ids[stored["padding"]["pad_id"]])
    post = stored.get("post_processor") or {}
    for special in post.get("special_tokens", {}).values():  # TemplateProcessing
        special["ids"] = [int(new_ids[number]) for number in special["ids"]]
    for end in ("cls", "sep"):  # BertProcessing
        if end in post:
            post[end] = [post[end][0], int(new_ids[post[end][1]])]


def _change_config(stored: dict[str, Any], new_ids: Ints) -> None:
    decoder = stored.get("added_tokens_decoder", {})
    if decoder:
        stored["added_tokens_decoder"] = {
            str(new_ids[int(number)]): token for number, token in decoder.items()
        }
