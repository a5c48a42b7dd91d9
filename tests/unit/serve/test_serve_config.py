"""Settings: what is refused, and that the Serve YAML is made from them."""

from __future__ import annotations

import hashlib

import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from rectrain.errors import ConfigError
from serve.config import (
    SERVE_FILE,
    SETTINGS_FILE,
    Http,
    Settings,
    load_settings,
    serve_yaml,
    settings_of,
)

PAIR = {"shop": {"small": "a", "large": "b"}}


def test_the_serve_yaml_is_current():
    expected = serve_yaml(load_settings(str(SETTINGS_FILE)))
    assert SERVE_FILE.read_text(encoding="utf-8") == expected, "python -m serve.config --write"


def test_serve_reads_all_that_the_yaml_says():
    content = yaml.safe_load(SERVE_FILE.read_text(encoding="utf-8"))
    read = ServeDeploySchema.model_validate(content).model_dump(exclude_unset=True, mode="json")
    for key in ("http_options", "logging_config"):
        assert read[key] == content[key], "Serve passes over keys that it doesn't know"
    assert read["http_options"]["host"] == "127.0.0.1"


def test_the_serve_yaml_is_read_back_as_the_same_settings(tmp_path):
    settings = Settings.model_validate({"models": PAIR, "http": {"port": 8123}})
    path = tmp_path / "config.yaml"
    path.write_text(serve_yaml(settings), encoding="utf-8")
    assert load_settings(str(path)) == settings


def test_the_first_model_is_the_default_one():
    models = {"zebra": {"small": "a"}, "ant": {"small": "b"}}
    settings = Settings.model_validate({"models": models})
    assert settings_of(settings.model_dump(mode="json"), name="args").default == "zebra"


def test_a_serve_yaml_can_not_be_overridden():
    with pytest.raises(ConfigError, match="can't be overridden"):
        load_settings(str(SERVE_FILE), ["--http.port=1"])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("htp: {port: 1}", "htp.*unknown key.*did you mean"),
        ("http: {host: a, potr: 1}", "http.potr.*unknown key"),
        ("ingress: {min_replicas: 3}", "min_replicas: got 3; must not exceed max_replicas"),
        ("large: {target_ongoing_requests: 99}", "must not exceed max_ongoing_requests"),
        ("deadlines: {default_ms: 9e9}", "must not exceed max_ms"),
        ("deadlines: {default_ms: .nan}", "deadlines.default_ms.*finite"),
        ("http: {ssl_keyfile: k.pem}", "TLS needs both"),
        ("default_model: other", "must be one of shop"),
        ("security: {token_hashes: [secret]}", "never the token"),
        ("limits: {candidates: 0}", "limits.candidates"),
    ],
)
def test_a_mistake_is_one_line(tmp_path, line, message):
    path = tmp_path / "settings.yaml"
    path.write_text(f"models: {{shop: {{small: a}}}}\n{line}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=message) as mistake:
        load_settings(str(path))
    assert "\n" not in str(mistake.value)


@pytest.mark.parametrize("models", [{}, {"a b": {"small": "x"}}, {"ä": {"small": "x"}}])
def test_models_have_plain_names(models):
    with pytest.raises(ConfigError, match="models"):
        Settings.model_validate({"models": models})


def test_hashes_of_tokens_are_taken():
    digest = hashlib.sha256(b"secret").hexdigest()
    settings = Settings.model_validate({"models": PAIR, "security": {"token_hashes": [digest]}})
    assert settings.security.token_hashes == (digest,)


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("a.b", False)],
)
def test_loopback_is_known(host, expected):
    assert Http(host=host).is_loopback is expected


def test_paths_become_absolute():
    pair = Settings.model_validate({"models": PAIR}).absolute().models["shop"]
    assert pair.small.startswith("/") and pair.large is not None and pair.large.endswith("/b")
