"""Encoders with their graphs, and real sentences of many lengths, for tests of the backends."""

from __future__ import annotations

import re
from pathlib import Path

from rectrain.data.tokenize import load_tokenizer, tokenize

ROOT = Path(__file__).resolve().parents[1]


def sentences() -> list[str]:
    """What the project's own documents say: some hundred different sentences."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages)
    found = re.split(r"(?<=[.:;])\s+|\n\s*\n|\|", text)
    return list(dict.fromkeys(" ".join(one.split()) for one in found if len(one.split()) > 1))


def token_ids(texts: list[str], *, tokenizer: str, max_length: int) -> list[list[int]]:
    """Token ids of texts, [CLS] and [SEP] included."""
    ids = tokenize(texts, tokenizer=load_tokenizer(tokenizer), max_length=max_length)
    return [list(one) for one in ids.to_pylist()]
