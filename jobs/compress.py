"""Make a small model of a large one: cut, distil, train the heads, trim, quantise, package.

    python -m jobs.compress --teacher runs/demo --preset small --output runs/small

Prints one table, the large model, each step on the way and the small one: per task its metric with
a 95% interval, parameters, bytes, latency of requests of 1 and 32 rows, tokens a second. OUTPUT
gets summary.json, summary.md, quality.png, and the small model in package/ (docs/compress.md):

    import rectrain
    scores = rectrain.load("runs/small/package").predict("search_ranking", rows)

Run again after an interruption, it goes on where it was; what is done is not done again.
"""

from __future__ import annotations

from jobs.cli import JobParser, lasting, output_folder, parse_config, run
from rectrain.cluster import resources
from rectrain.compress.config import CompressConfig
from rectrain.errors import without_credentials

__all__ = ["main"]


def main(argv: list[str]) -> int:
    """Runs the job; see the module's docstring."""
    config, options = parse_config(CompressConfig, argv, parser=JobParser(__doc__))
    output_folder(config.output, checkpoint="")  # no URI
    lasting(config.output)

    import matplotlib  # noqa: F401 - missing, it must be told now

    from rectrain.compress.pipeline import Pipeline, resolve
    from rectrain.package import ModelParts, open_package, update_package
    from rectrain.report.compression import compression_table, write_compression
    from rectrain.train import launch

    pipeline = Pipeline(resolve(config), say=_say)
    _say(pipeline.plan())
    if not pipeline.is_trained():
        where, have = resources()
        _say(f"cluster: {where}: {have.get('CPU', 0):g} CPUs, {have.get('GPU', 0):g} GPUs")
        launch.check_resources(pipeline.training(), have)
    if options.dry_run:
        return 0
    rows = pipeline.run()
    output = pipeline.space.root
    package = open_package(output / "package")
    specs = ModelParts.of(pipeline.teacher).specs
    metrics = {task: spec.primary for task, spec in specs.items()}
    picture = write_compression(
        output,
        rows,
        metrics=metrics,
        teacher=without_credentials(pipeline.config.teacher),
        split=pipeline.config.split,
        threads=pipeline.config.threads,
        package=str(package.path),
        version=package.version,
    )
    update_package(package, {"quality.png": picture})
    _say(f"\n{compression_table(rows, metrics=metrics)}\n")
    _say(f"package   {package.path}\nsummary   {output / 'summary.md'}, summary.json, quality.png")
    return 0


def _say(text: str) -> None:
    print(without_credentials(text), flush=True)


if __name__ == "__main__":
    run(main)
