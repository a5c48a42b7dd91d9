"""Training against its peers: T1 (Hugging Face Trainer), T2 (torch DDP), T3 (torchrun).

    python -m benchmarks.train [--quick] [--only T1,T3] [--data data/demo]

Each measurement is a fresh group of 2 processes of 1 thread. A round runs every variant once, one
after the other; figures are medians of the rounds' ratios. Nothing else should run meanwhile.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median

from benchmarks.loop import Measurement, Run, Variant
from benchmarks.table import Figure, paired_ratio, print_table, write_figures

__all__ = ["Scale", "main", "parser_of", "run_variant", "simulated"]

_OUTPUT = Path("runs/bench")
_VARIANTS: dict[str, tuple[Variant, ...]] = {
    "T1": ("zero2", "trainer_padded", "trainer_grouped"),
    "T2": ("ddp", "zero1", "zero2", "zero3"),
    "T3": ("zero2", "ray"),
}
_UNIT = "real tokens/s"
_TRAINER = "Hugging Face Trainer, DDP"
_RATIOS: dict[str, tuple[str, Variant, Variant, str]] = {
    # id: (goal, ours, peer, the peer's name)
    "T1/padded": ("T1", "zero2", "trainer_padded", f"{_TRAINER}, default sampling"),
    "T1/grouped": ("T1", "zero2", "trainer_grouped", f"{_TRAINER}, group_by_length"),
    "T2/zero1": ("T2", "zero1", "ddp", "torch DDP, our loop"),
    "T2/zero2": ("T2", "zero2", "ddp", "torch DDP, our loop"),
    "T2/zero3": ("T2", "zero3", "ddp", "torch DDP, our loop"),
    "T3": ("T3", "ray", "zero2", "torchrun, the same loop"),
}

Measurements = dict[Variant, list[Measurement]]


@dataclass(frozen=True)
class Scale:
    """How much is measured; a round goes on in the plan where the one before ended."""

    rounds: int
    num_warmup: int
    num_steps: int
    encoder: str
    tokens_per_micro_batch: int
    size: str
    first_step: int = 0


_FULL = Scale(5, 4, 21, "minilm", 2048, "demo")
_QUICK = Scale(1, 1, 3, "tiny", 512, "tiny")


def main(argv: Sequence[str]) -> int:
    """Measures, prints the table, writes it as JSON."""
    parser = parser_of(__doc__)
    parser.add_argument("--only", default="T1,T2,T3", help="goals to measure (default: all)")
    options = parser.parse_args(argv)
    scale = _QUICK if options.quick else _FULL
    scale = replace(scale, rounds=options.rounds or scale.rounds)
    goals = [goal for goal in _VARIANTS if goal in options.only.split(",")]
    data = tuple(options.data.split(",")) if options.data else simulated(scale.size)
    variants = list(dict.fromkeys(variant for goal in goals for variant in _VARIANTS[goal]))
    found: Measurements = {variant: [] for variant in variants}
    for number in range(scale.rounds):
        # Every other round backwards, so that no variant always follows the same one.
        for variant in variants if number % 2 == 0 else reversed(variants):
            measurement = run_variant(variant, scale=scale, data=data, number=number)
            found[variant].append(measurement)
            print(f"round {number + 1}/{scale.rounds} {variant}: {measurement}", flush=True)
    figures = _figures(found, goals=goals)
    print_table(figures)
    path = _OUTPUT / ("train-quick.json" if options.quick else "train.json")
    write_figures(path, figures)
    print(f"written: {path}")
    return 0


def parser_of(doc: str | None) -> argparse.ArgumentParser:
    """The options of a benchmark of training."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick", action="store_true", help="tiny sizes: does it run? no figures to keep"
    )
    parser.add_argument(
        "--data", help="prepared directories, by commas (default: data/demo, made if missing)"
    )
    parser.add_argument("--rounds", type=int, help="default: 5")
    return parser


def simulated(size: str) -> tuple[str, ...]:
    """The simulated marketplace, prepared if it is not there."""
    data = f"data/{size}"
    if not (Path(data) / "manifest.json").exists():
        command = ["-m", "jobs.prepare", "--source=simulated", f"--size={size}"]
        subprocess.run([sys.executable, *command, f"--output={data}"], check=True)
    return (data,)


def run_variant(
    variant: Variant, *, scale: Scale, data: tuple[str, ...], number: int
) -> Measurement:
    """One variant in one round, in processes of its own."""
    with tempfile.TemporaryDirectory() as directory:
        run = Run(
            variant=variant,
            data=tuple(str(Path(path).resolve()) for path in data),
            output=f"{directory}/measurement.json",
            encoder=scale.encoder,
            tokens_per_micro_batch=scale.tokens_per_micro_batch,
            first_step=scale.first_step + number * (scale.num_warmup + scale.num_steps),
            num_warmup=scale.num_warmup,
            num_steps=scale.num_steps,
        )
        path, log = Path(directory) / "run.json", Path(directory) / "log.txt"
        path.write_text(json.dumps(asdict(run)))
        with log.open("w") as output:
            done = subprocess.run(
                [*_command(run), str(path)],
                stdout=output,
                stderr=subprocess.STDOUT,
                check=False,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
            )
        if done.returncode != 0:
            sys.stderr.write(log.read_text())
            raise SystemExit(f"{variant} failed with status {done.returncode}; its output is above")
        return Measurement(**json.loads(Path(run.output).read_text()))


def _command(run: Run) -> list[str]:
    if run.variant == "ray":
        return [sys.executable, "-m", "benchmarks.ray_loop"]
    module = "hf_trainer" if run.variant.startswith("trainer") else "loop"
    niceness = ["nice", "-n", "15"]  # Ray's default for its workers, or T3 compares that
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    workers = f"--nproc-per-node={run.world_size}"
    return [*niceness, *launcher, workers, "-m", f"benchmarks.{module}"]


def _figures(found: Measurements, *, goals: Sequence[str]) -> list[Figure]:
    figures = [
        paired_ratio(
            name,
            ours=[measurement.tokens_per_s for measurement in found[ours]],
            peer=[measurement.tokens_per_s for measurement in found[peer]],
            unit=_UNIT,
            peer_name=peer_name,
        )
        for name, (goal, ours, peer, peer_name) in _RATIOS.items()
        if goal in goals
    ]
    return figures + ([_state_figure(found)] if "T2" in goals else [])


def _state_figure(found: Measurements) -> Figure:
    """The stage whose measured bytes are furthest from the derived ones."""
    stages: list[Variant] = ["zero1", "zero2", "zero3"]
    ratios = {
        stage: [measured.state_bytes / measured.derived_bytes for measured in found[stage]]
        for stage in stages
    }
    worst = max(stages, key=lambda stage: abs(median(ratios[stage]) - 1))
    bytes_of = ", ".join(
        f"{stage} {median(measured.state_bytes for measured in found[stage]):,.0f}"
        f"/{found[stage][0].derived_bytes:,}"
        for stage in stages
    )
    return Figure.of_rounds(
        "T2/state_bytes",
        ratios[worst],
        unit=f"measured/derived bytes a rank, {worst} is the furthest ({bytes_of})",
        peer="derived from the sizes: weights, gradients, optimizer state",
    )


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
