from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
from transformers import AutoTokenizer

from rectrain.data.assemble import side_texts
from rectrain.data.tokenize import load_tokenizer, tokenize, tokenizer_hash, tokenizer_path
from rectrain.errors import EncoderError

TEXTS = ["White hanging HEART", "", "a b c d e f g h i j k", "☕ mug"]


def test_ids_equal_hugging_faces_own_and_are_cut() -> None:
    tokenizer = load_tokenizer("minilm")
    reference = AutoTokenizer.from_pretrained(str(tokenizer_path("minilm")))
    found = tokenize(TEXTS, tokenizer=tokenizer, max_length=8)
    assert found.type == pa.list_(pa.int32())
    expected = reference(TEXTS, truncation=True, max_length=8, padding=False)["input_ids"]
    assert found.to_pylist() == expected
    assert max(len(ids) for ids in expected) == 8


def test_the_hash_is_of_the_tokenizer_not_of_its_last_use(tmp_path: Path) -> None:
    tokenizer = load_tokenizer("minilm")
    before = tokenizer_hash(tokenizer)
    tokenizer(TEXTS, truncation=True, max_length=5, padding="max_length")
    tokenizer.save_pretrained(str(tmp_path))
    assert tokenizer_hash(tokenizer) == before
    assert tokenizer_hash(load_tokenizer(str(tmp_path))) == before
    tokenizer.add_tokens(["zzzzz"])
    assert tokenizer_hash(tokenizer) != before


def test_a_directory_without_a_tokenizer_is_a_one_line_error(tmp_path: Path) -> None:
    for name in (str(tmp_path), str(tmp_path / "none"), "bert-base-uncased"):
        with pytest.raises(EncoderError) as caught:
            load_tokenizer(name)
        assert "\n" not in str(caught.value)


def test_a_side_joins_its_fields_in_order_and_skips_the_missing() -> None:
    rows = pa.table(
        {
            "history": pa.array([["a", "b", "c"], None, []], pa.list_(pa.string())),
            "context": pa.array(["x", "y", None]),
        }
    )
    found = side_texts(rows, ("history", "context"), max_texts=2)
    assert found.to_pylist() == [["b", "c", "x"], ["y"], []]
    assert side_texts(rows, (), max_texts=2).to_pylist() == [[], [], []]
