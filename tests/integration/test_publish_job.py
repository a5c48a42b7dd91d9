"""A run on the simulated marketplace becomes a package that recommends from its catalogue."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import rectrain
from jobs import publish
from rectrain.data.shards import Prepared
from rectrain.inference.predictor import Predictor

TASK = "recommendation"


@pytest.fixture(scope="module")
def package(
    marketplace: Path, untrained_run: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    output = tmp_path_factory.mktemp("published") / "package"
    publish.main([f"--checkpoint={untrained_run}", f"--output={output}"])
    return output


def test_the_published_index_ranks_as_the_checkpoint_does(
    package: Path, marketplace: Path, untrained_run: Path
) -> None:
    predictor = Predictor.from_checkpoint(str(untrained_run))
    prepared = Prepared.open(str(marketplace))
    items = prepared.items(TASK).table()
    rows = prepared.shards(TASK, "test").table().slice(0, 30)
    users = [
        {"user_id": user, "history": history or [], "exclude": bought or []}
        for user, history, bought in zip(
            *(rows[name].to_pylist() for name in ("group", "query_text", "exclude")), strict=True
        )
    ]
    scores = predictor.embed(TASK, rows)[0] @ predictor.embed(TASK, items)[1].T
    ids = np.array(items["item_id"].to_pylist())
    found = rectrain.load(package).recommend(users, k=10)
    for line, user, own in zip(found, users, scores, strict=True):
        allowed = np.flatnonzero(~np.isin(ids, user["exclude"]))
        best = allowed[np.argsort(-own[allowed], kind="stable")[:10]]
        assert [one.score for one in line] == pytest.approx(own[best].tolist(), abs=1e-4)
        assert not {one.item_id for one in line} & set(user["exclude"])


def test_the_index_is_refreshed_when_the_catalogue_is_new(
    package: Path, marketplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refresh = ["--refresh-index", f"--output={package}", f"--data={marketplace}"]
    publish.main([*refresh, "--dry-run"])
    assert "index of " in capsys.readouterr().out
    publish.main(refresh)
    assert "was up to date" in capsys.readouterr().out
