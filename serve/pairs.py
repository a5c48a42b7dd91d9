"""The packages of a pair of models, verified, and the policy between them."""

from __future__ import annotations

from typing import NamedTuple

from rectrain.cascade import POLICY, Policy
from rectrain.errors import PackageError
from rectrain.package import Package, open_package
from serve.config import ModelPair

__all__ = ["OpenPair", "open_pair"]


class OpenPair(NamedTuple):
    """small and large: packages; policy: of the small one, None where it brings none."""

    small: Package
    large: Package | None
    policy: Policy | None


def open_pair(pair: ModelPair) -> OpenPair:
    """Verifies the packages of a pair, and that the policy was made for just these two.

    Raises:
        PackageError: a package that is foreign, incomplete or altered, or another pair's policy.
    """
    small = open_package(pair.small)
    large = open_package(pair.large) if pair.large else None
    if POLICY not in small.files:
        return OpenPair(small, large, None)
    path = small.path / POLICY
    policy = Policy.from_json(path.read_bytes(), where=str(path))
    for name, package, expected in (
        ("small", small, policy.small),
        ("large", large, policy.large),
    ):
        if package is not None and package.version != expected:
            raise PackageError(
                what=f"policy {path}",
                got=f"one for the {name} model {expected[:12]}",
                rule=f"{package.path} is {package.version[:12]}",
                fix="calibrate this pair (python -m jobs.calibrate), or name the other package",
            )
    return OpenPair(small, large, policy)
