"""The packages of a pair of models, verified, and the policy between them."""

from __future__ import annotations

from typing import NamedTuple

from rectrain.cascade import Policy, read_policy
from rectrain.errors import ConfigError
from rectrain.package import Package, open_package
from serve.config import ModelPair
from serve.costs import AnswerCosts, read_costs

__all__ = ["OpenPair", "open_pair"]


class OpenPair(NamedTuple):
    """small and large: packages; policy: of the small one, None where it brings none; costs: of
    answers, None where nobody says."""

    small: Package
    large: Package | None
    policy: Policy | None
    costs: AnswerCosts | None


def open_pair(pair: ModelPair) -> OpenPair:
    """Verifies the packages of a pair, and that the policy was made for just these two.

    Raises:
        ConfigError: a backend that a package does not have.
        PackageError: a package that is foreign, incomplete or altered; another pair's policy or
            costs.
    """
    small = _opened(pair.small, pair.small_backend)
    large = _opened(pair.large, pair.large_backend) if pair.large else None
    costs = None
    if pair.cost is not None:
        costs = read_costs(pair.cost, small=small.version, large=large.version if large else None)
    return OpenPair(small, large, read_policy(small, large=large), costs)


def _opened(path: str, backend: str) -> Package:
    package = open_package(path)
    known = ("auto", "torch", *package.graphs)
    if backend not in known:
        raise ConfigError(
            what=f"backend of {path}",
            got=backend,
            rule=f"this package has {', '.join(known)}",
            fix="choose one of them",
        )
    return package
