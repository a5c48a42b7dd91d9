"""Closed-form figures of a package agree with what lies in it."""

from __future__ import annotations

import pytest
from packaged_toy import toy_parts
from served_toy import CARD, TASKS

from rectrain.cost.flops import encoder_flops
from rectrain.cost.shapes import figures_of, stored_bytes
from rectrain.package import write_package


def test_the_figures_of_a_package_are_those_of_its_files(tmp_path):
    parts = toy_parts(tmp_path / "parts", tasks=TASKS)
    package = write_package(tmp_path / "package", parts, card=CARD)
    found = figures_of(package, candidates=7, tokens=9)
    encoder = parts.model.encoder
    weights = sum(p.numel() for name, p in encoder.named_parameters() if "pooler" not in name)
    assert found.parameters == weights
    assert (found.fp32_bytes, found.int8_bytes) == (4 * weights, weights)
    # What a file has beside the weights is its header.
    encoder_bytes = package.files["encoder/model.safetensors"]["bytes"]
    assert 0 < encoder_bytes - found.fp32_bytes < 20_000
    assert found.stored_bytes == stored_bytes(package) > encoder_bytes
    assert found.request_gflop * 1e9 == encoder_flops(encoder.config, [9] * 7)
    assert found.complexity * 63 / 1000 == pytest.approx(found.request_gflop)
    assert found.training_bytes is None
