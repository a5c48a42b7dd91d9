"""Graphs for OpenVINO: converted straight from torch, quantised by NNCF."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import BertModel

from rectrain.compress.engine import EngineTools
from rectrain.compress.graph import EncoderGraph, name_in_graph
from rectrain.inference.backends import open_openvino
from rectrain.inference.backends.missing import needs_extra

__all__ = ["OPENVINO"]


def _write(bert: BertModel, path: Path) -> Path:
    with _private():
        _save(_convert(EncoderGraph(bert)), path)
    return path


def _quantize(
    bert: BertModel, path: Path, *, texts: Sequence[Sequence[int]], float_layers: Sequence[str]
) -> Path:
    with _private():
        with needs_extra():
            import nncf
        model = _convert(EncoderGraph(bert, int8_table=True))
        nncf.set_log_level(logging.ERROR)
        with redirect_stdout(io.StringIO()):  # progress bars
            quantized = nncf.quantize(
                model,
                nncf.Dataset([_inputs(text) for text in texts]),
                # Without it the sums of the residual stream become int8, which loses too much.
                model_type=nncf.ModelType.TRANSFORMER,
                subset_size=len(texts),
                ignored_scope=nncf.IgnoredScope(names=_nodes_of(model, float_layers)),
                advanced_parameters=nncf.AdvancedQuantizationParameters(
                    # SmoothQuant gains nothing here and adds a multiplication before each layer.
                    smooth_quant_alphas=nncf.AdvancedSmoothQuantParameters(matmul=-1),
                ),
            )
        _save(quantized, path)
    return path


OPENVINO = EngineTools(suffix=".xml", write=_write, quantize=_quantize, open=open_openvino)


def _convert(graph: EncoderGraph) -> Any:
    with needs_extra():
        import openvino as ov
    example = torch.ones(2, 8, dtype=torch.int64)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of torch's tracer, which OpenVINO calls
        model = ov.convert_model(
            graph.eval(),
            example_input=(example, example),
            input=[ov.PartialShape([-1, -1]), ov.PartialShape([-1, -1])],
        )
    for port, name in zip(model.inputs, ("input_ids", "attention_mask"), strict=True):
        port.get_tensor().set_names({name})
    model.output(0).get_tensor().set_names({"sentence_embedding"})
    return model


def _save(model: Any, path: Path) -> None:
    import openvino as ov

    ov.save_model(model, path, compress_to_fp16=False)


def _inputs(text: Sequence[int]) -> dict[str, Any]:
    ids = np.array([text], dtype=np.int64)
    return {"input_ids": ids, "attention_mask": np.ones_like(ids)}


def _nodes_of(model: Any, layers: Sequence[str]) -> list[str]:
    """Names of the multiplications that torch's linear layers became."""
    names = {f"__module.{name_in_graph(layer)}" for layer in layers}
    return [
        node.get_friendly_name()
        for node in model.get_ops()
        if node.get_type_name() == "MatMul" and node.get_friendly_name().split("/")[0] in names
    ]


@contextmanager
def _private() -> Iterator[None]:
    """OpenVINO's converter and NNCF report their use to their maker unless a user has forbidden
    it; here they don't.
    """
    with needs_extra():
        from openvino_telemetry.main import ConsentCheckResult, OptInChecker
    check = OptInChecker.check
    OptInChecker.check = lambda *_, **__: ConsentCheckResult.DECLINED
    try:
        yield
    finally:
        OptInChecker.check = check
