"""Graphs for ONNX Runtime: exported by tracing, quantised by its own static quantiser."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import BertModel

from rectrain.compress.engine import EngineTools
from rectrain.compress.graph import EncoderGraph
from rectrain.compress.sensitivity import linear_layers
from rectrain.inference.backends import open_onnx
from rectrain.inference.backends.missing import needs_extra

__all__ = ["ONNX"]

_OPSET = 17


def _write(bert: BertModel, path: Path) -> Path:
    _export(EncoderGraph(bert), path)
    return path


def _quantize(
    bert: BertModel, path: Path, *, texts: Sequence[Sequence[int]], float_layers: Sequence[str]
) -> Path:
    with needs_extra():
        import onnx
        from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
        from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory() as directory:
        exported, ready = Path(directory) / "exported.onnx", Path(directory) / "ready.onnx"
        _export(EncoderGraph(bert, int8_table=True), exported)
        # Symbolic shapes are not known of the fused attention.
        quant_pre_process(
            str(exported), str(ready), skip_optimization=True, skip_symbolic_shape=True
        )
        nodes = _nodes(onnx.load(str(ready)), bert)
        quantize_static(
            str(ready),
            str(path),
            _Texts(texts),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["MatMul"],
            nodes_to_exclude=[nodes[layer] for layer in float_layers],
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            extra_options={
                "MatMulConstBOnly": True,
                # What follows a layer reads floats: one rounding less, and one fused operation.
                "OpTypesToExcludeOutputQuantization": ["MatMul"],
            },
        )
    return path


ONNX = EngineTools(suffix=".onnx", write=_write, quantize=_quantize, open=open_onnx)


class _Texts:
    """Calibration texts one by one, so that no padding is calibrated."""

    def __init__(self, texts: Sequence[Sequence[int]]) -> None:
        self._left: Iterator[Sequence[int]] = iter(texts)

    def get_next(self) -> dict[str, Any] | None:
        text = next(self._left, None)
        if text is None:
            return None
        ids = np.array([text], dtype=np.int64)
        return {"input_ids": ids, "attention_mask": np.ones_like(ids)}


def _export(graph: EncoderGraph, path: Path) -> None:
    with needs_extra():
        import onnx  # noqa: F401  torch's exporter needs it
    example = torch.ones(2, 8, dtype=torch.int64)
    ragged = {0: "texts", 1: "tokens"}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of the exporter by tracing, which alone fuses attention
        torch.onnx.export(
            graph.eval(),
            (example, example),
            str(path),
            input_names=["input_ids", "attention_mask"],
            output_names=["sentence_embedding"],
            dynamic_axes={
                "input_ids": ragged,
                "attention_mask": ragged,
                "sentence_embedding": {0: "texts"},
            },
            opset_version=_OPSET,
            custom_opsets={"com.microsoft": 1},
            dynamo=False,
        )


def _nodes(model: Any, bert: BertModel) -> dict[str, str]:
    """Linear layer -> its multiplication: the tracer keeps their order, but not their names."""
    nodes = [node.name for node in model.graph.node if node.op_type == "MatMul"]
    return dict(zip(linear_layers(bert), nodes, strict=True))
