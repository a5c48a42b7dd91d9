"""The public API: what `rectrain` offers, and that every module says what it offers."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import jobs
import rectrain
import serve

MODULES = sorted(
    info.name
    for package in (rectrain, jobs, serve)
    for info in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
)


@pytest.mark.parametrize("name", MODULES)
def test_all_is_there_sorted_and_resolves(name):
    module = importlib.import_module(name)
    assert module.__doc__, "one line that says what the module is for"
    is_bare_package = hasattr(module, "__path__") and not hasattr(module, "__all__")
    names = [] if is_bare_package else module.__all__
    if is_bare_package:
        source = Path(module.__file__).read_text(encoding="utf-8")
        assert len(ast.parse(source).body) == 1, "a package with code has __all__"
    assert sorted(set(names)) == sorted(names)
    assert [one for one in names if not hasattr(module, one)] == []
    assert [one for one in names if one.startswith("_") and one != "__version__"] == []


def test_the_public_api():
    """A name is added or taken away on purpose, here and in the changelog."""
    assert sorted(rectrain.__all__) == [
        "CheckpointError",
        "ConfigError",
        "DataError",
        "EncoderError",
        "PackageError",
        "RectrainError",
        "ResourceError",
        "Section",
        "StorageError",
        "__version__",
        "dump_config",
        "load",
        "load_config",
    ]


def test_importing_the_library_is_light():
    code = (
        "import sys, rectrain\n"
        "heavy = {'ray', 'deepspeed', 'mlflow', 'torch', 'transformers', 'sklearn'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
