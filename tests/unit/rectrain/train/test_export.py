"""The model card of an exported encoder: what it was made of, and what was done to it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from prepared_toy import PRICE, write_encoder, write_prepared
from untrained import write_run

from rectrain.train.build import load_trained_encoder
from rectrain.train.export import export_encoder
from rectrain.train.storage import Store


def card(run: Path) -> str:
    export_encoder(load_trained_encoder(str(run)), Store.open(str(run)))
    return (run / "encoder" / "README.md").read_text()


def test_the_card_names_what_the_weights_come_from(tmp_path: Path) -> None:
    data = write_prepared(tmp_path / "data", tasks={"risk": PRICE})
    bert = {"encoder": str(write_encoder(tmp_path / "bert"))}

    def run(name: str, **train: Any) -> Path:  # its model.encoder is unused where it starts from
        model = {"encoder": "tiny"} if train else bert
        return write_run(tmp_path / name, data, model=model, train=train)

    first = run("first")
    start = str(first / "checkpoints" / "step-00000001")
    text = card(first)
    assert f"base_model: {tmp_path / 'bert'}\n" in text
    assert f"A BERT trained jointly on risk for 1 steps, from `{tmp_path / 'bert'}`." in text

    second, third = (
        run("second", start_from=start),
        run("third", start_from=start, freeze="encoder"),
    )
    text = card(second)
    assert f"base_model: {tmp_path / 'bert'}\n" in text
    assert f"A BERT trained jointly on risk for 1 steps, from `{start}`." in text
    text = card(third)
    assert f"The BERT of `{start}`, unchanged: heads for risk were trained" in text
    assert "trained jointly" not in text and "tiny" not in text

    shutil.rmtree(first)
    assert f"base_model: {start}\n" in card(second)
