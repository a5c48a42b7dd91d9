from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer, BertConfig, BertModel, BertTokenizer

from rectrain.data.batch import PackedTexts
from rectrain.data.tokenize import load_tokenizer, tokenize
from rectrain.errors import ConfigError, EncoderError
from rectrain.model.encoder import encode
from rectrain.model.vocabulary import FallbackTokenizer, kept_pieces, measure_fallback, trim

_SPECIAL = ["[PAD]", "[unused0]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
_LETTERS = ["a", "b", "c", "s", "É", "é", "!", "中", "国"]
_PIECES = [
    *_SPECIAL, *_LETTERS, *(f"##{letter}" for letter in _LETTERS),
    "cab", "cabs", "##ab", "bab", "##bs", "ca",
]  # fmt: skip


@pytest.fixture
def tokenizer(tmp_path: Path) -> BertTokenizer:
    folder = tmp_path / "full"
    BertTokenizer({piece: n for n, piece in enumerate(_PIECES)}).save_pretrained(folder)
    return load_tokenizer(str(folder))


@pytest.fixture
def bert() -> BertModel:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=40,  # some rows are spare
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=16,
    )  # fmt: skip
    return BertModel(config, add_pooling_layer=False).eval().requires_grad_(False)


def _pack(tokenizer: BertTokenizer, texts: list[str]) -> PackedTexts:
    tokens = sorted(tokenize(texts, tokenizer=tokenizer, max_length=16).to_pylist(), key=len)
    ids = [i for text in tokens for i in text]
    return PackedTexts(torch.tensor(ids), torch.tensor([len(text) for text in tokens]))


def _pieces(tokenizer: BertTokenizer, text: str) -> list[str]:
    return tokenizer.convert_ids_to_tokens(tokenizer(text)["input_ids"])


def test_kept_are_used_pieces_and_every_single_character_that_can_come_up(
    tokenizer: BertTokenizer,
) -> None:
    keep = kept_pieces(tokenizer, [_pack(tokenizer, ["cabs", "bab a"])])
    kept = [_PIECES[number] for number in keep]
    # Lower-casing and stripping accents leave no É or é; no word goes on with "!" or "中".
    assert kept == [
        "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "c", "s", "!", "中", "国",
        "##a", "##b", "##c", "##s", "cabs", "bab",
    ]  # fmt: skip


def test_a_limit_keeps_the_most_frequent_pieces(tokenizer: BertTokenizer) -> None:
    texts = _pack(tokenizer, ["cabs bab", "bab", "cab"])
    kept = kept_pieces(tokenizer, [texts], max_pieces=17)
    assert [_PIECES[number] for number in kept[16:]] == ["bab"]
    assert len(kept_pieces(tokenizer, [texts], max_pieces=1)) == 16


def test_texts_of_kept_pieces_have_bit_equal_vectors(
    tokenizer: BertTokenizer, bert: BertModel
) -> None:
    texts = ["cabs", "bab a", "中国!", "É bab", "x", "[MASK] cabs"]
    packed = _pack(tokenizer, texts)
    trimmed = trim(tokenizer, bert, kept_pieces(tokenizer, [packed]))
    assert trimmed.bert.config.vocab_size == len(trimmed.ids) == len(trimmed.tokenizer) == 18
    for text in texts:
        assert _pieces(trimmed.tokenizer, text) == _pieces(tokenizer, text)
    assert torch.equal(encode(trimmed.bert, _pack(trimmed.tokenizer, texts)), encode(bert, packed))


def test_a_trimmed_folder_is_an_ordinary_one(
    tokenizer: BertTokenizer, bert: BertModel, tmp_path: Path
) -> None:
    texts = ["cabs bab", "中国!", "ca"]
    trimmed = trim(tokenizer, bert, kept_pieces(tokenizer, [_pack(tokenizer, texts[:2])]))
    folder = tmp_path / "small"
    trimmed.tokenizer.save_pretrained(folder)
    trimmed.bert.save_pretrained(folder)
    loaded = AutoTokenizer.from_pretrained(folder)
    assert loaded.is_fast and type(loaded) is type(tokenizer)
    inputs = loaded(texts, padding=True, return_tensors="pt")
    hidden = BertModel.from_pretrained(folder)(**inputs).last_hidden_state
    mask = inputs["attention_mask"][..., None]
    means = (hidden * mask).sum(1) / mask.sum(1)
    expected = torch.cat([encode(trimmed.bert, _pack(trimmed.tokenizer, [t])) for t in texts])
    torch.testing.assert_close(means, expected, rtol=0, atol=1e-5)
    plain = Tokenizer.from_file(str(folder / "tokenizer.json"))  # without transformers
    assert plain.encode(texts[0]).ids == loaded(texts[0])["input_ids"]
    assert bert.config.vocab_size == 40 and len(tokenizer) == len(_PIECES)


def test_padding_and_special_tokens_are_renumbered(bert: BertModel, tmp_path: Path) -> None:
    """[PAD] isn't the first piece, and the post-processor and padding are stored with ids."""
    pieces = ["a", "b", "ab", "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "##b", "##a", "<user>"]
    plain = Tokenizer(models.WordPiece({p: n for n, p in enumerate(pieces)}, unk_token="[UNK]"))
    plain.normalizer = normalizers.BertNormalizer()
    plain.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    plain.post_processor = processors.BertProcessing(("[SEP]", 6), ("[CLS]", 5))
    plain.enable_padding(pad_id=3, pad_token="[PAD]")
    plain.add_tokens(["<user>"])
    plain.add_special_tokens(pieces[3:8])
    plain.save(str(tmp_path / "tokenizer.json"))
    names = {f"{kind}_token": f"[{kind.upper()}]" for kind in ("pad", "unk", "cls", "sep", "mask")}
    config = {"tokenizer_class": "PreTrainedTokenizerFast"} | names
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = load_tokenizer(str(tmp_path))
    bert.config.pad_token_id = 3
    keep = kept_pieces(tokenizer, [_pack(tokenizer, ["b"])])
    trimmed = trim(tokenizer, bert, keep)
    small = trimmed.tokenizer
    assert _pieces(small, "ab <user>") == ["[CLS]", "a", "##b", "<user>", "[SEP]"]
    assert small.get_vocab() == {
        pieces[old]: new for new, old in enumerate([0, 1, 3, 4, 5, 6, 7, 8, 9, 10])
    }
    assert small.pad_token_id == trimmed.bert.config.pad_token_id == 2
    assert small(["a", "a b"], padding=True)["input_ids"][0] == [4, 0, 5, 2]
    assert small.backend_tokenizer.padding["pad_id"] == 2


def test_dropped_pieces_fall_back_to_smaller_ones_and_are_counted(
    tokenizer: BertTokenizer, bert: BertModel
) -> None:
    trimmed = trim(tokenizer, bert, kept_pieces(tokenizer, [_pack(tokenizer, ["ca", "bab"])]))
    assert _pieces(trimmed.tokenizer, "cabs")[1:-1] == ["ca", "##b", "##s"]
    texts = ["bab", "cabs", "", "a cab", "ca"]
    counting = FallbackTokenizer(tokenizer, trimmed.tokenizer)
    tokens, fallback = counting.tokenize(texts, max_length=16)
    assert fallback.tolist() == [False, True, False, True, False]
    assert tokens.equals(tokenize(texts, tokenizer=trimmed.tokenizer, max_length=16))
    # A dropped piece that is cut off counts for nothing.
    tokens, fallback = counting.tokenize(["a cab"], max_length=3)
    assert not fallback.any()
    assert tokens.equals(tokenize(["a cab"], tokenizer=trimmed.tokenizer, max_length=3))


def test_any_text_has_the_trimmed_tokenizers_ids(tokenizer: BertTokenizer, bert: BertModel) -> None:
    trimmed = trim(tokenizer, bert, kept_pieces(tokenizer, [_pack(tokenizer, ["bab cab"])]))
    letters = np.array([*"abcs !中É"])
    rng = np.random.default_rng(0)
    texts = ["".join(rng.choice(letters, rng.integers(0, 12))) for _ in range(500)]
    tokens, fallback = FallbackTokenizer(tokenizer, trimmed.tokenizer).tokenize(texts, max_length=8)
    assert tokens.equals(tokenize(texts, tokenizer=trimmed.tokenizer, max_length=8))
    full = tokenize(texts, tokenizer=tokenizer, max_length=8).to_pylist()
    changed = [
        [trimmed.ids[i] for i in small] != large
        for small, large in zip(tokens.to_pylist(), full, strict=True)
    ]
    assert fallback.tolist() == changed and 0 < sum(changed) < 500


def test_the_loss_of_falling_back_is_measured(tokenizer: BertTokenizer, bert: BertModel) -> None:
    trimmed = trim(tokenizer, bert, kept_pieces(tokenizer, [_pack(tokenizer, ["bab"])]))
    texts = ["cabs", "bab", "a", "cab b"]
    found = measure_fallback(tokenizer, bert, trimmed, texts, max_length=16)
    cosines = [
        float(
            torch.cosine_similarity(
                encode(bert, _pack(tokenizer, [text])),
                encode(trimmed.bert, _pack(trimmed.tokenizer, [text])).detach(),
            )
        )
        for text in (texts[0], texts[3])
    ]
    assert (found.num_texts, found.num_fallbacks, found.share) == (4, 2, 0.5)
    assert found.fallback_cosine == pytest.approx(np.mean(cosines), abs=1e-6)
    assert found.cosine == pytest.approx((sum(cosines) + 2) / 4, abs=1e-6)
    assert found.worst_cosine == pytest.approx(min(cosines), abs=1e-6)
    assert found.worst_cosine < 0.9999
    assert measure_fallback(tokenizer, bert, trimmed, ["bab"], max_length=16).cosine == 1


def test_what_cannot_be_trimmed_is_refused(
    tokenizer: BertTokenizer, bert: BertModel, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="special"):
        trim(tokenizer, bert, np.arange(6, 12))
    with pytest.raises(ConfigError, match="within"):
        trim(tokenizer, bert, np.arange(60))
    plain = Tokenizer(models.WordLevel({"[UNK]": 0, "[CLS]": 1, "[SEP]": 2, "[MASK]": 3}, "[UNK]"))
    plain.save(str(tmp_path / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "[UNK]", "cls_token": "[CLS]",
        "sep_token": "[SEP]", "mask_token": "[MASK]",
    }  # fmt: skip
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(EncoderError, match="WordPiece"):
        trim(load_tokenizer(str(tmp_path)), bert, np.arange(4))
