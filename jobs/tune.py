"""Searches for the width, depth and training of a small model by quality, cost and latency.

    python -m jobs.tune --config tune.yaml
    ray job submit --working-dir . -- python -m jobs.tune --config tune.yaml --output=/shared/tune

OUTPUT gets study.db (optuna-dashboard sqlite:///OUTPUT/study.db opens it), front.html, front.json,
and the chosen models in chosen/, each with what it is worth and costs (docs/search.md). Run again
after an interruption, it goes on: no trial that has ended is tried again.
"""

from __future__ import annotations

from typing import Any

from jobs.cli import JobParser, lasting, output_folder, parse_config, run
from rectrain.cluster import connect, resources
from rectrain.errors import without_credentials
from rectrain.tune.config import SearchConfig
from rectrain.tune.trials import Objectives, beyond

__all__ = ["main"]


def main(argv: list[str]) -> int:
    """Runs the job; see the module's docstring."""
    config, options = parse_config(SearchConfig, argv, parser=JobParser(__doc__))
    output_folder(config.output, checkpoint="")  # no URI
    lasting(config.output, what="output")

    import optuna  # noqa: F401 - missing, it must be told now
    import plotly  # noqa: F401

    from rectrain.report.search import write_front
    from rectrain.tune.leftovers import removing_leftovers
    from rectrain.tune.session import Session

    session = Session(config, say=_say)
    _say(session.plan())
    where, have = resources()
    _say(f"cluster: {where}: {have.get('CPU', 0):g} CPUs, {have.get('GPU', 0):g} GPUs; "
         f"{session.check(have)} trials at a time")  # fmt: skip
    if options.dry_run:
        return 0
    with session.begun():
        connect()
        with removing_leftovers():  # the last trial's, too: the chosen models need its CPUs
            session.search()
            write_front(session.root)
            made = session.finish()
        page = write_front(session.root, made=made)
    for name, facts in made.items():
        _say(_line(name, facts, currency=session.config.price.currency))
    _say(f"study     {session.root}/study.db\nfront     {page}, front.json")
    return 0


def _line(name: str, facts: dict[str, Any], *, currency: str) -> str:
    """A package beside what its trial promised; the limits bound the trial, and not the package."""
    worth, trial = Objectives(**facts["objectives"]), Objectives(**facts["promised"])
    broken = beyond(facts["constraints"])
    return (
        f"{name:<9} trial {facts['trial']}: "
        f"lift {worth.mean_lift:.3f} (trial: {trial.mean_lift:.3f}), "
        f"{worth.cost_per_1000:.4g} {currency} / 1,000 requests "
        f"(trial: {trial.cost_per_1000:.4g}), "
        f"p99 {worth.p99_ms:.1f} ms (trial: {trial.p99_ms:.1f})"
        + (f", beyond {', '.join(broken)}" if broken else "")
        + f" ({facts['engine']}): {facts['package']}"
    )


def _say(text: str) -> None:
    print(without_credentials(text), flush=True)


if __name__ == "__main__":
    run(main)
