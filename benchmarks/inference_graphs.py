"""Graphs that the inference benchmark measures: ours, and those that peers' users make."""

from __future__ import annotations

import json
import shutil
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import BertModel

from benchmarks.inference_peers import Setup
from rectrain.compress.quantize import export_graphs
from rectrain.compress.samples import digest

__all__ = ["build_graphs"]


def build_graphs(setup: Setup, calibration: Sequence[Sequence[int]]) -> None:
    """Fills `setup.graphs`: ours, and int8 graphs of the same weights by the peers' own recipes.

    Graphs of the same calibration texts that are there are kept.
    """
    folder = Path(setup.graphs)
    mark, made_from = folder / "calibration.sha256", digest(calibration)
    if mark.exists() and mark.read_text() == made_from:
        return
    for name, facts in export_graphs(Path(setup.encoder), folder, calibration=calibration).items():
        print(f"{name}: {facts}", flush=True)
    _peer_openvino(setup, folder / "peer-openvino-int8.xml", calibration)
    _peer_onnx(setup, folder / "peer-onnx-int8.onnx")
    mark.write_text(made_from)


def _peer_openvino(setup: Setup, path: Path, calibration: Sequence[Sequence[int]]) -> None:
    """Hugging Face's BERT converted from torch; NNCF with what it does for transformers."""
    import nncf
    import openvino as ov

    bert = _Hidden(BertModel.from_pretrained(setup.encoder, add_pooling_layer=False)).eval()
    example = torch.ones(2, 8, dtype=torch.int64)
    ragged = ov.PartialShape([-1, -1])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = ov.convert_model(bert, example_input=(example, example), input=[ragged, ragged])
    data = nncf.Dataset([_inputs(text) for text in calibration])
    quantized = nncf.quantize(model, data, model_type=nncf.ModelType.TRANSFORMER)
    ov.save_model(quantized, path, compress_to_fp16=False)


def _peer_onnx(setup: Setup, path: Path) -> None:
    """Exported by tracing, attention fused by ONNX Runtime's optimiser, quantised dynamically."""
    from onnx import TensorProto
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.transformers import optimizer

    bert = BertModel.from_pretrained(
        setup.encoder, add_pooling_layer=False, attn_implementation="eager"
    )
    example = torch.ones(2, 8, dtype=torch.int64)
    names = ["input_ids", "attention_mask", "last_hidden_state"]
    with tempfile.TemporaryDirectory() as directory, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exported, fused = f"{directory}/exported.onnx", f"{directory}/fused.onnx"
        torch.onnx.export(
            _Hidden(bert).eval(),
            (example, example),
            exported,
            input_names=names[:2],
            output_names=names[2:],
            dynamic_axes={name: {0: "texts", 1: "tokens"} for name in names},
            opset_version=17,
            dynamo=False,
        )
        config = bert.config
        optimizer.optimize_model(
            exported,
            model_type="bert",
            num_heads=config.num_attention_heads,
            hidden_size=config.hidden_size,
        ).save_model_to_file(fused)
        _peer_fastembed(setup, fused, folder=path.parent / "fastembed")
        quantize_dynamic(
            fused,
            path,
            per_channel=True,
            weight_type=QuantType.QInt8,
            # It can't infer the type of what comes out of the fused attention.
            extra_options={"DefaultTensorType": TensorProto.FLOAT},
        )


def _peer_fastembed(setup: Setup, graph: str, *, folder: Path) -> None:
    """The layout that fastembed reads; its own model of this name is in fp32, too."""
    folder.mkdir(exist_ok=True)
    shutil.copyfile(graph, folder / "model.onnx")
    for name in ("config.json", "special_tokens_map.json", "tokenizer.json"):
        shutil.copyfile(Path(setup.encoder) / name, folder / name)
    settings = json.loads((Path(setup.encoder) / "tokenizer_config.json").read_text())
    settings |= {"max_length": setup.max_length, "model_max_length": setup.max_length}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


class _Hidden(torch.nn.Module):
    """The last hidden states alone."""

    def __init__(self, bert: Any) -> None:
        super().__init__()
        self.bert = bert

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        return self.bert(input_ids=input_ids, attention_mask=attention_mask)[0]


def _inputs(text: Sequence[int]) -> list[Any]:
    ids = np.array([text], dtype=np.int64)
    return [ids, np.ones_like(ids)]
