"""Bulk encoding of texts against other engines: I1 (speed, what int8 loses) and I2 (share of peak).

    python -m benchmarks.inference [--quick] [--data data/demo] [--threads 2]

Every system is a process of its own that stays; a round asks each once for every kind of texts, one
after the other, every other round backwards. Figures are medians of the rounds' ratios. Nothing
else should run meanwhile.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from subprocess import CalledProcessError

import numpy as np

from benchmarks.inference_graphs import build_graphs
from benchmarks.inference_peers import APART, APART_REQUIREMENTS, OURS, PEERS, Setup
from benchmarks.inference_process import Pass, System
from benchmarks.inference_texts import KINDS, MAX_LENGTH, draw_texts, metric_drop, titles
from benchmarks.table import Figure, paired_ratio, print_table, write_figures
from benchmarks.train import simulated
from benchmarks.venv import make_venv
from rectrain.data.tokenize import load_tokenizer
from rectrain.inference.backends import padding_share
from rectrain.model.encoder import encoder_directory

__all__ = ["main"]

_OUTPUT = Path("runs/bench")
_UNIT = "real tokens/s"
_DEFAULT_PEER = "sentence-transformers torch"
# Goal -> which pass it compares, ours and the peers'.
_GOALS: dict[str, Pass] = {"I1/raw": "raw", "I1/sorted": "sorted"}

Speeds = dict[tuple[str, Pass, str], list[float]]


def main(argv: Sequence[str]) -> int:
    """Measures, prints the table, writes it as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick", action="store_true", help="few texts, one round: does it run? no figures to keep"
    )
    parser.add_argument("--data", help="prepared directory (default: data/demo, made if missing)")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="default: all")
    parser.add_argument("--rounds", type=int, help="default: 5")
    options = parser.parse_args(argv)
    data = options.data or simulated("tiny" if options.quick else "demo")[0]
    rounds = options.rounds or (1 if options.quick else 5)
    setup = _prepare(data, threads=options.threads, quick=options.quick)
    speeds, chosen = _measure(setup, rounds=rounds)
    rate = System.matrix_rate(setup)
    figures = [
        *_ratios(speeds, chosen),
        *_shares(speeds, setup, rate=rate),
        *_paddings(setup),
        *metric_drop(setup, data),
    ]
    print_table(figures)
    path = _OUTPUT / ("inference-quick.json" if options.quick else "inference.json")
    write_figures(path, figures)
    print(f"written: {path}")
    return 0


def _prepare(data: str, *, threads: int, quick: bool) -> Setup:
    """Draws the texts and writes every graph that a system opens."""
    tokenizer = load_tokenizer("minilm")
    known = titles(data)
    texts, ids = {}, {}
    calibration: list[list[int]] = []
    for kind in KINDS:
        texts[kind], drawn = draw_texts(
            known, kind, tokenizer=tokenizer, num_tokens=2_000 if quick else 12_000, seed=1
        )
        ids[kind] = sorted(drawn, key=len)
        calibration += draw_texts(
            known, kind, tokenizer=tokenizer, num_tokens=1_000 if quick else 6_000, seed=2
        )[1]
    setup = Setup(
        encoder=str(encoder_directory("minilm")),
        graphs=str(_OUTPUT / ("graphs-quick" if quick else "graphs")),
        threads=threads,
        max_length=MAX_LENGTH,
        texts=texts,
        ids=ids,
    )
    print("writing graphs", flush=True)
    build_graphs(setup, calibration)
    return setup


def _measure(setup: Setup, *, rounds: int) -> tuple[Speeds, dict[str, str]]:
    """Tokens/s of every system, pass and kind, one for each round; and what each chose."""
    systems = []
    apart = _peers_apart()
    for name in (OURS, *PEERS):
        system = System(name, setup, python=apart if name in APART else sys.executable)
        if system.reason:
            print(f"skipped {name}: {system.reason}", flush=True)
        else:
            systems.append(system)
    speeds: Speeds = {}
    for number in range(rounds):
        for system in systems if number % 2 == 0 else systems[::-1]:
            for kind in KINDS:
                for which in system.passes:
                    speed = system.measure(which, kind)
                    speeds.setdefault((system.name, which, kind), []).append(speed)
                    print(f"{number + 1}/{rounds} {system.name} {which} {kind}: {speed:,.0f}")
    chosen = {system.name: system.choices for system in systems}
    for system in systems:
        system.close()
    return speeds, chosen


def _peers_apart() -> Path | str:
    """The Python of the peers that need packages other than ours."""
    try:
        return make_venv(_OUTPUT / "venv-inference", APART_REQUIREMENTS)
    except CalledProcessError:
        print("no environment for peers: they are tried in this one", flush=True)
        return sys.executable


def _ratios(speeds: Speeds, chosen: Mapping[str, str]) -> list[Figure]:
    """Ours over each peer; the figure without a peer's name is over the best of them.

    `I1/raw` and its like without a kind are of mixed texts.
    """
    figures = []
    for goal, which in _GOALS.items():
        for kind in KINDS:
            peers = {
                name: found
                for (name, of, texts), found in speeds.items()
                if name != OURS and of == which and texts == kind
            }
            ours = speeds[OURS, which, kind]
            best = max(peers, key=lambda name: median(peers[name]))
            name = goal if kind == "mixed" else f"{goal}/{kind}"
            unit = f"{_UNIT} ({chosen[OURS]})"
            figures.append(
                paired_ratio(
                    name, ours=ours, peer=peers[best], unit=unit, peer_name=f"best: {best}"
                )
            )
            figures += [
                paired_ratio(
                    f"{goal}/{kind}/{peer}", ours=ours, peer=found, unit=_UNIT, peer_name=peer
                )
                for peer, found in peers.items()
            ]
    default = "raw", "mixed"
    figures.append(
        paired_ratio(
            "I1/default",
            ours=speeds[(OURS, *default)],
            peer=speeds[(_DEFAULT_PEER, *default)],
            unit=_UNIT,
            peer_name=f"{_DEFAULT_PEER}, its defaults",
        )
    )
    return figures


def _shares(speeds: Speeds, setup: Setup, *, rate: float) -> list[Figure]:
    """I2: counted operations of real tokens over what the same cores multiply in fp32.

    The int8 peak is counted as four times the fp32 rate: VNNI multiplies four int8 where AVX-512
    multiplies one float32.
    """
    figures = []
    for kind in KINDS:
        per_token = setup.operations_per_token(kind)
        shares = [speed * per_token / rate for speed in speeds[OURS, "sorted", kind]]
        for name, peak in (("fp32", 1), ("int8", 4)):
            found = [share / peak for share in shares]
            figures.append(
                Figure.of_rounds(
                    f"I2/{kind}/{name}",
                    found,
                    unit=f"of {peak * rate / 1e9:,.0f} billion operations/s",
                    peer="torch's fp32 matrix product" + (", times 4" if peak > 1 else ""),
                )
            )
    return figures


def _paddings(setup: Setup) -> list[Figure]:
    figures = []
    for kind, texts in setup.ids.items():
        share = padding_share(np.array([len(text) for text in texts]))
        figures.append(Figure(f"I1/padding/{kind}", share, "of all tokens", "0", share, share, 1))
    return figures


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
