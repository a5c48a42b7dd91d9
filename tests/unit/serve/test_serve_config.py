"""Settings: what is refused, and that the Serve YAML is made from them."""

from __future__ import annotations

import hashlib
import json
import re

import pytest
import yaml
from packaged_toy import toy_parts, write_catalogue
from ray.serve.schema import ServeDeploySchema
from served_toy import CARD, TASKS, write_deferring_pair, write_pair

from jobs.cli import exit_status
from rectrain.errors import ConfigError, PackageError
from rectrain.inference.golden import publish_golden
from rectrain.inference.packaged import publish_index
from rectrain.package import write_package
from serve import app
from serve.config import SERVE_FILE, SETTINGS_FILE, Settings, load_settings, serve_yaml, settings_of
from serve.deployments import Ingress, Large
from serve.pairs import open_pair
from serve.proxy import DEFAULT_MS
from serve.sections import Http, ModelPair

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
        ("http: {host: localhost, potr: 1}", "http.potr.*unknown key"),
        ("http: {host: 300.1.1.1}", "http.host.*an address of this machine"),
        ("http: {host: ''}", "http.host"),
        ("http: {port: 0}", "http.port"),
        ("http: {port: 65536}", "http.port"),
        ("http: {port: http}", "http.port"),
        ("ingress: {min_replicas: 3}", "min_replicas: got 3; must not exceed max_replicas"),
        ("large: {target_ongoing_requests: 99}", "must not exceed max_ongoing_requests"),
        ("deadlines: {default_ms: 9e9}", "must not exceed max_ms"),
        ("deadlines: {default_ms: .nan}", "deadlines.default_ms.*finite"),
        ("http: {ssl_keyfile: k.pem}", "TLS needs both"),
        ("default_model: other", "must be one of shop"),
        ("security: {token_hashes: [secret]}", "never the token"),
        ("security: {token_hashes: secret}", "security.token_hashes"),
        ("limits: {candidates: 0}", "limits.candidates"),
        ("limits: {requests: 1.5}", "limits.requests"),
        ("limits: {choose_route: large}", "limits.choose_route"),
        ("limits: {body_s: 0}", "limits.body_s"),
        ("limits: {body_bytes: 300000}", "limits.body_bytes.*fit into an empty queue"),
        ("batching: {max_queued_tokens: 200000}", "limits.body_bytes.*fit into an empty queue"),
        ("batching: {max_tokens: 300000}", "max_tokens: got 300000; must not exceed max_queued_to"),
        (
            "batching: {max_tokens: 4000, max_queued_tokens: 5000}",
            "limits.body_bytes.*max_queued_tokens, 5000",
        ),
        ("deadlines: {large_ms: 6000}", "large_ms: got 6000.0; must not exceed default_ms"),
        ("deadlines: {max_ms: 60000}", "drain_s: got 40;.*together 70 s"),
        ("drain_s: 5", "drain_s: got 5.*; .*together 40 s; fix: raise drain_s"),
        ("golden: {period_s: 1}", "health_check_s: got 2; must not exceed period_s"),
        ("golden: {tolerance: 1}", "golden.tolerance"),
        ("golden: {required: maybe}", "golden.required"),
        ("cache: {ttl_s: 0}", "cache.ttl_s"),
        ("cache: {answers: -1}", "cache.answers"),
        ("ingress: {threads: 0}", "ingress.threads"),
        ("ingress: {max_queued_requests: -1}", "ingress.max_queued_requests"),
        ("large: {upscale_delay_s: .inf}", "large.upscale_delay_s"),
        ("log_encoding: XML", "log_encoding"),
        ("models: 5", "models"),
        ("models: {shop: {small: a, lrage: b}}", "models.*lrage"),
        ("models: {shop: {large: b}}", "models.*small"),
        ("models: {shop: {small: a, small_sha256: 12}}", "models.*small_sha256"),
    ],
)
def test_a_mistake_is_one_line(tmp_path, capsys, line, message):
    path = tmp_path / "settings.yaml"
    models = "" if line.startswith("models") else "models: {shop: {small: a}}\n"
    path.write_text(f"{models}{line}\n", encoding="utf-8")
    status = exit_status(app.main, ["--config", str(path)])
    said = capsys.readouterr().err
    assert status == 2 and said.count("\n") == 1 and said.startswith("error: ")
    assert re.search(message, said), said


def test_every_setting_is_in_the_table_of_mistakes():
    """A number, a word or a list in the place of each leaf is refused with the leaf's name."""
    settings = Settings.model_validate({"models": PAIR}).model_dump(mode="json")
    for section, values in settings.items():
        leaves = values if isinstance(values, dict) and section != "models" else {None: values}
        for leaf in leaves:
            wrong = {"odd": [1]}
            changed = {**settings, section: {**values, leaf: wrong} if leaf else wrong}
            with pytest.raises(ConfigError, match=leaf or section) as mistake:
                settings_of(changed, name="args")
            assert "\n" not in str(mistake.value)


def test_a_proxy_waits_longer_than_any_request_may_take():
    settings = Settings.model_validate(
        {"models": PAIR, "limits": {"body_s": 3}, "deadlines": {"max_ms": 7000}}
    )
    assert settings.http_options()["request_timeout_s"] > 3 + 7


def test_a_proxy_is_told_the_default_deadline():
    settings = Settings.model_validate({"models": PAIR, "deadlines": {"default_ms": 700}})
    assert settings.controller_options()["runtime_env"]["env_vars"][DEFAULT_MS] == "700.0"


def test_a_certificate_must_fit_its_key(tmp_path):
    for name in ("cert.pem", "key.pem"):
        (tmp_path / name).write_text("no PEM")
    http = Http(ssl_certfile=str(tmp_path / "cert.pem"), ssl_keyfile=str(tmp_path / "key.pem"))
    for one in (http, http.model_copy(update={"ssl_keyfile": str(tmp_path / "none.pem")})):
        with pytest.raises(ConfigError, match=r"http\.ssl_certfile and http\.ssl_keyfile"):
            one.check_files()
    Http().check_files()


@pytest.mark.parametrize("which", ["small_backend", "large_backend"])
def test_a_backend_must_be_one_of_its_package(packages, which):
    pair = {name: str(package.path) for name, package in packages.items()}
    open_pair(ModelPair(**pair))
    with pytest.raises(ConfigError, match=r"got fast; this package has auto, torch"):
        open_pair(ModelPair(**pair, **{which: "fast"}))


@pytest.mark.parametrize("side", ["small", "large"])
def test_a_replica_refuses_a_package_that_was_exchanged_since_it_was_deployed(tmp_path, side):
    packages = write_pair(tmp_path)
    shop = {name: str(package.path) for name, package in packages.items()}
    given = Settings.model_validate({"models": {"shop": shop}})
    settled = app._settled(given)
    written = json.loads((packages[side].path / "manifest.json").read_bytes())
    assert getattr(settled.models["shop"], f"{side}_sha256") == written["sha256"]
    open_pair(settled.models["shop"])

    exchanged = publish_golden(packages[side])
    assert exchanged.version == packages[side].version  # as after jobs.calibrate, or a refresh
    message = f"{side}: got sha256 {exchanged.sha256[:12]}.*deployed with {written['sha256'][:12]}"
    with pytest.raises(PackageError, match=message):
        open_pair(settled.models["shop"])
    with pytest.raises(PackageError, match=message):
        Ingress(settled, {}) if side == "small" else Large(settled, "shop")
    open_pair(app._settled(given).models["shop"])  # deployed anew


def test_what_is_deferred_needs_the_large_models_item_index(tmp_path):
    pair = write_deferring_pair(tmp_path)
    large = toy_parts(tmp_path / "bare-parts", seed=1, tasks=TASKS)
    bare = write_package(tmp_path / "bare", large, card=CARD)
    assert bare.version == pair["large"].version
    open_pair(ModelPair(small=str(pair["small"].path), large=str(pair["large"].path)))
    with pytest.raises(PackageError, match="bare: got no item index of recommendation"):
        open_pair(ModelPair(small=str(pair["small"].path), large=str(bare.path)))


def test_both_models_recommend_from_one_catalogue(tmp_path):
    packages = write_pair(tmp_path)
    pair = ModelPair(**{name: str(package.path) for name, package in packages.items()})
    open_pair(pair)
    parts = toy_parts(tmp_path / "newer-parts", tasks=TASKS)
    newer = {"recommendation": write_catalogue(tmp_path / "newer", parts, num_items=7, seed=5)}
    publish_index(packages["small"], newer)
    with pytest.raises(PackageError, match=r"large: got an item index of recom.* of another catal"):
        open_pair(pair)
    publish_index(packages["large"], newer)
    open_pair(pair)


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
    [("127.0.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("::", False)],
)
def test_loopback_is_known(host, expected):
    assert Http(host=host).is_loopback is expected


def test_paths_become_absolute():
    pair = Settings.model_validate({"models": PAIR}).absolute().models["shop"]
    assert pair.small.startswith("/") and pair.large is not None and pair.large.endswith("/b")
