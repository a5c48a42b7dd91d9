"""Prepare rows for training: check, split, encode, tokenise, write shards and a manifest.

    python -m jobs.prepare --source online_retail --input online_retail.parquet --output data/retail
    python -m jobs.prepare --source chorus --input judgments.csv,products.parquet --output data/s
    python -m jobs.prepare --source parquet --task ad_ctr --input rows.parquet --output data/ads
    python -m jobs.prepare --source simulated --output data/simulated

Sources, fields, splits and what is written: docs/data.md.
"""

from __future__ import annotations

from dataclasses import replace

from jobs.cli import JobParser, output_folder, parse_config, run
from rectrain.config import dump_config
from rectrain.data.config import PrepareConfig
from rectrain.data.own_features import extend_tables, read_own_features
from rectrain.data.prepare import plan, prepare
from rectrain.data.shards import Prepared
from rectrain.data.sources import find_source
from rectrain.tasks import TASKS, TaskSpec

__all__ = ["main", "summarize", "task_specs"]


def main(argv: list[str]) -> int:
    """Run the job; see the module's docstring."""
    config, options = parse_config(PrepareConfig, argv, parser=JobParser(__doc__))
    folder = output_folder(config.output, checkpoint="", what="output")
    config = config.model_copy(update={"output": str(folder)})
    specs = task_specs(config)
    if options.dry_run:
        print(dump_config(config) + plan(config, specs=specs))
        return 0
    print(summarize(prepare(config, specs=specs)))
    return 0


def summarize(prepared: Prepared) -> str:
    """A table of what was prepared: one line a task and split, and the rows in no split."""
    lines = ["| task | split | rows | groups | tokens |", "|---|---|---|---|---|"]
    for task, facts in prepared.manifest["tasks"].items():
        for split, found in facts["splits"].items():
            counts = (f"{found[key]:,}" for key in ("rows", "groups", "tokens"))
            lines.append(f"| {task} | {split} | {' | '.join(counts)} |")
            if copies := found.get("augmented", {}).get("rows"):
                lines.append(f"| {task} | {split}: altered copies among them | {copies:,} | | |")
        for kind in ("set_aside", "rejects"):
            for reason, rows in facts[kind]["reasons"].items():
                lines.append(f"| {task} | {kind}: {reason} | {rows:,} | | |")
    return "\n".join([*lines, f"prepared data: {prepared.root}"])


def task_specs(config: PrepareConfig) -> dict[str, TaskSpec]:
    """Every task, with the features that the source and the user's file add to its table."""
    tables = {name: spec.fields for name, spec in TASKS.items()}
    tables = extend_tables(tables, find_source(config.source).features)
    if config.features:
        tables = extend_tables(tables, read_own_features(config.features))
    return {name: replace(spec, fields=tables[name]) for name, spec in TASKS.items()}


if __name__ == "__main__":
    run(main)
