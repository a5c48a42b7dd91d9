"""What a model is in closed form, and what its making held: figures that need no measuring anew.

Parameters, FLOPs and bytes are those of the encoder by `flops`, which says what they leave out;
heads and features have their bytes in the package. Device-seconds don't follow from them: costs
come from measurement.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import BertConfig

from rectrain.cost.flops import complexity, encoder_flops, encoder_parameters, weight_bytes
from rectrain.cost.measure import Past, most_memory
from rectrain.package import Package

__all__ = ["Figures", "figures_of", "stored_bytes"]

_WEIGHTS = ("encoder/model.safetensors", "heads.safetensors")


@dataclass(frozen=True)
class Figures:
    """Of a model.

    Attributes:
        layers, hidden, intermediate: of the encoder.
        parameters: of the encoder, without pooler.
        complexity: forward GFLOP of the encoder per 1,000 real tokens.
        request_gflop: of the encoder, for a request whose candidates are all new to it.
        fp32_bytes, int8_bytes: of the encoder's weights in closed form.
        stored_bytes: of all weights as they lie in the package, heads and all.
        training_bytes: the most memory that the processes held which made it (of GPUs their own);
            None where nothing is recorded.
    """

    layers: int
    hidden: int
    intermediate: int
    parameters: int
    complexity: float
    request_gflop: float
    fp32_bytes: int
    int8_bytes: int
    stored_bytes: int
    training_bytes: int | None


def stored_bytes(package: Package) -> int:
    """Of all weights in a package, heads and all."""
    return sum(package.files[name]["bytes"] for name in _WEIGHTS)


def figures_of(
    package: Package, *, candidates: int, tokens: int, made: Sequence[Past] = ()
) -> Figures:
    """The figures of a package.

    Args:
        package: of the model.
        candidates: of a request.
        tokens: of each text.
        made: the work that made it.
    """
    bert = BertConfig.from_pretrained(str(package.path / "encoder"), local_files_only=True)
    lengths = [tokens] * candidates
    lives = [life for past in made for life in past.lives]
    parameters = encoder_parameters(bert)
    return Figures(
        layers=bert.num_hidden_layers,
        hidden=bert.hidden_size,
        intermediate=bert.intermediate_size,
        parameters=parameters,
        complexity=complexity(bert, lengths),
        request_gflop=encoder_flops(bert, lengths) / 1e9,
        fp32_bytes=weight_bytes(parameters),
        int8_bytes=weight_bytes(parameters, bits=8),
        stored_bytes=stored_bytes(package),
        training_bytes=most_memory(lives) if lives else None,
    )
