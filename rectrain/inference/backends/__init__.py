"""Engines that run the text encoder on a CPU, behind `TextEncoder`; and which is best here."""

from rectrain.inference.backends.choose import Choice, choose
from rectrain.inference.backends.onnx import open_onnx
from rectrain.inference.backends.openvino import open_openvino
from rectrain.inference.backends.padded import padded_length, padding_share, warm_up
from rectrain.inference.backends.torch import open_torch

__all__ = [
    "Choice",
    "choose",
    "open_onnx",
    "open_openvino",
    "open_torch",
    "padded_length",
    "padding_share",
    "warm_up",
]
