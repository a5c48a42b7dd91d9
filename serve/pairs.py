"""The packages of a pair of models, verified, and the policy between them."""

from __future__ import annotations

from typing import NamedTuple

from rectrain.cascade import Policy, read_policy
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
    return OpenPair(small, large, read_policy(small, large=large))
