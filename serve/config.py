"""Settings of the serving graph, and the Serve YAML that is made from them.

    python -m serve.config --write      # serve/settings.yaml -> serve/config.yaml

`serve/settings.yaml` is what people edit: unknown keys are refused, everything is checked before
anything is deployed. `serve/config.yaml` is what `serve deploy` takes: made from it, never edited.
`python -m serve.app` takes either.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, model_validator

from jobs.cli import run
from rectrain.config import Section, load_config, parse_yaml, yaml_mapping
from rectrain.errors import ConfigError
from serve.proxy import DEFAULT_MS
from serve.sections import (
    Batching,
    Cache,
    Deadlines,
    Golden,
    Http,
    Limits,
    ModelPair,
    Replicas,
    Seconds,
    Security,
)

__all__ = [
    "APPLICATION",
    "PROXY_LOCATION",
    "SERVE_ENVIRONMENT",
    "SERVE_FILE",
    "SETTINGS_FILE",
    "Settings",
    "load_settings",
    "main",
    "serve_yaml",
    "settings_of",
]

FOLDER = Path(__file__).parent
SETTINGS_FILE = FOLDER / "settings.yaml"
SERVE_FILE = FOLDER / "config.yaml"
IMPORT_PATH = "serve.app:build"
APPLICATION = "rectrain"
PROXY_LOCATION = "EveryNode"
_HEADER = (
    "# Made by `python -m serve.config --write` from serve/settings.yaml: edit that, not this.\n"
    "#     serve deploy serve/config.yaml\n"
)

#: What Serve's controller needs in its environment; all that it starts takes it from there.
SERVE_ENVIRONMENT = {
    # As of any server. Ray gives its workers 15, so that bulk work leaves the core to Ray's own
    # processes; an answer that somebody waits for would stand behind them, too.
    "RAY_worker_niceness": "0",
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "serve.proxy:middlewares",
    # A dead proxy is replaced after three failed checks; Serve's own period is 10 s.
    "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "1",
}
_GRACE_S = 5  # our own refusal comes first, with its reason


class Settings(Section):
    """All of the serving graph."""

    models: dict[str, ModelPair] = Field(description="name -> packages; requests name one of them")
    default_model: str | None = Field(
        default=None, description="for requests that name none (default: the first)"
    )
    http: Http = Http()
    ingress: Replicas = Replicas()
    large: Replicas = Replicas()
    batching: Batching = Batching()
    deadlines: Deadlines = Deadlines()
    limits: Limits = Limits()
    cache: Cache = Cache()
    golden: Golden = Golden()
    security: Security = Security()
    drain_s: Seconds = Field(
        default=40, description="a process that stops has so long for its requests"
    )
    log_encoding: Literal["TEXT", "JSON"] = Field(default="JSON", description="form of log lines")

    @model_validator(mode="after")
    def _names(self) -> Settings:
        for name in self.models:
            if not name.replace("-", "_").isidentifier() or not name.isascii():
                raise ConfigError(
                    what="models",
                    got=name,
                    rule="a model's name is letters, digits, - and _",
                    fix="rename it",
                )
        if not self.models:
            raise ConfigError(
                what="models", got="none", rule="at least one is served",
                fix="--models.shop.small=PACKAGE",
            )  # fmt: skip
        if self.default_model is not None and self.default_model not in self.models:
            raise ConfigError(
                what="default_model",
                got=self.default_model,
                rule=f"must be one of {', '.join(self.models)}",
                fix="name one of them",
            )
        return self

    @model_validator(mode="after")
    def _fit(self) -> Settings:
        if self.limits.body_bytes > self.batching.max_queued_tokens:
            raise ConfigError(
                what="limits.body_bytes",
                got=self.limits.body_bytes,
                rule="a byte may be a token, and the texts of one body must fit into an empty queue"
                f" (batching.max_queued_tokens, {self.batching.max_queued_tokens})",
                fix="lower limits.body_bytes or raise batching.max_queued_tokens",
            )
        if self.drain_s < self._longest_s:
            raise ConfigError(
                what="drain_s",
                got=self.drain_s,
                rule="a request may take limits.body_s and deadlines.max_ms, together"
                f" {self._longest_s:g} s",
                fix="raise drain_s, or lower the others",
            )
        return self

    @property
    def _longest_s(self) -> float:
        """Seconds that a request may take: its body to come, and its answer."""
        return self.limits.body_s + self.deadlines.max_ms / 1000

    @property
    def default(self) -> str:
        """Name of the model for requests that name none."""
        return self.default_model or next(iter(self.models))

    def http_options(self) -> dict[str, Any]:
        """What Serve's proxies must know."""
        late_s = self._longest_s + _GRACE_S
        return {**self.http.model_dump(exclude_none=True), "request_timeout_s": late_s}

    def serve_environment(self) -> dict[str, str]:
        """What the environment of Serve's controller, and of all that it starts, must hold."""
        return {**SERVE_ENVIRONMENT, DEFAULT_MS: str(float(self.deadlines.default_ms))}

    def controller_options(self) -> dict[str, Any]:
        """How Serve's controller gets that."""
        return {"runtime_env": {"env_vars": self.serve_environment()}}

    def logging_config(self) -> dict[str, Any]:
        """Serve's logs. Our own line says more than its access log; two would be two outcomes."""
        return {"encoding": self.log_encoding, "enable_access_log": False}

    def absolute(self) -> Settings:
        """The same with absolute paths: a process's working directory is not the user's."""
        models = {
            name: pair.model_copy(
                update={
                    "small": _absolute(pair.small),
                    "large": _absolute(pair.large) if pair.large else None,
                    "cost": _absolute(pair.cost) if pair.cost else None,
                }
            )
            for name, pair in self.models.items()
        }
        return self.model_copy(update={"models": models})


def _absolute(path: str) -> str:
    return str(Path(path).expanduser().absolute())


def load_settings(file: str, overrides: Sequence[str] = ()) -> Settings:
    """Reads settings, from their own file or out of the Serve YAML that was made from them.

    Args:
        file: YAML.
        overrides: dotted settings, as of `rectrain.config.load_config`.

    Raises:
        ConfigError: as of `load_config`; overrides of a Serve YAML.
    """
    path = Path(file)
    content = yaml_mapping(path.read_bytes(), name=file) if path.is_file() else {}
    if "applications" not in content:
        return load_config(Settings, file=file, overrides=overrides)
    if overrides:
        raise ConfigError(
            what=f"settings beside {file}",
            got=overrides[0],
            rule="a Serve YAML is made from settings and can't be overridden",
            fix="give --config serve/settings.yaml, or edit that and write it anew",
        )
    return settings_of(_arguments(content, file), name=file)


def settings_of(args: Mapping[str, Any], *, name: str) -> Settings:
    """Settings from a mapping, whose mistakes are one line each.

    Args:
        args: keys and values.
        name: where they come from, for errors.

    Raises:
        ConfigError: as of `load_config`.
    """
    text = yaml.safe_dump(dict(args), sort_keys=False)  # the first model is the default
    return parse_yaml(Settings, text.encode(), name=name)


def _arguments(content: Mapping[str, Any], file: str) -> dict[str, Any]:
    applications = content["applications"]
    try:
        (application,) = [one for one in applications if one["import_path"] == IMPORT_PATH]
        return dict(application["args"])
    except (ValueError, KeyError, TypeError):
        raise ConfigError(
            what=f"configuration file {file}",
            got="other applications",
            rule=f"exactly one must have the import_path {IMPORT_PATH}, with args",
            fix="python -m serve.config --write",
        ) from None


def serve_yaml(settings: Settings) -> str:
    """The YAML for `serve deploy` and `serve run`: the settings, and what Serve itself must know.

    Serve's own default for the host is all interfaces, and it passes over keys that it doesn't
    know, so all that counts is written out.
    """
    content = {
        "proxy_location": PROXY_LOCATION,
        "http_options": settings.http_options(),
        "controller_options": settings.controller_options(),
        "logging_config": settings.logging_config(),
        "applications": [
            {
                "name": APPLICATION,
                "route_prefix": "/",
                "import_path": IMPORT_PATH,
                "args": settings.model_dump(mode="json"),
            }
        ],
    }
    return _HEADER + yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


def main(argv: list[str]) -> int:
    """Writes serve/config.yaml, or says whether it is current."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help="write; otherwise only compare")
    options = parser.parse_args(argv)
    text = serve_yaml(load_settings(str(SETTINGS_FILE)))
    if options.write:
        SERVE_FILE.write_text(text, encoding="utf-8")
        print(f"written: {SERVE_FILE}")
        return 0
    if not SERVE_FILE.is_file() or SERVE_FILE.read_text(encoding="utf-8") != text:
        raise ConfigError(
            what=str(SERVE_FILE),
            got="another text than the settings give",
            rule=f"it is made from {SETTINGS_FILE.name}",
            fix="python -m serve.config --write",
        )
    print(f"current: {SERVE_FILE}")
    return 0


if __name__ == "__main__":
    run(main)
