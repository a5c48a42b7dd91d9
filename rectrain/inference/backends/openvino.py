"""The encoder in OpenVINO: a graph that `rectrain.compress.quantize` wrote, fp32 or int8."""

from __future__ import annotations

from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import numpy.typing as npt

from rectrain.inference.backends.missing import needs_extra, readable
from rectrain.inference.backends.padded import Ints, PaddedEncoder
from rectrain.inference.text_encoder import TextEncoder

__all__ = ["open_openvino"]

_INT8 = "-int8"  # the end of such a graph's name


def open_openvino(graph: Path, *, threads: int) -> TextEncoder:
    """Compiles a graph for this machine's CPU.

    Args:
        graph: an .xml, with its .bin beside it; its stem is the backend's name.
        threads: cores to use, each with a stream of its own.

    Raises:
        ConfigError: OpenVINO is not installed.
        EncoderError: it can't open the graph.
    """
    with needs_extra():
        import openvino as ov
    settings: dict[str, Any] = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": threads,
    }
    if not graph.stem.endswith(_INT8):
        # Where a CPU has bfloat16 the default is that. What int8 leaves in float may have it.
        settings["INFERENCE_PRECISION_HINT"] = "f32"
    with readable(graph):
        compiled = ov.Core().compile_model(graph, "CPU", settings)
    requests: SimpleQueue[Any] = SimpleQueue()
    for _ in range(threads):
        requests.put(compiled.create_infer_request())

    def run(ids: Ints, mask: Ints) -> npt.NDArray[np.float32]:
        request = requests.get()
        try:
            # Not as arguments of `infer`: its checks and copies take 0.1 to 0.2 ms a call.
            request.set_tensor("input_ids", ov.Tensor(ids, shared_memory=True))
            request.set_tensor("attention_mask", ov.Tensor(mask, shared_memory=True))
            request.infer(share_outputs=True)
            return np.array(request.get_output_tensor(0).data, dtype=np.float32)
        finally:
            requests.put(request)

    # Its bindings load numpy's at the first call, and two first calls at once wait for ever.
    run(np.zeros((1, 1), np.int64), np.ones((1, 1), np.int64))
    width = compiled.output(0).get_partial_shape()[1].get_length()
    return PaddedEncoder(graph.stem, width=width, run=run, threads=threads)
