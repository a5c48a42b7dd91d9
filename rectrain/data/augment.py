"""Altered copies of training rows: words of their texts dropped, phrases replaced by synonyms.

Word drop and synonym replacement as in Wei & Zou 2019 ("EDA: Easy Data Augmentation Techniques for
Boosting Performance on Text Classification Tasks", section 2). What becomes of a text is a pure
function of the seed, the copy's number and the text: the same in every shard, and a query that
stands in many rows stays one text.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from random import Random
from string import punctuation
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from rectrain.data.config import AugmentConfig
from rectrain.data.simulate import vocabulary
from rectrain.errors import DataError

__all__ = ["SHOP", "Altered", "Augmenter", "Synonyms", "load_synonyms"]

Synonyms = Mapping[tuple[str, ...], tuple[str, ...]]
"""Lower-cased words of a phrase -> phrases that mean the same."""

SHOP = "shop"


class Altered(NamedTuple):
    """A text's or a column's altered form, and how many words and phrases were changed."""

    value: str | pa.Array
    num_dropped: int
    num_replaced: int


def load_synonyms(name: str) -> Synonyms:
    """The synonyms of a name.

    Args:
        name: "shop", the simulated marketplace's own words for one thing, or a text file of UTF-8:
            a line is two or more phrases that mean the same, separated by tabs.

    Raises:
        DataError: no such file, or a line without two phrases.
    """
    if name == SHOP:
        return _by_phrase([[*p.catalogue, *p.shopper] for p in _shop_phrases()])
    try:
        lines = Path(name).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise _wrong(name, error) from error
    found = [[phrase.strip() for phrase in line.split("\t")] for line in lines if line.strip()]
    short = next((place for place, line in enumerate(found, 1) if len(set(line) - {""}) < 2), None)
    if short is not None or not found:
        raise _wrong(name, f"no two phrases in line {short}" if short else "no line")
    return _by_phrase(found)


def _shop_phrases() -> list[vocabulary.Phrase]:
    types = [kind.words for kind in vocabulary.TYPES]
    return [*types, *vocabulary.STYLES, *vocabulary.MATERIALS, *vocabulary.COLOURS,
            *vocabulary.SIZES]  # fmt: skip


def _by_phrase(groups: Sequence[Sequence[str]]) -> Synonyms:
    found: dict[tuple[str, ...], dict[str, None]] = {}
    for group in groups:
        phrases = [phrase for phrase in group if phrase]
        for phrase in phrases:
            others = {other: None for other in phrases if other.lower() != phrase.lower()}
            found.setdefault(tuple(phrase.lower().split()), {}).update(others)
    return {phrase: tuple(others) for phrase, others in found.items() if others}


def _wrong(name: str, got: object) -> DataError:
    return DataError(
        what=f"synonyms {name}", got=got,
        rule="a line is two or more phrases of one meaning, separated by tabs",
        fix="mend the file, or leave --augment.synonyms out",
    )  # fmt: skip


@dataclass(frozen=True)
class Augmenter:
    """Makes copies of texts; picklable.

    Args:
        config: the chances.
        synonyms: of `load_synonyms`.
        seed: of the run.
    """

    config: AugmentConfig
    synonyms: Synonyms
    seed: int

    def alter(self, text: str, *, copy: int) -> Altered:
        """One text as copy number `copy` (1 or more) has it; at least one word stays."""
        digest = hashlib.blake2b(f"{self.seed}/{copy}/{text}".encode(), digest_size=8).digest()
        random = Random(int.from_bytes(digest)).random
        words = text.split()
        plain = [word.strip(punctuation).lower() for word in words]
        kept: list[str] = []
        place = dropped = replaced = 0
        while place < len(words):
            size, others = self._find(plain, place)
            if size and random() < self.config.synonym_swap:
                kept.append(others[int(random() * len(others))])
                replaced += 1
                place += size
                continue
            if random() < self.config.word_drop:
                dropped += 1
            else:
                kept.append(words[place])
            place += 1
        if words and not kept:
            kept.append(words[int(random() * len(words))])
            dropped -= 1
        return Altered(" ".join(kept), dropped, replaced)

    def _find(self, words: Sequence[str], place: int) -> tuple[int, tuple[str, ...]]:
        """The longest phrase at a place that has synonyms: its words, and the others."""
        for size in range(min(self._longest, len(words) - place), 0, -1):
            others = self.synonyms.get(tuple(words[place : place + size]))
            if others:
                return size, others
        return 0, ()

    @cached_property
    def _longest(self) -> int:
        return max(map(len, self.synonyms), default=0)

    def alter_column(self, column: pa.Array, *, copies: npt.NDArray[np.int32]) -> Altered:
        """A column of texts, or of lists of texts.

        Args:
            column: string or list<string> [n].
            copies: int32 [n], the row's copy; rows of copy 0 stay as they are.
        """
        lists = pa.types.is_list(column.type)
        lengths = np.asarray(pc.fill_null(pc.list_value_length(column), 0)) if lists else 1
        texts = pc.list_flatten(column) if lists else column
        known: dict[tuple[str, int], Altered] = {}
        values: list[str | None] = []
        dropped = replaced = 0
        for text, copy in zip(texts.to_pylist(), np.repeat(copies, lengths).tolist(), strict=True):
            if text is None or not copy:
                values.append(text)
                continue
            key = (text, copy)
            found = known.get(key) or known.setdefault(key, self.alter(text, copy=copy))
            values.append(str(found.value))
            dropped += found.num_dropped
            replaced += found.num_replaced
        result = pa.array(values, pa.string())
        if lists:
            offsets = np.concatenate([[0], np.cumsum(lengths)])
            result = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), result)
        return Altered(result, dropped, replaced)
