"""The systems that the inference benchmark measures: ours, and others at their best.

Raw texts go to a peer as its users call it: batches of 32 in the given order, padded by the
tokenizer (sentence-transformers sorts by itself). Sorted token ids go to a peer as an expert would:
under the token budget that is fastest for these texts, in as many streams as there are cores.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import AutoTokenizer, BertConfig, BertModel

from rectrain.compress.quantize import pack
from rectrain.data.tokenize import load_tokenizer
from rectrain.inference.backends import choose, open_onnx, open_openvino, open_torch
from rectrain.inference.raw import RawTexts
from rectrain.inference.text_encoder import TextEncoder
from rectrain.model.encoder import load_encoder

__all__ = ["APART", "APART_REQUIREMENTS", "OURS", "PEERS", "Opened", "Setup", "Unavailable", "make"]

OURS = "rectrain"
Ints = npt.NDArray[np.int64]
Vectors = Any
_Engine = Callable[[Ints, Ints], Vectors]

_USUAL_BATCH = 32
_BUDGETS = (256, 512, 1024, 4096)


@dataclass(frozen=True)
class Setup:
    """What every system gets.

    Attributes:
        encoder: folder of a BERT in Hugging Face layout.
        graphs: folder that `build_graphs` filled.
        threads: cores to use.
        max_length: tokens kept of a text.
        texts: kind -> texts in any order.
        ids: kind -> token ids of the same texts, the shortest first.
    """

    encoder: str
    graphs: str
    threads: int
    max_length: int
    texts: dict[str, list[str]]
    ids: dict[str, list[list[int]]]

    def num_tokens(self, kind: str) -> int:
        """Real tokens of the kind's texts, [CLS] and [SEP] included."""
        return sum(map(len, self.ids[kind]))

    def operations_per_token(self, kind: str) -> float:
        """Multiplications and additions of the encoder for a real token, on average.

        2 × layers × (4 D² + 2 D I + 2 L D) for a token of a text of L tokens: the linear layers,
        the scores of attention and the sum they weigh. Softmax, norms and look-ups aren't counted.
        """
        config = BertConfig.from_pretrained(self.encoder, local_files_only=True)
        width, inner = config.hidden_size, config.intermediate_size
        lengths = np.array([len(text) for text in self.ids[kind]])
        attended = float((lengths**2).sum() / lengths.sum())
        linear = 4 * width**2 + 2 * width * inner
        return 2.0 * config.num_hidden_layers * (linear + 2 * attended * width)


class Unavailable(Exception):
    """A system can't run here; says why."""


@dataclass
class Opened:
    """A system that is ready.

    Attributes:
        passes: "raw" or "sorted" -> kind -> what to call, and with what; gives vectors [U, D].
        choices: what it chose by itself.
    """

    passes: dict[str, dict[str, tuple[Callable[[Any], Vectors], Any]]] = field(default_factory=dict)
    choices: str = ""


def make(name: str, setup: Setup) -> Opened:
    """Opens a system, lets it choose what it may, and runs every pass once.

    Raises:
        Unavailable: it can't run here.
    """
    opened = _open_ours(setup) if name == OURS else PEERS[name](setup)
    for kinds in opened.passes.values():
        for run, inputs in kinds.values():
            run(inputs)
    return opened


def _open_ours(setup: Setup) -> Opened:
    graphs = Path(setup.graphs)
    tokenizer = load_tokenizer(setup.encoder)
    bert = load_encoder(
        setup.encoder, vocab_size=len(tokenizer), dropout=0.0, max_length=setup.max_length
    )
    candidates: dict[str, Callable[[], TextEncoder]] = {
        "torch": lambda: open_torch(bert, threads=setup.threads)
    }
    for kind in ("", "-int8"):
        onnx, openvino = graphs / f"onnx{kind}.onnx", graphs / f"openvino{kind}.xml"
        candidates[onnx.stem] = lambda path=onnx: open_onnx(path, threads=setup.threads)  # type: ignore[misc]
        candidates[openvino.stem] = lambda path=openvino: open_openvino(path, threads=setup.threads)  # type: ignore[misc]
    raw, ids, choices = {}, {}, []
    for kind, texts in setup.texts.items():
        packed = pack(setup.ids[kind])
        best = choose(candidates, packed, rounds=1).backend
        encoder = candidates[best]()
        ids[kind] = encoder.encode, packed
        raw[kind] = RawTexts(encoder, tokenizer, max_length=setup.max_length).encode, texts
        choices.append(f"{kind}: {best}")
    return Opened({"raw": raw, "sorted": ids}, ", ".join(choices))


def _open_sentence_transformers(setup: Setup, *, backend: str) -> Opened:
    try:
        from sentence_transformers import SentenceTransformer
    except ModuleNotFoundError as error:
        raise Unavailable(f"no installed package {error.name}") from error
    try:
        model = SentenceTransformer(setup.encoder, device="cpu", backend=backend)  # type: ignore[arg-type]
    except Exception as error:  # its backends raise a bare Exception without optimum
        raise Unavailable(" ".join(str(error).split())) from error
    model.max_seq_length = setup.max_length
    return Opened({"raw": {kind: (model.encode, texts) for kind, texts in setup.texts.items()}})


def _open_fastembed(setup: Setup) -> Opened:
    try:
        from fastembed import TextEmbedding
    except ModuleNotFoundError as error:
        raise Unavailable(f"no installed package {error.name}") from error
    name = "sentence-transformers/all-MiniLM-L6-v2"
    try:
        model = TextEmbedding(
            name, specific_model_path=f"{setup.graphs}/fastembed", threads=setup.threads
        )
    except Exception as error:  # it fetches its own weights, which needs a network
        raise Unavailable(" ".join(str(error).split())) from error

    def run(texts: list[str]) -> Vectors:
        return np.stack(list(model.embed(texts)))

    return Opened({"raw": {kind: (run, texts) for kind, texts in setup.texts.items()}})


def _open_onnx(setup: Setup) -> Opened:
    import onnxruntime as ort

    def session(threads: int) -> _Engine:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        graph = f"{setup.graphs}/peer-onnx-int8.onnx"
        opened = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        return lambda ids, mask: opened.run(None, {"input_ids": ids, "attention_mask": mask})[0]

    return _padded(setup, usual=session(setup.threads), expert=session(1))


def _open_openvino(setup: Setup) -> Opened:
    import openvino as ov

    def compiled(settings: dict[str, Any]) -> _Engine:
        graph = f"{setup.graphs}/peer-openvino-int8.xml"
        model = ov.Core().compile_model(graph, "CPU", settings)
        requests = [model.create_infer_request() for _ in range(settings.get("NUM_STREAMS", 1))]

        def run(ids: Ints, mask: Ints) -> Vectors:
            request = requests.pop()
            try:
                return np.array(request.infer([ids, mask])[0])
            finally:
                requests.append(request)

        # Its bindings load numpy's at the first call, and two first calls at once wait for ever.
        run(np.ones((1, 1), np.int64), np.ones((1, 1), np.int64))
        return run

    threads = {"INFERENCE_NUM_THREADS": setup.threads}
    return _padded(
        setup,
        usual=compiled({**threads, "PERFORMANCE_HINT": "LATENCY"}),
        expert=compiled({**threads, "NUM_STREAMS": setup.threads}),
    )


def _open_compiled(setup: Setup) -> Opened:
    torch.set_num_threads(setup.threads)
    bert = BertModel.from_pretrained(setup.encoder, add_pooling_layer=False).eval()
    compiled = torch.compile(bert, dynamic=True)

    def run(ids: Ints, mask: Ints) -> Vectors:
        with torch.inference_mode():
            inputs = torch.from_numpy(ids), torch.from_numpy(mask)
            return compiled(input_ids=inputs[0], attention_mask=inputs[1])[0].numpy()

    try:
        run(np.ones((2, 8), np.int64), np.ones((2, 8), np.int64))
    except RuntimeError as error:  # no compiler
        raise Unavailable(" ".join(str(error).split())[:200]) from error
    return _padded(setup, usual=run, expert=run, streams=1)


PEERS: dict[str, Callable[[Setup], Opened]] = {
    "sentence-transformers torch": lambda setup: _open_sentence_transformers(
        setup, backend="torch"
    ),
    "sentence-transformers onnx": lambda setup: _open_sentence_transformers(setup, backend="onnx"),
    "sentence-transformers openvino": lambda setup: _open_sentence_transformers(
        setup, backend="openvino"
    ),
    "fastembed": _open_fastembed,
    "onnxruntime int8": _open_onnx,
    "openvino int8": _open_openvino,
    "torch.compile": _open_compiled,
}
#: Peers that run in an environment of their own: optimum takes no transformers from 5 on.
APART = ("sentence-transformers onnx", "sentence-transformers openvino", "fastembed")
APART_REQUIREMENTS = (
    *("sentence-transformers==5.7.0", "transformers==4.57.6", "fastembed==0.9.1"),
    *("optimum==2.1.0", "optimum-onnx==0.1.0", "optimum-intel==1.27.0"),
)


def _padded(setup: Setup, *, usual: _Engine, expert: _Engine, streams: int | None = None) -> Opened:
    """A system of an engine from ids and mask to last hidden states [B, L, D]."""
    tokenizer = AutoTokenizer.from_pretrained(setup.encoder, local_files_only=True)
    pool = ThreadPoolExecutor(streams or setup.threads)

    def from_strings(texts: list[str]) -> Vectors:
        vectors = []
        for start in range(0, len(texts), _USUAL_BATCH):
            batch = tokenizer(
                texts[start : start + _USUAL_BATCH],
                padding=True, truncation=True, max_length=setup.max_length, return_tensors="np",
            )  # fmt: skip
            mask = batch["attention_mask"].astype(np.int64)
            vectors.append(_mean(usual(batch["input_ids"].astype(np.int64), mask), mask))
        return np.concatenate(vectors)

    def from_ids(budget: int) -> Callable[[list[list[int]]], Vectors]:
        def one(texts: list[list[int]]) -> Vectors:
            ids, mask = _pad(texts)
            return _mean(expert(ids, mask), mask)

        return lambda texts: np.concatenate(list(pool.map(one, _under(texts, budget))))

    opened = Opened({"raw": {}, "sorted": {}})
    chosen = []
    for kind, ids in setup.ids.items():
        opened.passes["raw"][kind] = from_strings, setup.texts[kind]
        budget = min(_BUDGETS, key=lambda budget: _seconds(from_ids(budget), ids))
        opened.passes["sorted"][kind] = from_ids(budget), ids
        chosen.append(f"{kind}: {budget} tokens")
    opened.choices = ", ".join(chosen)
    return opened


def _seconds(run: Callable[[Any], Vectors], inputs: Any) -> float:
    """Of the second pass."""
    run(inputs)
    start = time.perf_counter()
    run(inputs)
    return time.perf_counter() - start


def _under(texts: list[list[int]], budget: int) -> Iterable[list[list[int]]]:
    """Neighbours of sorted texts whose rectangle has at most `budget` tokens."""
    batch: list[list[int]] = []
    for text in texts:
        if batch and (len(batch) + 1) * len(text) > budget:
            yield batch
            batch = []
        batch.append(text)
    yield batch


def _pad(texts: list[list[int]]) -> tuple[Ints, Ints]:
    ids = np.zeros((len(texts), len(texts[-1])), dtype=np.int64)
    mask = np.zeros_like(ids)
    for row, text in enumerate(texts):
        ids[row, : len(text)] = text
        mask[row, : len(text)] = 1
    return ids, mask


def _mean(hidden: Vectors, mask: Ints) -> Vectors:
    weight = mask[..., None].astype(np.float32)
    return (hidden * weight).sum(1) / weight.sum(1)
