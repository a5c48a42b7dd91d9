"""The encoder as graphs for OpenVINO and ONNX Runtime, in fp32 and in int8 after training.

int8 is static: scales come from calibration texts, so that a text's vector never depends on its
neighbours. Where int8 loses more than it may, the layers that lose most stay in float; how many
is found by bisection.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import BertModel

from rectrain.compress.engine import EngineTools
from rectrain.compress.onnx import ONNX
from rectrain.compress.openvino import OPENVINO
from rectrain.compress.sensitivity import mean_cosine, rank_layers
from rectrain.data.batch import PackedTexts
from rectrain.errors import ConfigError, DataError
from rectrain.inference.backends import open_torch
from rectrain.inference.text_encoder import TextEncoder
from rectrain.model.encoder import load_encoder

__all__ = ["GraphFacts", "check_engines", "export_graphs", "pack"]

# Every fifth text judges a graph and is kept from calibrating it.
_JUDGED_EVERY = 5
_RANKED_TEXTS = 48
_ENGINES: dict[str, EngineTools] = {"openvino": OPENVINO, "onnx": ONNX}
_PACKAGES = ("openvino", "nncf", "onnx", "onnxruntime")


@dataclass(frozen=True)
class GraphFacts:
    """What an exported graph is.

    Attributes:
        files: names in the output folder, the one to open first.
        num_bytes: of these files.
        cosine: mean cosine to torch in fp32, over texts that did not calibrate.
        min_cosine: of the worst of these texts.
        quality: by the caller's measure, or the mean cosine.
        float_layers: linear layers that an int8 graph keeps in float.
        holds: whether the quality is as good as `max_drop` asks.
    """

    files: tuple[str, ...]
    num_bytes: int
    cosine: float
    min_cosine: float
    quality: float
    float_layers: tuple[str, ...] = ()
    holds: bool = True


def check_engines() -> None:
    """Refuses to begin what could not be ended.

    Raises:
        ConfigError: a package of the engines is missing.
    """
    absent = [name for name in _PACKAGES if find_spec(name) is None]
    if absent:
        raise ConfigError(
            what="inference engines",
            got=f"no installed {', '.join(absent)}",
            rule="quantising needs the extra inference",
            fix="pip install 'rectrain[inference]'",
        )


def export_graphs(
    encoder_dir: Path,
    output: Path,
    *,
    calibration: Sequence[Sequence[int]],
    quality: Callable[[TextEncoder], float] | None = None,
    max_drop: float = 0.009,
) -> dict[str, GraphFacts]:
    """Writes `openvino`, `openvino-int8` (.xml, .bin), `onnx` and `onnx-int8` (.onnx).

    Their inputs are input_ids and attention_mask, int64 [B, L]; the output is the mean of the last
    hidden states over the real tokens, float32 [B, D].

    Args:
        encoder_dir: a BERT in Hugging Face layout.
        output: a folder; made if missing.
        calibration: token ids of real texts of every task, at their real lengths, [CLS] and [SEP]
            included; some hundreds. Every fifth judges the graphs instead.
        quality: of an encoder, higher is better; by default the mean cosine to torch in fp32.
        max_drop: a graph that holds has at least (1 - max_drop) of the fp32 encoder's quality.
            Without any linear layer in int8 a graph may still not, for its table of pieces.

    Returns:
        Graph -> its facts.

    Raises:
        ConfigError: the extra inference is not installed.
        DataError: fewer than ten different calibration texts.
        EncoderError: encoder_dir holds no BERT.
    """
    different = list(dict.fromkeys(tuple(text) for text in calibration if len(text)))
    if len(different) < 2 * _JUDGED_EVERY:
        raise DataError(
            what="calibration texts",
            got=f"{len(different)} different ones",
            rule=f"at least {2 * _JUDGED_EVERY}; some hundreds give good scales",
            fix="give token ids of real texts of every task",
        )
    output.mkdir(parents=True, exist_ok=True)
    bert = _load(encoder_dir, max_length=max(map(len, different)))
    judge = _Judge.of(bert, pack(different[::_JUDGED_EVERY]), quality, max_drop=max_drop)
    kept = [text for place, text in enumerate(different) if place % _JUDGED_EVERY]
    facts = {}
    for name, tools in _ENGINES.items():
        facts[name] = _facts(tools, judge, tools.write(bert, output / f"{name}{tools.suffix}"))
        facts[f"{name}-int8"] = _quantize(
            bert,
            output / f"{name}-int8{tools.suffix}",
            tools=tools,
            texts=kept,
            judge=judge,
        )
    return facts


def pack(texts: Sequence[Sequence[int]]) -> PackedTexts:
    """Token ids of texts end to end, the shortest first."""
    ordered = sorted(texts, key=len)
    tokens = [token for text in ordered for token in text]
    return PackedTexts(
        torch.tensor(tokens, dtype=torch.int64),
        torch.tensor([len(text) for text in ordered], dtype=torch.int64),
    )


class _Judge(NamedTuple):
    """Measures a graph.

    Attributes:
        texts: that judge.
        vectors: float32 [U, D], the fp32 encoder's.
        quality: the measure.
        least: the quality of a graph that holds.
    """

    texts: PackedTexts
    vectors: Tensor
    quality: Callable[[TextEncoder], float]
    least: float

    @classmethod
    def of(
        cls,
        bert: BertModel,
        texts: PackedTexts,
        quality: Callable[[TextEncoder], float] | None,
        *,
        max_drop: float,
    ) -> _Judge:
        encoder = open_torch(bert)
        vectors = encoder.encode(texts)

        def by_cosine(found: TextEncoder) -> float:
            return mean_cosine(found.encode(texts), vectors)

        measure = quality or by_cosine
        exact = measure(encoder)
        return cls(texts, vectors, measure, exact - max_drop * abs(exact))


def _load(directory: Path, *, max_length: int) -> BertModel:
    config = directory / "config.json"  # load_encoder says what is wrong with it
    size = json.loads(config.read_text()).get("vocab_size", 0) if config.is_file() else 0
    return load_encoder(str(directory), vocab_size=size, dropout=0.0, max_length=max_length)


def _facts(
    tools: EngineTools, judge: _Judge, path: Path, *, float_layers: Sequence[str] = ()
) -> GraphFacts:
    encoder = tools.open(path, threads=torch.get_num_threads())
    cosines = torch.cosine_similarity(encoder.encode(judge.texts), judge.vectors)
    quality = judge.quality(encoder)
    files = [path, *sorted(other for other in path.parent.glob(f"{path.stem}.*") if other != path)]
    return GraphFacts(
        files=tuple(file.name for file in files),
        num_bytes=sum(file.stat().st_size for file in files),
        cosine=float(cosines.mean()),
        min_cosine=float(cosines.min()),
        quality=quality,
        float_layers=tuple(float_layers),
        holds=quality >= judge.least,
    )


def _quantize(
    bert: BertModel,
    path: Path,
    *,
    tools: EngineTools,
    texts: Sequence[Sequence[int]],
    judge: _Judge,
) -> GraphFacts:
    """Writes the int8 graph with the fewest layers in float that holds.

    A layer is kept in float before all that lose less by `rank_layers`, so there is one number to
    find; the graph without any layer in int8 is the last, and says whether it holds.
    """

    def build(num_float: int) -> GraphFacts:
        layers = ranked[:num_float]
        tools.quantize(bert, path, texts=texts, float_layers=layers)
        return _facts(tools, judge, path, float_layers=layers)

    ranked: list[str] = []
    facts = build(0)
    if facts.holds:
        return facts
    ranked = rank_layers(bert, pack(texts[:_RANKED_TEXTS]))
    too_few, enough = 0, len(ranked)
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        facts = build(middle)
        too_few, enough = (too_few, middle) if facts.holds else (middle, enough)
    return facts if len(facts.float_layers) == enough else build(enough)
