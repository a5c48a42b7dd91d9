"""Which engine runs a package's encoder: the one that is asked for, or the fastest here."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from importlib.util import find_spec
from typing import NamedTuple

import torch
from transformers import BertModel

from rectrain.data.batch import PackedTexts
from rectrain.errors import ConfigError
from rectrain.inference.backends import (
    Choice,
    choose,
    open_onnx,
    open_openvino,
    open_torch,
    warm_up,
)
from rectrain.inference.text_encoder import TextEncoder
from rectrain.package import Package

__all__ = ["Engine", "open_engine", "steady_backend"]

_AUTO, _TORCH = "auto", "torch"
# Graphs by how fast they usually are, and the module that runs them.
_ENGINES = {
    "openvino-int8": "openvino",
    "onnx-int8": "onnxruntime",
    "openvino": "openvino",
    "onnx": "onnxruntime",
}
# Texts to measure by: log-normal lengths, as texts of shops have.
_NUM_TEXTS, _MEDIAN_TOKENS, _SPREAD = 128, 24.0, 0.8


class Engine(NamedTuple):
    """encoder: what runs; choice: the measurement that chose it, None without one."""

    encoder: TextEncoder
    choice: Choice | None


def open_engine(
    package: Package,
    bert: BertModel,
    *,
    backend: str,
    threads: int,
    device: str,
    max_length: int,
) -> Engine:
    """Opens the encoder of a package.

    Args:
        package: whose graphs there are to choose from.
        bert: its encoder in torch.
        backend: "torch", the name of one of the package's graphs, or "auto": on a CPU the fastest
            of all these by a short measurement, on a GPU torch.
        threads: of the engines on a CPU.
        device: "cpu" or "cuda".
        max_length: tokens of the longest text to come.

    Raises:
        ConfigError: no such backend, one that doesn't run on the device, or whose engine is not
            installed.
    """
    openers: dict[str, Callable[[], TextEncoder]]
    openers = {_TORCH: partial(open_torch, bert, device=device)}
    if device == "cpu":
        for name, graph in package.graphs.items():
            open_graph = open_openvino if graph.suffix == ".xml" else open_onnx
            openers[name] = partial(open_graph, graph, threads=threads)
    candidates = {name: cache(opener) for name, opener in openers.items()}  # compiled once
    if backend not in (_AUTO, *candidates):
        raise ConfigError(
            what="backend",
            got=backend,
            rule=f"this package has {', '.join(candidates)} on {device}",
            fix="choose one of them, or auto",
        )
    choice = None
    if backend == _AUTO and len(candidates) > 1:
        choice = choose(candidates, _sample(max_length))
        backend = choice.backend
    encoder = candidates[_TORCH if backend == _AUTO else backend]()
    if encoder.name != _TORCH:
        warm_up(encoder, max_length=max_length)
    return Engine(encoder, choice)


def steady_backend(package: Package, backend: str, *, device: str) -> str:
    """What "auto" means where many processes must give the same scores: not what a measurement
    finds, which differs from process to process, but the graph that is usually the fastest.

    Args:
        package: whose graphs there are to choose from.
        backend: stays as it is, if it isn't "auto".
        device: "cpu" or "cuda"; on a GPU it is torch.
    """
    if backend != _AUTO:
        return backend
    graphs = package.graphs if device == "cpu" else {}
    usable = (name for name, module in _ENGINES.items() if name in graphs and find_spec(module))
    return next(usable, _TORCH)


def _sample(max_length: int) -> PackedTexts:
    """Texts to measure by: only their lengths matter, so they are made up."""
    random = torch.Generator().manual_seed(0)
    lengths = torch.randn(_NUM_TEXTS, generator=random).mul(_SPREAD).exp().mul(_MEDIAN_TOKENS)
    lengths = lengths.round().long().clamp(min(3, max_length), max_length).sort().values
    return PackedTexts(torch.zeros(int(lengths.sum()), dtype=torch.int64), lengths)
