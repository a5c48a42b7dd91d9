"""What engines raise becomes one line that says why."""

from __future__ import annotations

from pathlib import Path

import pytest

from rectrain.errors import EncoderError
from rectrain.inference.backends.missing import readable


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        ("[ONNXRuntimeError] : 7 : Protobuf parsing failed.", "Protobuf parsing failed."),
        ("Exception from src/a.cpp:132:\nUnable to read the model: g.xml\n", "Unable to read"),
        (
            "Exception from a.cpp:1:\nCheck 'n < m' failed at b.cpp:9:\n\nIncorrect weights",
            "got Incorrect weights;",
        ),
        ("", "got RuntimeError;"),
    ],
)
def test_the_reason_is_not_the_place_in_an_engines_source(raised: str, said: str) -> None:
    with (
        pytest.raises(EncoderError, match=r"graph g\.xml: .*publish it again") as found,
        readable(Path("g.xml")),
    ):
        raise RuntimeError(raised)
    assert said in str(found.value) and "cpp" not in str(found.value)
