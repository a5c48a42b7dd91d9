"""The item index against plain numpy: search with filters, diversity, and the file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from safetensors.numpy import save_file

from rectrain.errors import ConfigError, DataError, PackageError
from rectrain.inference import index as module
from rectrain.inference.index import Best, ItemIndex, diversify

NUM_ITEMS, WIDTH, K = 230, 9, 7


@pytest.fixture(scope="module")
def index() -> ItemIndex:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(NUM_ITEMS, WIDTH)).astype(np.float32)
    ids = [f"item-{number}" for number in range(NUM_ITEMS)]
    return ItemIndex(ids, vectors, task="recommendation", model="m" * 64, catalogue="c")


@pytest.fixture(scope="module")
def queries() -> np.ndarray:
    return np.random.default_rng(1).normal(size=(41, WIDTH)).astype(np.float32)


def brute_force(index: ItemIndex, query: np.ndarray, *, forbidden: set[str], k: int) -> list[str]:
    allowed = [row for row, item in enumerate(index.ids) if item not in forbidden]
    scores = index.vectors[allowed] @ query
    return [index.ids[allowed[place]] for place in np.argsort(-scores)[:k]]


@pytest.mark.parametrize("block", [1, 1000, 1 << 24])
@pytest.mark.parametrize("as_mask", [False, True])
def test_search_is_exact_under_filters(
    index: ItemIndex,
    queries: np.ndarray,
    monkeypatch: pytest.MonkeyPatch,
    block: int,
    as_mask: bool,
) -> None:
    monkeypatch.setattr(module, "_BLOCK_SCORES", block)
    rng = np.random.default_rng(2)
    bought = [{f"item-{n}" for n in rng.integers(0, 400, 60)} for _ in queries]  # some unknown
    gone = {f"item-{n}" for n in rng.integers(0, NUM_ITEMS, 80)}
    stock = np.array([item in gone for item in index.ids]) if as_mask else gone
    found = index.search(queries, k=K, exclude=bought, out_of_stock=stock)
    for query, ids, row, scores in zip(queries, bought, *found, strict=True):
        assert [index.ids[n] for n in row] == brute_force(index, query, forbidden=ids | gone, k=K)
        assert scores == pytest.approx(index.vectors[row] @ query, abs=1e-5)


def test_a_list_ends_where_items_run_out(index: ItemIndex, queries: np.ndarray) -> None:
    left = ["item-3", "item-5"]
    gone = set(index.ids) - set(left)
    for diversity in (0.0, 0.5):
        items, scores = index.search(queries[:2], k=4, out_of_stock=gone, diversity=diversity)
        assert {index.ids[n] for n in items[0, :2]} == set(left)
        assert (items[:, 2:] == -1).all() and np.isnan(scores[:, 2:]).all()
    nobody = index.search(queries[:0], k=3)
    assert nobody.items.shape == nobody.scores.shape == (0, 3)
    assert index.search(queries[:1], k=10**12).items.shape == (1, NUM_ITEMS)


def mmr(scores: np.ndarray, vectors: np.ndarray, *, k: int, diversity: float) -> list[int]:
    """Maximal marginal relevance by its definition, one item at a time."""
    relevance = (scores - scores.min()) / (scores.max() - scores.min())
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    chosen = [int(np.argmax(scores))]
    while len(chosen) < k:
        rest = [item for item in range(len(scores)) if item not in chosen]
        chosen.append(
            max(
                rest,
                key=lambda item: (
                    (1 - diversity) * relevance[item]
                    - diversity * max(unit[item] @ unit[other] for other in chosen)
                ),
            )
        )
    return chosen


@pytest.mark.parametrize("diversity", [0.2, 0.7, 1.0])
def test_diversity_is_maximal_marginal_relevance(index: ItemIndex, diversity: float) -> None:
    rng = np.random.default_rng(3)
    items = np.stack([rng.permutation(NUM_ITEMS)[:20] for _ in range(5)])
    scores = -np.sort(-rng.normal(size=(5, 20)), axis=1).astype(np.float32)
    found = diversify(Best(items, scores), index.vectors, k=6, diversity=diversity)
    for row in range(5):
        expected = mmr(scores[row], index.vectors[items[row]], k=6, diversity=diversity)
        assert found.items[row].tolist() == items[row, expected].tolist()
        assert found.scores[row].tolist() == scores[row, expected].tolist()


def test_diverse_lists_start_with_the_best_item_and_are_less_alike(
    index: ItemIndex, queries: np.ndarray
) -> None:
    plain, diverse = (index.search(queries, k=K, diversity=d) for d in (0.0, 0.6))
    assert (plain.items[:, 0] == diverse.items[:, 0]).all()
    unit = index.vectors[:, :-1] / np.linalg.norm(index.vectors[:, :-1], axis=1, keepdims=True)
    alike = [
        (unit[lists] @ unit[lists].transpose(0, 2, 1)).mean() for lists in (plain[0], diverse[0])
    ]
    assert alike[1] < alike[0] - 0.05


def test_the_file_gives_back_ids_and_vectors(index: ItemIndex, tmp_path: Path) -> None:
    ids = ["", "Größe 38", "鞋", *index.ids[3:]]
    facts = {"task": "recommendation", "model": "m", "catalogue": "c", "engine": "onnx-int8"}
    written = ItemIndex(ids, index.vectors, **facts)
    (tmp_path / "index.safetensors").write_bytes(written.to_bytes())
    found = ItemIndex.open(tmp_path / "index.safetensors", task="recommendation", model="m")
    assert found.ids == ids and np.array_equal(found.vectors, index.vectors)
    assert {key: getattr(found, key) for key in facts} == facts


def test_another_models_index_is_refused(index: ItemIndex, tmp_path: Path) -> None:
    path = tmp_path / "index.safetensors"
    path.write_bytes(index.to_bytes())
    for task, model in (("recommendation", "n" * 64), ("similar_items", "m" * 64)):
        with pytest.raises(PackageError, match="--refresh-index"):
            ItemIndex.open(path, task=task, model=model)


@pytest.mark.parametrize(
    ("offsets", "ids"),
    [([0, 1, 99], b"ab"), ([0, 2, 1], b"ab"), ([0, 1, 2], b"a\xff"), ([0, 1], b"a")],
)
def test_ids_that_do_not_fit_are_refused(tmp_path: Path, offsets: list[int], ids: bytes) -> None:
    path = tmp_path / "index.safetensors"
    tensors = {
        "vectors": np.zeros((2, 3), np.float32),
        "ids": np.frombuffer(ids, np.uint8),
        "id_offsets": np.array(offsets, np.int64),
    }
    save_file(tensors, path, metadata={"format": "1", "task": "t", "model": "m"})
    with pytest.raises(PackageError, match="item index"):
        ItemIndex.open(path, task="t", model="m")


def test_arguments_out_of_range_are_mistakes(index: ItemIndex, queries: np.ndarray) -> None:
    for k in (0, 2.5, "3", True):
        with pytest.raises(ConfigError, match=f"k: got {k}"):
            index.search(queries, k=k)  # type: ignore[arg-type]
    for diversity in (1.5, "0.3", None, float("nan")):
        with pytest.raises(ConfigError, match=rf"diversity: got {diversity}"):
            index.search(queries, k=1, diversity=diversity)  # type: ignore[arg-type]
    for stock, got in (
        ("item-3", "str 'item-3'"),  # else a collection of letters
        (["item-3", 4], "int 4"),
        ([True, False], "bool True"),
        (None, "NoneType None"),
    ):
        with pytest.raises(ConfigError, match=f"out_of_stock: got {got}; must be a list of ids"):
            index.search(queries, k=1, out_of_stock=stock)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"out_of_stock: got bool \[2\]"):
        index.search(queries, k=1, out_of_stock=np.zeros(2, bool))


def test_an_id_that_stands_twice_is_a_mistake() -> None:
    class Embeds:
        def embed(self, task: str, items: pa.Table) -> tuple[None, np.ndarray]:
            return None, np.zeros((items.num_rows, 2), np.float32)

    with pytest.raises(DataError, match="item a 2 times"):
        ItemIndex.build(Embeds(), "t", pa.table({"item_id": ["a", "b", "a"]}))  # type: ignore[arg-type]
