"""How good a model is: every metric of every task beside baselines and the best possible.

Baselines are fitted in the same run on the same prepared rows. All systems are resampled
together, so that differences are paired. Where the data is simulated, the true probabilities
themselves are ranked: no model can be expected to do better.

Shapes: n rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from rectrain.data.encoding import FeatureEncoder
from rectrain.data.loader import open_tasks
from rectrain.data.shards import Prepared
from rectrain.data.simulate import SIZES, purchase_propensity
from rectrain.errors import DataError
from rectrain.inference.baselines import CatalogueScorer, catalogue_scorer, score_rows
from rectrain.inference.compare import BEST_POSSIBLE, MODEL, MetricResult, compare, metric_result
from rectrain.inference.index import ItemIndex, Scorer
from rectrain.inference.predictor import Predictor
from rectrain.inference.recommend import Shoppers
from rectrain.metrics import (
    Examples,
    catalogue_coverage,
    graded_groups,
    group_codes,
    intra_list_dissimilarity,
    num_one_class_groups,
)
from rectrain.model.spec import Loss, TaskSpec

__all__ = [
    "TaskResult",
    "evaluate",
    "judged_systems",
]

LIST_SIZE = 10
# What is reported beside a task's own metrics.
_FURTHER: Mapping[Loss, tuple[str, ...]] = {
    "bce": ("calibration_ratio", "predicted_rate", "accuracy", "precision", "recall"),
    "listwise_softmax": ("hr@10", "precision@10"),
    "pairwise_logistic": (),
    "in_batch_softmax": ("precision@10", "conversion@10"),
}

Scores = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class TaskResult:
    """All metrics of one task on one split.

    Args:
        task: its name.
        primary: the metric that stands for the task.
        num_rows: rows (wanted items, where a catalogue is ranked) that were judged.
        num_groups: lists or users that were judged; what the bootstrap draws.
        num_left_out: groups of one class, which GAUC and ranking metrics leave out.
        metrics: by name, the primary one first.
    """

    task: str
    primary: str
    num_rows: int
    num_groups: int
    num_left_out: int
    metrics: Mapping[str, MetricResult]


def evaluate(
    predictor: Predictor,
    paths: Sequence[str],
    *,
    split: str = "test",
    tasks: Sequence[str] | None = None,
    num_resamples: int = 1000,
    seed: int = 0,
    num_threads: int = 1,
    progress: Callable[[str], None] = lambda line: None,
) -> dict[str, TaskResult]:
    """Judges a model on every task.

    Args:
        predictor: the model.
        paths: prepared directories with its tasks.
        split: "validation" or "test".
        tasks: names; None for the model's tasks that the data holds.
        num_resamples: bootstrap resamples, at most.
        seed: of the bootstrap.
        num_threads: tasks that are judged side by side, on one core each.
        progress: is given a line before each step.

    Returns:
        task -> result.

    Raises:
        DataError: a task is missing, or its split has no rows.
    """
    data = open_tasks(paths, tasks=list(predictor.tasks if tasks is None else tasks))

    def judge(task: str) -> TaskResult:
        return _judge(
            predictor,
            data[task],
            spec=predictor.spec(task),
            split=split,
            num_resamples=num_resamples,
            seed=seed,
            progress=progress,
        )

    # One task a thread: scikit-learn's threads that wait in turn for busy cores are slower.
    with threadpool_limits(1), ThreadPoolExecutor(num_threads) as pool:
        return dict(zip(data, pool.map(judge, data), strict=True))


def _judge(
    predictor: Predictor,
    prepared: Prepared,
    *,
    spec: TaskSpec,
    split: str,
    num_resamples: int,
    seed: int,
    progress: Callable[[str], None],
) -> TaskResult:
    progress(f"{spec.name}: scoring {split}")
    systems, further, left_out = _judged(predictor, prepared, spec=spec, split=split)
    progress(f"{spec.name}: bootstrap over {systems[MODEL].num_groups} groups")
    names = list(dict.fromkeys((spec.primary, *spec.metrics, *_FURTHER[spec.loss])))
    metrics = compare(systems, names, num_resamples=num_resamples, seed=seed)
    progress(f"{spec.name}: done")
    return TaskResult(
        task=spec.name,
        primary=spec.primary,
        num_rows=len(systems[MODEL].label),
        num_groups=systems[MODEL].num_groups,
        num_left_out=left_out,
        metrics={**metrics, **further},
    )


def judged_systems(
    predictor: Predictor,
    prepared: Prepared,
    *,
    task: str,
    split: str = "test",
    baselines: bool = True,
) -> dict[str, Examples]:
    """The scored rows of the model (`MODEL`), its baselines, and the truth where it is known.

    Args:
        predictor: the model.
        prepared: data of the task.
        task: one of the model's.
        split: "validation" or "test".
        baselines: False leaves them out.
    """
    spec = predictor.spec(task)
    judged = spec if baselines else replace(spec, baselines=())
    return _judged(predictor, prepared, spec=judged, split=split)[0]


def _judged(
    predictor: Predictor, prepared: Prepared, *, spec: TaskSpec, split: str
) -> tuple[dict[str, Examples], dict[str, MetricResult], int]:
    score = _ranked_catalogue if spec.has_catalogue else _rows
    return score(predictor, prepared, spec=spec, split=split)


# ── Rows with labels ─────────────────────────────────────────────────────────────────────────────


def _rows(
    predictor: Predictor, prepared: Prepared, *, spec: TaskSpec, split: str
) -> tuple[dict[str, Examples], dict[str, MetricResult], int]:
    """Each system's scores of the split's rows; for graded lists, of those whose grades differ."""
    task = spec.name
    test, train = _table(prepared, task, split), prepared.originals(task)
    scores: dict[str, Scores] = {MODEL: predictor.score(task, test)}
    for name in spec.baselines:
        scores[name] = score_rows(name, train, test)
    if test.column("p_true").null_count == 0:
        scores[BEST_POSSIBLE] = test.column("p_true").to_numpy()
    label = test.column("label").to_numpy()
    group = group_codes(test.column("group").to_pylist())
    kept = graded_groups(label, group) if spec.has_lists else np.ones(len(label), dtype=bool)
    weight = test.column("weight").to_numpy()
    systems = {
        name: Examples(
            label=label[kept], score=values[kept], group=group[kept], weight=weight[kept]
        )
        for name, values in scores.items()
    }
    left_out = len(np.unique(group)) - systems[MODEL].num_groups
    if not spec.has_lists:
        left_out = num_one_class_groups(systems[MODEL])
    return systems, {}, left_out


def _table(prepared: Prepared, task: str, split: str) -> pa.Table:
    shards = prepared.shards(task, split)
    if shards.num_rows == 0:
        raise DataError(
            what=f"{split} split of {task} in {prepared.root}",
            got="no rows",
            rule="evaluation needs rows",
            fix="prepare more data, or larger split shares",
        )
    return shards.table()


# ── A ranking of the whole catalogue for each user ───────────────────────────────────────────────


def _ranked_catalogue(
    predictor: Predictor, prepared: Prepared, *, spec: TaskSpec, split: str
) -> tuple[dict[str, Examples], dict[str, MetricResult], int]:
    """Each system's places of the wanted items among all items that the user has not bought."""
    task = spec.name
    items = prepared.items(task).table()
    shoppers = Shoppers.of(_table(prepared, task, split), items.column("item_id").to_pylist())
    train = _purchases(prepared, task, split)
    index = ItemIndex.build(predictor, task, items)
    queries = predictor.embed(task, shoppers.rows)[0]
    rankings = {MODEL: shoppers.rank(index.scorer(queries), k=LIST_SIZE)}
    for name in spec.baselines:
        baseline = catalogue_scorer(name, train, items=shoppers.item_ids)
        rankings[name] = shoppers.rank(_of_block(baseline, shoppers.bought), k=LIST_SIZE)
    if prepared.manifest["source"] == "simulated":
        rankings[BEST_POSSIBLE] = shoppers.rank(_propensity(prepared, shoppers), k=LIST_SIZE)
    systems = {
        name: Examples(
            label=np.ones(len(ranking.ranks)),
            score=-ranking.ranks,
            group=shoppers.wanted_user,
            rank=ranking.ranks,
        )
        for name, ranking in rankings.items()
    }
    lists = {name: ranking.best.items for name, ranking in rankings.items()}
    return systems, _diversity(lists, prepared.features(task), items, index.vectors), 0


def _of_block(baseline: CatalogueScorer, bought: Sequence[Sequence[str]]) -> Scorer:
    return lambda block: baseline(bought[block])


def _purchases(prepared: Prepared, task: str, split: str) -> pa.Table:
    """All that was bought before the split: what a baseline may count."""
    rows = prepared.purchases(task).table()
    if split == "validation":
        rows = rows.filter(pc.equal(rows["part"], 0))
    return rows.select(["group", "item_id"])


def _propensity(prepared: Prepared, shoppers: Shoppers) -> Scorer:
    """The simulated truth as a scorer of users: the chance that each item is bought next."""
    users = shoppers.rows.column("group").to_pylist()
    config = prepared.manifest["config"]
    size = replace(SIZES[config["size"]], **config["simulated"])

    def score(block: slice) -> Scores:
        item_ids, chance = purchase_propensity(users[block], size, seed=prepared.manifest["seed"])
        place = {item: column for column, item in enumerate(item_ids)}
        return chance[:, [place[item] for item in shoppers.item_ids]]

    return score


def _diversity(
    lists: Mapping[str, NDArray[np.int64]],
    features: FeatureEncoder,
    items: pa.Table,
    vectors: NDArray[np.float32],
) -> dict[str, MetricResult]:
    """How much of the catalogue the lists show, and how unlike the items of one list are.

    Unlike means of another category, where items have one, else 1 - cosine of the model's vectors,
    float32 [I, D + 1], less their last place, which holds the item's popularity.
    """
    results = {}
    if "category" in features.categorical:
        place = features.categorical_names.index("category")
        width = len(features.categorical)
        codes = items.column("categorical").combine_chunks().flatten().to_numpy()
        categories = codes.reshape(-1, width)[:, place].astype(np.int64)
        name = f"category_diversity@{LIST_SIZE}"
        unlike = {k: intra_list_dissimilarity(v, categories=categories) for k, v in lists.items()}
    else:
        name = f"vector_diversity@{LIST_SIZE}"
        likeness = vectors[:, :-1]
        unlike = {k: intra_list_dissimilarity(v, vectors=likeness) for k, v in lists.items()}
    shares = {
        system: catalogue_coverage(top, num_items=items.num_rows) for system, top in lists.items()
    }
    means = {system: float(np.nanmean(values)) for system, values in unlike.items()}
    for title, values in ((f"coverage@{LIST_SIZE}", shares), (name, means)):
        alone = {(system, title): value for system, value in values.items()}
        results[title] = metric_result(title, alone, {}, higher_is_better=None)
    return results
