"""cluster.yaml is a configuration that Ray's own cluster launcher accepts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

CLUSTER = Path(__file__).resolve().parents[2] / "cluster.yaml"


def prepared(config: dict[str, Any]) -> dict[str, Any]:
    """What `ray up` makes of a configuration, after its own schema has accepted it."""
    whole = prepare_config(config)
    validate_config(whole)
    return whole


def test_ray_accepts_it_and_plans_a_head_and_two_workers():
    whole = prepared(yaml.safe_load(CLUSTER.read_text(encoding="utf-8")))
    assert whole["provider"]["head_ip"] == "192.0.2.10"
    assert whole["max_workers"] == len(whole["provider"]["worker_ips"]) == 2
    assert any("RAY_AUTH_MODE=token" in one for one in whole["head_start_ray_commands"])


def test_ray_refuses_a_key_it_does_not_know():
    config = yaml.safe_load(CLUSTER.read_text(encoding="utf-8"))
    with pytest.raises(jsonschema.ValidationError, match="min_wrokers"):
        prepared(config | {"min_wrokers": 2})
