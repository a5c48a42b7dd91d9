"""Virtual environments for peers that don't go with the product's pinned packages."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

__all__ = ["make_venv"]


def make_venv(folder: Path, requirements: Sequence[str]) -> Path:
    """Installs peers into an environment of their own, unless they are there already.

    What else they need, they find behind their own packages among those of this one.

    Args:
        folder: of the environment.
        requirements: pinned packages.

    Returns:
        The environment's Python.

    Raises:
        subprocess.CalledProcessError: no registry can be reached, or it has no such packages.
    """
    folder = folder.absolute()
    python, done = folder / "bin/python", folder / ".done"
    wanted = "\n".join(requirements)
    if done.is_file() and done.read_text() == wanted:
        return python
    print(f"installing {', '.join(requirements)} into {folder}", flush=True)
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
    packages = sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)})
    Path(packages, "zz_product.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, *requirements], check=True)
    done.write_text(wanted)
    return python
