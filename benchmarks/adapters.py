"""LoRA and AdaLoRA against training the whole encoder: memory of a worker, and speed.

    python -m benchmarks.adapters [--quick] [--data data/demo] [--rounds 5]

Two processes of 1 thread, stage 0 (the one that all three can run at), the defaults of
`train.adapter_*`. A round runs each once; figures are medians of the rounds' ratios. Nothing else
should run meanwhile.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.loop import Measurement, Variant
from benchmarks.table import Figure, paired_ratio, print_table, write_figures
from benchmarks.train import Scale, parser_of, run_variant, simulated

__all__ = ["main"]

_OUTPUT = Path("runs/bench")
_VARIANTS: tuple[Variant, ...] = ("full", "lora", "adalora")
# AdaLoRA is looked at while its ranks fall: after a tenth of the planned steps.
_FULL = Scale(5, 2, 8, "minilm", 2048, "demo", first_step=200)
_QUICK = Scale(1, 1, 3, "tiny", 512, "tiny", first_step=200)
_MIB = 1 << 20


def main(argv: Sequence[str]) -> int:
    """Measures, prints the table, writes it as JSON."""
    options = parser_of(__doc__).parse_args(argv)
    scale = _QUICK if options.quick else _FULL
    scale = replace(scale, rounds=options.rounds or scale.rounds)
    data = tuple(options.data.split(",")) if options.data else simulated(scale.size)
    found: dict[Variant, list[Measurement]] = {variant: [] for variant in _VARIANTS}
    for number in range(scale.rounds):
        for variant in _VARIANTS if number % 2 == 0 else reversed(_VARIANTS):
            measurement = run_variant(variant, scale=scale, data=data, number=number)
            found[variant].append(measurement)
            print(f"round {number + 1}/{scale.rounds} {variant}: {measurement}", flush=True)
    figures = _figures(found)
    print_table(figures)
    path = _OUTPUT / ("adapters-quick.json" if options.quick else "adapters.json")
    write_figures(path, figures)
    print(f"written: {path}")
    return 0


def _figures(found: Mapping[Variant, Sequence[Measurement]]) -> list[Figure]:
    """Of each kind of adapter its state, its peak and its speed, over those of full training."""
    return [
        paired_ratio(
            f"adapters/{kind}/{name}",
            ours=[getattr(measured, attribute) / scale for measured in found[kind]],
            peer=[getattr(measured, attribute) / scale for measured in found["full"]],
            unit=unit,
            peer_name="the whole encoder",
        )
        for kind in _VARIANTS[1:]
        for name, attribute, scale, unit in (
            ("state", "state_bytes", _MIB, "MiB of weights, gradients, optimizer state"),
            ("peak", "peak_bytes", _MIB, "MiB resident at most"),
            ("speed", "tokens_per_s", 1, "real tokens/s"),
        )
    ]


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
