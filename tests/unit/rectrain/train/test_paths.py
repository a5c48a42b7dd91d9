"""Where a run's files go: said at once when they can't."""

from __future__ import annotations

from pathlib import Path

import pytest

from rectrain.errors import StorageError
from rectrain.train.storage import Store


def test_an_output_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    for use in (lambda: Store.open(str(file)).entries(), lambda: Store.open(f"{file}/x").make()):
        with pytest.raises(StorageError, match=r"output: got .*must be a folder"):
            use()
