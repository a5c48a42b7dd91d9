"""Pre-trains an encoder on the texts of prepared data: it learns to guess masked words.

    python -m jobs.pretrain --config run.yaml --name=pretrain --train.num_epochs=3
    python -m jobs.train --config run.yaml --model.encoder=runs/pretrain/encoder

Reads every different text of the training splits and catalogues once an epoch. Settings of heads
and of the tasks' losses have no effect. Run again after an interruption, it goes on from the last
complete checkpoint.
"""

from __future__ import annotations

from jobs.cli import run
from jobs.train import run_training
from rectrain.train.config import PretrainConfig

__all__ = ["main"]


def main(argv: list[str]) -> int:
    """Runs the job; see the module's docstring."""
    return run_training(PretrainConfig, argv, doc=__doc__)


if __name__ == "__main__":
    run(main)
