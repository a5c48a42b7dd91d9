"""Altered copies of texts: what is changed, and that it is a pure function of the text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from rectrain.data.augment import Augmenter, load_synonyms
from rectrain.data.config import AugmentConfig
from rectrain.errors import DataError

SYNONYMS = {("tv",): ("television",), ("coffee", "maker"): ("espresso machine",)}


def augmenter(*, word_drop: float = 0.0, synonym_swap: float = 0.0, seed: int = 0) -> Augmenter:
    config = AugmentConfig(copies=1, word_drop=word_drop, synonym_swap=synonym_swap)
    return Augmenter(config, SYNONYMS, seed)


def test_every_known_phrase_is_replaced_at_chance_one_and_nothing_else_is_changed() -> None:
    found = augmenter(synonym_swap=1.0).alter("A TV, a coffee maker and a coffee cup", copy=1)
    assert found == ("A television a espresso machine and a coffee cup", 0, 2)


def test_words_are_dropped_at_their_chance_but_one_always_stays() -> None:
    text = " ".join(f"w{n}" for n in range(1000))
    found = augmenter(word_drop=0.3).alter(text, copy=1)
    kept = str(found.value).split()
    assert len(kept) == 1000 - found.num_dropped
    assert 250 < found.num_dropped < 350
    assert kept == [word for word in text.split() if word in set(kept)]  # in their order
    lone = augmenter(word_drop=0.99)
    assert all(lone.alter("sale", copy=copy) == ("sale", 0, 0) for copy in range(1, 30))


def test_a_copy_depends_on_the_text_its_number_and_the_seed_alone() -> None:
    text = " ".join(f"w{n}" for n in range(50))
    first = augmenter(word_drop=0.5).alter(text, copy=1)
    assert augmenter(word_drop=0.5).alter(text, copy=1) == first
    assert augmenter(word_drop=0.5).alter(text, copy=2) != first
    assert augmenter(word_drop=0.5, seed=1).alter(text, copy=1) != first


def test_rows_of_copy_zero_stay_and_changes_are_counted() -> None:
    made = augmenter(synonym_swap=1.0)
    texts = pa.array(["a tv", "a tv", None, "tv tv"])
    copies = np.array([0, 1, 1, 2], dtype=np.int32)
    found = made.alter_column(texts, copies=copies)
    assert found.value.to_pylist() == ["a tv", "a television", None, "television television"]
    assert (found.num_dropped, found.num_replaced) == (0, 3)
    lists = pa.array([["tv", "x"], None, ["tv"], []], pa.list_(pa.string()))
    found = made.alter_column(lists, copies=np.array([1, 1, 0, 1], dtype=np.int32))
    assert found.value.to_pylist() == [["television", "x"], [], ["tv"], []]


def test_synonyms_of_a_file_work_both_ways_and_join_over_lines(tmp_path: Path) -> None:
    path = tmp_path / "synonyms.tsv"
    path.write_text("TV\ttelevision set\n\ntv\ttelly\n", encoding="utf-8")
    assert load_synonyms(str(path)) == {
        ("tv",): ("television set", "telly"),
        ("television", "set"): ("TV",),
        ("telly",): ("tv",),
    }


@pytest.mark.parametrize("content", ["", "tv\ttelly\nlonely\n", "tv\ttv\n", b"\xff\xfe\tx\n"])
def test_a_file_without_synonyms_is_one_line_of_error(tmp_path: Path, content: str | bytes) -> None:
    path = tmp_path / "synonyms.tsv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError) as caught:
        load_synonyms(str(path))
    assert "\n" not in str(caught.value)
    with pytest.raises(DataError):
        load_synonyms(str(tmp_path / "none.tsv"))


def test_the_shops_own_words_are_synonyms() -> None:
    synonyms = load_synonyms("shop")
    assert "coffee maker" in synonyms[("espresso", "machine")]
    assert "espresso machine" in synonyms[("coffee", "maker")]
    assert all(phrase and others for phrase, others in synonyms.items())
