"""The published folder of a model: whole, verified before use, and without anything that runs code.

    PACKAGE/
        manifest.json               format, version, and the size and SHA-256 of each file below
        README.md                   the model card: metrics, and how the model was made
        encoder/                    a BERT as transformers and sentence-transformers read it,
                                    with its tokenizer
        full_tokenizer/             where the vocabulary was trimmed: the tokenizer before that
        heads.safetensors           all other weights of the model, fp32 or int8 rows
        tasks.json                  each task's fields, features and text limits; the heads' sizes
        graphs/                     optional: the encoder for other engines (OpenVINO, ONNX)
        items/<task>.safetensors    optional: the item index (rectrain/inference/index.py)
        golden.json                 optional: requests with their answers (inference/golden.py)
        policy.json                 optional: when a large model is asked (rectrain/cascade)

A package's `version` is the SHA-256 of what decides its vectors and scores: encoder, tokenizer,
heads and tasks. An item index names the version that its vectors come from. A package is written
into another folder, synced and renamed; one that is there is put aside until the new one stands.
"""

from rectrain.package.card import Card
from rectrain.package.folder import Package, check_free, open_package
from rectrain.package.parts import ModelParts, num_head_bytes
from rectrain.package.publish import update_package, write_package

__all__ = [
    "Card",
    "ModelParts",
    "Package",
    "check_free",
    "num_head_bytes",
    "open_package",
    "update_package",
    "write_package",
]
