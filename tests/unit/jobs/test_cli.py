"""Every job ends alike: one line and status 2 for the user's mistakes, a traceback for ours."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import Field
from ray import cloudpickle
from ray.exceptions import RayTaskError
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

from jobs import prepare
from jobs.cli import JobParser, count, exit_status, lasting, output_folder, parse_config
from rectrain.config import Section, help_text
from rectrain.data.config import PrepareConfig
from rectrain.errors import ConfigError, DataError
from rectrain.train.config import PretrainConfig, RunConfig


class Train(Section):
    zero_stage: int = Field(2, ge=0, le=3, description="the ZeRO stage")


class Run(Section):
    name: str = "demo"
    train: Train = Train()


MISTAKE = DataError(what="column price", got="missing", rule="is required", fix="add it")
LINE = "error: column price: got missing; is required; fix: add it\n"


def task_error(cause: Exception) -> Exception:
    """What `ray.get` raises for a task that raised `cause`."""
    error = RayTaskError("task", "Traceback …\nDataError", cause, "proc", 1, "127.0.0.1")
    return error.as_instanceof_cause()


def chained() -> Exception:
    error = RuntimeError("while preparing")
    error.__cause__ = MISTAKE
    return error


@pytest.mark.parametrize(
    "raised",
    [
        MISTAKE,
        chained(),
        task_error(MISTAKE),
        cloudpickle.loads(cloudpickle.dumps(WorkerGroupError("rank 1", {1: task_error(MISTAKE)}))),
        WorkerGroupError("ranks", {0: RuntimeError("gloo: connection closed"), 1: MISTAKE}),
        ControllerError(task_error(MISTAKE)),
    ],
    ids=["plain", "cause", "ray task", "worker group", "second worker", "controller"],
)
def test_a_mistake_is_one_line_and_status_2_however_ray_wrapped_it(raised, capsys):
    def main(argv):
        raise raised

    assert exit_status(main, []) == 2
    assert capsys.readouterr().err == LINE


def test_our_own_failure_is_raised_with_its_traceback():
    def main(argv):
        raise WorkerGroupError("rank 0", {0: ZeroDivisionError("ours")})

    with pytest.raises(WorkerGroupError):
        exit_status(main, [])


def test_an_error_while_handling_a_mistake_is_not_taken_for_it():
    def main(argv):
        try:
            raise MISTAKE
        except DataError:
            raise ZeroDivisionError("ours")  # noqa: B904 (a mistake of ours, on purpose)

    with pytest.raises(ZeroDivisionError):
        exit_status(main, [])


def test_ctrl_c_is_130(capsys):
    def main(argv):
        raise KeyboardInterrupt

    assert exit_status(main, []) == 130
    assert capsys.readouterr().err == "interrupted; run it again, without --overwrite, to go on\n"


def test_a_missing_extra_is_named(capsys):
    def main(argv):
        raise ModuleNotFoundError("No module named 'mlflow'", name="mlflow")

    assert exit_status(main, []) == 2
    assert "rectrain[tracking]" in capsys.readouterr().err


def test_status_passes_through():
    assert exit_status(lambda argv: None, []) == 0
    assert exit_status(lambda argv: 1, []) == 1


def test_run_ends_the_process_with_one_line_and_no_traceback():
    code = (
        "from jobs.cli import run, JobParser\n"
        "run(lambda argv: JobParser('doc').parse_args(argv) and None)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "--dry"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: command line: got unrecognized arguments: --dry;")


def test_parse_config_lays_the_command_line_over_the_file(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("name: mine\ntrain: {zero_stage: 1}\n")
    parser = JobParser("doc")
    parser.add_argument("--resume", action="store_true")
    config, options = parse_config(
        Run,
        ["--train.zero_stage", "3", "--config", str(file), "--resume", "--dry-run"],
        parser=parser,
    )
    assert config == Run(name="mine", train=Train(zero_stage=3))
    assert options.resume and options.dry_run


def test_an_option_nobody_knows_is_refused():
    with pytest.raises(ConfigError, match=r"did you mean train\.zero_stage\?"):
        parse_config(Run, ["--zero_stage=1"], parser=JobParser("doc"))


@pytest.mark.parametrize("text", ["0", "-3", "many"])
def test_a_count_below_one_is_refused(text):
    parser = JobParser("doc")
    parser.add_argument("--k", type=count)
    with pytest.raises(ConfigError, match=r"--k.*(below 1|no whole number)"):
        parser.parse_args([f"--k={text}"])
    assert parser.parse_args(["--k=1"]).k == 1


@pytest.mark.parametrize("job", ["cost", "calibrate"])
def test_a_seed_that_numpy_would_not_take_is_refused(job, capsys):
    module = importlib.import_module(f"jobs.{job}")
    needed = ["--models=a"] if job == "cost" else ["--small=a", "--large=b", "--data=c"]
    assert exit_status(module.main, [*needed, "--seed=-1"]) == 2
    assert "--seed: -1 is below 0" in capsys.readouterr().err
    assert module._parser().parse_args([*needed, "--seed=0"]).seed == 0


def test_help_lists_every_key_with_its_default(capsys):
    with pytest.raises(SystemExit) as ended:
        parse_config(Run, ["--help"], parser=JobParser("What it does.\n\n    python -m jobs.x"))
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert "    python -m jobs.x" in shown
    assert "--train.zero_stage" in shown and "the ZeRO stage" in shown and "demo" in shown


OF_A_CHECKPOINT = ["--checkpoint=/absent", "--output=mine"]


@pytest.mark.parametrize(
    ("job", "arguments", "what"),
    [
        ("train", ["--data.paths=/absent", "--output=mine"], "output"),
        ("pretrain", ["--data.paths=/absent", "--output=mine"], "output"),
        ("prepare", ["--source=simulated", "--output=mine"], "output"),
        ("predict", ["--input=/absent", *OF_A_CHECKPOINT], "--output"),
        ("evaluate", OF_A_CHECKPOINT, "--output"),
        ("interactions", OF_A_CHECKPOINT, "--output"),
        ("demo", ["--output=mine", "--data=/absent"], "--output"),
        ("demo", ["--output=/absent", "--data=mine"], "--data"),
    ],
)
@pytest.mark.parametrize("dry_run", [[], ["--dry-run"]], ids=["run", "dry run"])
def test_a_submitted_job_refuses_an_output_that_would_vanish(
    job, arguments, what, dry_run, monkeypatch, capsys
):
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    main = importlib.import_module(f"jobs.{job}").main
    assert exit_status(main, [*arguments, *dry_run]) == 2
    line = capsys.readouterr().err
    assert line.startswith(f"error: {what}: got mine; a submitted job runs in a copy"), line
    assert line.count("\n") == 1


def test_an_output_that_lasts_is_taken_as_it_is(monkeypatch):
    assert lasting("mine") == "mine"
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    for output in ("/mnt/runs", "s3://bucket/runs"):
        assert lasting(output) == output
    assert lasting("~/runs") == str(Path.home() / "runs")


def test_files_about_a_run_elsewhere_need_a_folder_here():
    assert output_folder(None, checkpoint="/runs/a/checkpoints/step-00000002") == Path("/runs/a")
    assert output_folder("here", checkpoint="s3://bucket/a") == Path("here")
    for given, checkpoint in ((None, "s3://bucket/a"), ("s3://bucket/b", "/runs/a")):
        with pytest.raises(ConfigError, match="go into a folder of this machine"):
            output_folder(given, checkpoint=checkpoint)


def test_prepared_data_goes_into_a_folder_here(capsys):
    given = ["--source=simulated", "--output=s3://bucket/data", "--dry-run"]
    assert exit_status(prepare.main, given) == 2
    assert "output: got s3://bucket/data; the files go into a folder" in capsys.readouterr().err


@pytest.mark.parametrize("job", ["evaluate", "predict", "interactions", "demo"])
def test_help_says_what_each_option_does_and_its_default(job, capsys):
    module = importlib.import_module(f"jobs.{job}")
    with pytest.raises(SystemExit):
        module.main(["--help"])
    shown = " ".join(capsys.readouterr().out.split())
    options = shown.partition("options: ")[2].split(" --")[1:]
    assert len(options) > 5
    for option in options:
        name, _, rest = f"--{option}".partition(" ")
        if name in ("--help", "--dry-run", "--overwrite", "--checkpoint", "--input"):
            continue  # a switch, or without a default
        if (job, name) == ("predict", "--output"):
            continue
        assert "(default: " in rest, option


@pytest.mark.parametrize("section", [RunConfig, PretrainConfig, PrepareConfig])
def test_every_setting_is_described(section):
    lines = help_text(section).splitlines()
    described = re.compile(r"  --\S+ +\S.*?  +\S.*?  +\S.*")
    assert not [line for line in lines if not described.fullmatch(line)]
