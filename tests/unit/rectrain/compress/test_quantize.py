"""Which layers stay in float: the ranking, and the search for how many, on an engine of paper."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import BertModel

from rectrain.compress import quantize
from rectrain.compress.engine import EngineTools
from rectrain.compress.quantize import export_graphs, pack
from rectrain.compress.sensitivity import linear_layers, rank_layers
from rectrain.data.batch import PackedTexts
from rectrain.errors import DataError, EncoderError
from rectrain.inference.text_encoder import TextEncoder
from rectrain.model.encoder import encode, load_encoder

_NUM_LAYERS = 12  # linear layers of the preset


def _texts(number: int) -> list[list[int]]:
    draw = random.Random(0)
    return [[draw.randrange(50) for _ in range(draw.randint(2, 30))] for _ in range(number)]


@pytest.fixture
def bert() -> BertModel:
    return load_encoder("tiny", vocab_size=50, dropout=0.0)


def test_the_layer_whose_input_has_an_outlier_is_ranked_first(bert: BertModel) -> None:
    """One neuron of 300 that nobody reads: the scale of all the others becomes coarse."""
    layer = bert.encoder.layer[1]
    with torch.no_grad():
        layer.intermediate.dense.bias[7] = 300.0
        layer.output.dense.weight[:, 7] = 0.0
    texts = pack(_texts(20))
    before = encode(bert, texts)
    ranked = rank_layers(bert, texts)
    assert ranked[0] == "encoder.layer.1.output.dense"
    assert sorted(ranked) == sorted(linear_layers(bert)) and len(ranked) == _NUM_LAYERS
    assert torch.equal(encode(bert, texts), before)


class _OnPaper:
    """An encoder that the better it is the more layers stand in its file."""

    name, width = "paper", 128

    def __init__(self, graph: Path) -> None:
        self.float_layers = graph.read_text().split()

    def encode(self, texts: PackedTexts) -> Tensor:
        return torch.ones(texts.lengths.shape[0], self.width)


def _paper(built: list[int]) -> EngineTools:
    def write(bert: BertModel, path: Path) -> Path:
        path.write_text(" ".join(linear_layers(bert)))
        return path

    def write_int8(
        bert: BertModel,
        path: Path,
        *,
        texts: Sequence[Sequence[int]],
        float_layers: Sequence[str],
    ) -> Path:
        built.append(len(float_layers))
        path.write_text(" ".join(float_layers))
        return path

    return EngineTools(".txt", write, write_int8, lambda graph, threads: _OnPaper(graph))


def _quality(encoder: TextEncoder) -> float:
    """0.9 with all layers in int8, 1 with none."""
    kept = len(encoder.float_layers) if isinstance(encoder, _OnPaper) else _NUM_LAYERS
    return 0.9 + 0.1 * kept / _NUM_LAYERS


@pytest.mark.parametrize(("max_drop", "kept"), [(0.2, 0), (0.05, 6), (0.09, 2), (0.0, 12)])
def test_as_few_layers_as_the_bound_allows_stay_in_float(
    bert: BertModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    max_drop: float,
    kept: int,
) -> None:
    bert.save_pretrained(tmp_path / "encoder")
    built: list[int] = []
    monkeypatch.setattr(quantize, "_ENGINES", {"paper": _paper(built)})
    facts = export_graphs(
        tmp_path / "encoder",
        tmp_path / "graphs",
        calibration=_texts(40),
        quality=_quality,
        max_drop=max_drop,
    )["paper-int8"]
    assert facts.holds and len(facts.float_layers) == kept
    assert facts.quality == pytest.approx(0.9 + 0.1 * kept / _NUM_LAYERS)
    # What lies in the folder is what the facts say, found without trying every number.
    written = (tmp_path / "graphs" / facts.files[0]).read_text().split()
    assert written == list(facts.float_layers) and len(built) <= 6


def test_a_graph_that_loses_too_much_without_any_int8_layer_says_so(
    bert: BertModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As its table of pieces may make it."""
    bert.save_pretrained(tmp_path / "encoder")
    monkeypatch.setattr(quantize, "_ENGINES", {"paper": _paper([])})

    def quality(encoder: TextEncoder) -> float:
        return _quality(encoder) - 0.02 * isinstance(encoder, _OnPaper)

    facts = export_graphs(
        tmp_path / "encoder",
        tmp_path / "graphs",
        calibration=_texts(40),
        quality=quality,
        max_drop=0.01,
    )["paper-int8"]
    assert len(facts.float_layers) == _NUM_LAYERS and not facts.holds


@pytest.mark.parametrize(
    ("number", "error", "words"),
    [(3, DataError, "calibration texts"), (20, EncoderError, "config.json")],
)
def test_what_cannot_be_exported_is_the_users_mistake(
    tmp_path: Path, number: int, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        export_graphs(tmp_path, tmp_path / "graphs", calibration=_texts(number))
