"""The texts that pre-training reads: each once, none that validation is to judge by."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from pretrain_toy import ENDINGS, VOCABULARY, random_texts, write_texts, write_tokenizer
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from rectrain.data.config import DataConfig
from rectrain.data.loader import longest_text, open_tasks, plan_training
from rectrain.data.shards import Shards
from rectrain.data.texts import MLM, TextCorpus
from rectrain.data.tokenize import load_tokenizer, word_pieces
from rectrain.errors import DataError, EncoderError


def corpus(path: Path) -> TextCorpus:
    return TextCorpus(open_tasks([str(path)]))


def words(rows: Shards) -> list[str]:
    return [
        " ".join(VOCABULARY[piece] for piece in text[1:-1]).replace(" ##", "")
        for (text,) in rows.column("item").to_pylist()
    ]


def test_each_text_once_and_those_of_validation_nowhere_else(tmp_path: Path) -> None:
    found = corpus(
        write_texts(
            tmp_path / "data",
            train=["red mug", "blue lamp", "red mug"],
            validation=["red mug", "steel chairs", "cotton shirt"],
            catalogue=["red mug", "cotton shirt", "red lamps"],
        )
    )
    train, validation = found.shards(MLM, "train"), found.shards(MLM, "validation")
    assert sorted(words(train)) == ["blue lamp", "red lamps", "red mug"]
    assert sorted(words(validation)) == ["cotton shirt", "steel chairs"]
    assert found.splits(MLM)["train"]["tokens"] == 4 + 4 + 5


def test_altered_copies_are_not_read(tmp_path: Path) -> None:
    texts = ["red mug", "blue lamp", "red", "lamp blue"]
    found = corpus(write_texts(tmp_path / "data", train=texts, validation=["red"], num_copies=2))
    assert sorted(words(found.shards(MLM, "train"))) == ["blue lamp", "red mug"]
    assert words(found.shards(MLM, "validation")) == ["red"]


def test_texts_without_a_word_are_left_out(tmp_path: Path) -> None:
    found = corpus(write_texts(tmp_path / "data", train=["", "unheard", "red unheard lamps"]))
    rows = found.shards(MLM, "train")
    assert rows.num_rows == 1  # [UNK] is no piece to guess
    assert rows.column("num_examples").to_pylist() == [3]
    assert found.shards(MLM, "validation").num_rows == 0
    with pytest.raises(DataError, match="none with a word"):
        corpus(write_texts(tmp_path / "empty", train=["unheard"]))


def test_a_step_counts_the_pieces_that_could_be_masked(tmp_path: Path) -> None:
    found = corpus(write_texts(tmp_path / "data", train=random_texts(60, seed=0)))
    rows = found.shards(MLM, "train")
    plan = plan_training(
        {MLM: rows}, config=DataConfig(tokens_per_micro_batch=64), seed=3, num_micro_batches=3
    )
    pieces = rows.column("num_examples").to_numpy()
    assert (pieces == rows.column("num_tokens").to_numpy() - 2).all()
    for step in range(4):
        taken = [plan.slot(step, task=MLM, micro_batch=m) for m in range(3)]
        assert plan.count(step, task=MLM) == pieces[np.concatenate(taken)].sum()


def test_the_longest_text_is_that_of_all_directories(tmp_path: Path) -> None:
    text = " ".join(["red"] * 9)
    paths = [
        str(write_texts(tmp_path / task, train=[text], task=task, max_length=length))
        for task, length in (("risk", 6), ("recommendation", 12))
    ]
    for order in (paths, paths[::-1]):
        found = TextCorpus(open_tasks(order))
        assert longest_text({MLM: found}) == 12
        assert max(found.shards(MLM, "train").column("num_tokens").to_pylist()) == 11


def test_a_corpus_travels_to_another_process(tmp_path: Path) -> None:
    found = corpus(write_texts(tmp_path / "data", train=random_texts(9, seed=0)))
    again = pickle.loads(pickle.dumps(found))
    assert again.shards(MLM, "train").table().equals(found.shards(MLM, "train").table())
    assert json.dumps(again.manifest) == json.dumps(found.manifest)
    for _ in range(2):  # the same from the same data
        same = corpus(tmp_path / "data").shards(MLM, "train").table()
        assert same.equals(found.shards(MLM, "train").table())


def test_pieces_of_a_vocabulary(tmp_path: Path) -> None:
    pieces = word_pieces(load_tokenizer(str(write_tokenizer(tmp_path / "tokenizer"))))
    assert np.flatnonzero(pieces.is_special).tolist() == [0, 1, 2, 3, 4]
    assert [VOCABULARY[n] for n in np.flatnonzero(pieces.is_continuation)] == list(ENDINGS)
    assert VOCABULARY[pieces.mask_id] == "[MASK]"


@pytest.mark.parametrize("model", [models.WordLevel({"a": 0}, "a"), models.BPE()])
def test_a_tokenizer_whose_words_cannot_be_told_is_refused(model: models.Model) -> None:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model), mask_token="[MASK]")
    with pytest.raises(EncoderError, match="needs WordPiece"):
        word_pieces(tokenizer)
