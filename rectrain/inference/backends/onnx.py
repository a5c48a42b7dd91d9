"""The encoder in ONNX Runtime: a graph that `rectrain.compress.quantize` wrote, fp32 or int8."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from rectrain.inference.backends.missing import needs_extra, readable
from rectrain.inference.backends.padded import Ints, PaddedEncoder
from rectrain.inference.text_encoder import TextEncoder

__all__ = ["open_onnx"]


def open_onnx(graph: Path, *, threads: int) -> TextEncoder:
    """Opens a graph on the CPU.

    Args:
        graph: an .onnx; its stem is the backend's name.
        threads: cores to use; each runs a batch of its own.

    Raises:
        ConfigError: ONNX Runtime is not installed.
        EncoderError: it can't open the graph.
    """
    with needs_extra():
        import onnxruntime as ort
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    with readable(graph):
        session = ort.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])

    def run(ids: Ints, mask: Ints) -> npt.NDArray[np.float32]:
        outputs = session.run(None, {"input_ids": ids, "attention_mask": mask})
        return np.asarray(outputs[0], dtype=np.float32)

    width = int(session.get_outputs()[0].shape[1])
    return PaddedEncoder(graph.stem, width=width, run=run, threads=threads)
