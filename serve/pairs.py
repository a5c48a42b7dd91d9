"""The packages of a pair of models, verified, and the policy between them."""

from __future__ import annotations

from typing import NamedTuple

from rectrain.cascade import Policy, read_policy
from rectrain.errors import ConfigError, PackageError
from rectrain.inference.index import ItemIndex
from rectrain.package import Package, open_package
from serve.costs import AnswerCosts, read_costs
from serve.sections import ModelPair

__all__ = ["OpenPair", "open_pair", "require_pinned"]


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
        PackageError: a package that is foreign, incomplete or altered, or another than the pair
            pins; another pair's policy or costs; an item index that is missing, or of another
            catalogue.
    """
    small = _opened(pair.small, pair.small_backend, pair.small_sha256)
    large = None
    if pair.large:
        large = _opened(pair.large, pair.large_backend, pair.large_sha256)
    policy = read_policy(small, large=large)
    if large:
        _check_indexes(policy, small, large)
    costs = None
    if pair.cost is not None:
        costs = read_costs(pair.cost, small=small.version, large=large.version if large else None)
    return OpenPair(small, large, policy, costs)


def require_pinned(package: Package, sha256: str | None) -> None:
    """Raises PackageError where a package is not the one that the graph was deployed with: replicas
    that start later would give other answers than those that run."""
    if sha256 not in (None, package.sha256):
        raise PackageError(
            what=f"package {package.path}",
            got=f"sha256 {package.sha256[:12]} in its manifest.json",
            rule=f"the graph was deployed with {sha256[:12]}, and a package that is served stays as"
            " it is",
            fix="publish the new one into a folder of its own and deploy that, or start Serve anew",
        )


def _opened(path: str, backend: str, sha256: str | None) -> Package:
    package = open_package(path)
    require_pinned(package, sha256)
    known = ("auto", "torch", *package.graphs)
    if backend not in known:
        raise ConfigError(
            what=f"backend of {path}",
            got=backend,
            rule=f"this package has {', '.join(known)}",
            fix="choose one of them",
        )
    return package


def _check_indexes(policy: Policy | None, small: Package, large: Package) -> None:
    """The large model must have an index where the small one defers, and of the same catalogue: it
    orders, or finds itself, what users are to get."""
    for task in small.indexes:
        if task not in large.indexes:
            if policy and task in policy.tasks:
                raise PackageError(
                    what=str(large.path),
                    got=f"no item index of {task}",
                    rule="the large model searches the catalogue of what it is asked",
                    fix=f"python -m jobs.publish --refresh-index --output {large.path} --data DATA",
                )
        elif _catalogue(small, task) != _catalogue(large, task):
            raise PackageError(
                what=str(large.path),
                got=f"an item index of {task} of another catalogue than that of {small.path}",
                rule="what one model finds the other orders",
                fix="python -m jobs.publish --refresh-index --output PACKAGE --data DATA, both with"
                " the same data",
            )


def _catalogue(package: Package, task: str) -> str | None:
    """SHA-256 of the prepared items that a package's index was made of."""
    facts = ItemIndex.read_facts(package.indexes[task], task=task, model=package.version)
    return facts.get("catalogue")
