"""How hard the simulated marketplace is: what strong simple learners reach of the best possible.

    python -m benchmarks.difficulty [--seed 0] [--output runs/bench/difficulty.json]

Every learner here is given more than a model gets: "text" reads each word's exact meaning, since
it knows the vocabulary that the simulation speaks. Lift is (value - random) / (best - random).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from rectrain.data.encoding import FeatureEncoder
from rectrain.data.simulate import SIZES, Size, purchase_propensity, simulate, vocabulary
from rectrain.inference.baselines import rank_catalogue, score_rows
from rectrain.metrics import Examples, catalogue_ranks, group_codes, metric
from rectrain.tasks import TASKS

__all__ = ["Difficulty", "main", "measure", "measure_recommendation", "measure_rows"]

Floats = npt.NDArray[np.floating[Any]]
Ints = npt.NDArray[np.integer[Any]]

# task -> (metric, group, columns of the query side)
_ROW_TASKS = {
    "search_ranking": ("ndcg@10", "query_id", "query"),
    "ad_ctr": ("auc", "user_id", "context"),
    "risk": ("auc", "user_id", None),
}
_MEANINGS = {
    "kind": tuple(kind.words for kind in vocabulary.TYPES),
    "category": vocabulary.CATEGORIES,
    "style": vocabulary.STYLES,
    "material": vocabulary.MATERIALS,
    "colour": vocabulary.COLOURS,
    "brand": vocabulary.BRANDS,
    "size": vocabulary.SIZES,
    "copy": vocabulary.COPIES,
    "price_word": vocabulary.PRICE_WORDS,
}
_CATEGORY_OF = np.array([0, *(kind.category + 1 for kind in vocabulary.TYPES)])


@dataclass(frozen=True)
class Difficulty:
    """One task's figures.

    Attributes:
        metric: name of the task's metric.
        random, best: of an order that knows nothing, and of the true probabilities.
        values: learner -> metric; "text", "features", "joint" and the evaluation's baselines.
        num_rows: test rows.
    """

    metric: str
    random: float
    best: float
    values: Mapping[str, float]
    num_rows: int

    def lift(self, learner: str) -> float:
        """The share of what can be won over a random order that a learner wins."""
        return (self.values[learner] - self.random) / (self.best - self.random)


def measure(size: Size, *, seed: int) -> dict[str, Difficulty]:
    """Figures of all four tasks of one simulated marketplace."""
    tables = simulate(size, seed=seed)
    result = {"recommendation": measure_recommendation(tables["recommendation"], size, seed=seed)}
    return result | {task: measure_rows(task, tables[task], seed=seed) for task in _ROW_TASKS}


def measure_rows(task: str, table: pa.Table, *, seed: int) -> Difficulty:
    """Figures of a task of labelled rows; a fifth of the groups is the test."""
    name, group, query = _ROW_TASKS[task]
    codes = group_codes(table[group].to_pylist())
    test = np.random.default_rng(seed).permutation(codes.max() + 1)[codes] % 5 == 0
    fields = TASKS[task].fields
    table = fields.check(table)[0]
    encoder = FeatureEncoder.fit(table.filter(pa.array(~test)), fields)
    encoded = encoder.encode(table)
    meaning = _meanings(table, query=query)
    nothing = np.zeros((len(test), 0), np.float32)
    sets = {
        "features": (encoded.numeric, encoded.categorical),
        "text": (nothing, meaning),
        "joint": (encoded.numeric, np.concatenate([encoded.categorical, meaning], axis=1)),
    }
    score = metric(name)

    def value(scores: Floats) -> float:
        return score(Examples(label=label[test], score=scores, group=codes[test]))

    label = table["label"].to_numpy().astype(np.float64)
    values = {}
    for learner, (numeric, categorical) in sets.items():
        rows = _as_prepared(table, query=query, numeric=numeric, categorical=categorical)
        train, held = rows.filter(pa.array(~test)), rows.filter(pa.array(test))
        values[learner] = value(score_rows("gbdt", train, held))
        if learner == "features":
            for other in TASKS[task].baselines:
                values[other] = value(score_rows(other, train, held))
            # The better of two readers, so that none of them being weak makes the task look hard.
            words = value(score_rows("tfidf", train, held))
    values["text"] = max(values["text"], words, values.get("bm25", 0.0))
    draws = np.random.default_rng(seed).random((20, int(test.sum())))
    return Difficulty(
        metric=name,
        random=0.5 if name == "auc" else float(np.mean([value(draw) for draw in draws])),
        best=value(table["p_true"].to_numpy()[test]),
        values=values,
        num_rows=int(test.sum()),
    )


def _as_prepared(
    table: pa.Table, *, query: str | None, numeric: Floats, categorical: Ints
) -> pa.Table:
    """The columns of prepared rows that the baselines read."""

    def lists(values: npt.NDArray[Any], kind: pa.DataType) -> pa.Array:
        width = values.shape[1]
        if not width:  # Arrow has no lists of length 0 to build from
            return pa.array([[]] * len(values), pa.list_(kind, 0))
        return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1), kind), width)

    def texts(name: str | None) -> pa.Array:
        rows = [[]] * table.num_rows if name is None else [[t] for t in table[name].to_pylist()]
        return pa.array(rows, pa.list_(pa.string()))

    return pa.table(
        {
            "query_text": texts(query),
            "item_text": texts("item_text"),
            "numeric": lists(numeric, pa.float32()),
            "categorical": lists(categorical, pa.int32()),
            "label": table["label"],
            "weight": pa.array(np.ones(table.num_rows)),
        }
    )


def _meanings(table: pa.Table, *, query: str | None) -> Ints:
    """What a perfect reader sees in a row's texts: meanings of both sides and which are equal."""
    item = _read(table["item_text"])
    if query is None:
        return np.stack(list(item.values()), axis=1)
    asked = _read(table[query])
    equal = [(asked[name] == item[name]) & (asked[name] > 0) for name in _MEANINGS]
    columns = [*item.values(), *asked.values(), *equal]
    return np.stack([np.asarray(column, dtype=np.int32) for column in columns], axis=1)


def _read(texts: pa.ChunkedArray) -> dict[str, Ints]:
    """The number (from 1; 0: not said) of each meaning in each text, by its exact words."""
    distinct = pc.dictionary_encode(texts.combine_chunks())
    padded = pc.binary_join_element_wise("", pc.utf8_lower(distinct.dictionary), "", " ")
    found = {}
    for name, phrases in _MEANINGS.items():
        codes = np.zeros(len(padded), np.int32)
        for number, phrase in enumerate(phrases, start=1):
            for word in {*phrase.catalogue, *phrase.shopper} - {"", "-"}:
                codes[np.asarray(pc.match_substring(padded, f" {word.lower()} "))] = number
        found[name] = codes[distinct.indices.to_numpy()]
    found["category"] = np.where(
        found["kind"] > 0, _CATEGORY_OF[found["kind"]], found["category"]
    ).astype(np.int32)
    return found


def measure_recommendation(log: pa.Table, size: Size, *, seed: int) -> Difficulty:
    """Figures of the users' last baskets, ranking all that they never bought."""
    frame = log.select(["user_id", "item_id", "item_text", "price", "rating", "timestamp"])
    user = group_codes(frame["user_id"].to_pylist())
    time = frame["timestamp"].to_numpy().astype(np.int64)
    last, before = _last_baskets(user, time)
    names, truth = purchase_propensity(
        [f"u{number:07d}" for number in range(user.max() + 1)], size, seed=seed
    )
    place = {name: column for column, name in enumerate(names)}
    item = np.array([place[name] for name in frame["item_id"].to_pylist()])
    catalogue = _Catalogue.of(frame, item, len(names))
    bought = np.zeros(truth.shape, bool)
    bought[user[~last], item[~last]] = True
    # Scoring a catalogue by trees is slow: some of the users stand for all.
    sample = np.random.default_rng(seed).permutation(len(truth))[:_NUM_SAMPLED_USERS]
    target = last & ~bought[user, item] & np.isin(user, sample)

    def value(scores: Floats) -> float:
        ranks = catalogue_ranks(
            np.where(bought, -np.inf, scores).astype(np.float32),
            rows=user[target], columns=item[target],
        )  # fmt: skip
        return metric("ndcg@10")(
            Examples(
                label=np.ones(len(ranks)), score=-ranks.astype(float), group=user[target],
                rank=ranks,
            )
        )  # fmt: skip

    train = pa.table({"group": frame["user_id"], "item_id": frame["item_id"]}).filter(
        pa.array(~last)
    )
    lists = [[names[i] for i in np.flatnonzero(row)] for row in bought]
    values = {
        name: value(rank_catalogue(name, train, items=names, bought=lists))
        for name in TASKS["recommendation"].baselines
    }
    learn = ~last & ~before
    others = np.random.default_rng(seed).integers(0, len(names), (int(learn.sum()), 20))
    asked = (np.repeat(user[learn], 21), np.column_stack([item[learn], others]).reshape(-1))
    early = catalogue.facts(user[before], item[before], *asked, num_users=len(truth))
    every = (np.repeat(sample, len(names)), np.tile(np.arange(len(names)), len(sample)))
    late = catalogue.facts(user[~last], item[~last], *every, num_users=len(truth))
    for learner, columns in _FACTS.items():
        scores = np.zeros(truth.shape)
        scores[sample] = _choices(early[:, columns], late[:, columns]).reshape(len(sample), -1)
        values[learner] = value(scores)
    noise = np.random.default_rng(seed).random(truth.shape, dtype=np.float32)
    return Difficulty("ndcg@10", value(noise), value(truth), values, int(target.sum()))


def _last_baskets(user: Ints, time: Ints) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Which rows are a user's last basket, and which come before the last but one."""
    final = np.zeros(user.max() + 1, np.int64)
    np.maximum.at(final, user, time)
    last = time == final[user]
    second = np.zeros_like(final)
    np.maximum.at(second, user[~last], time[~last])
    return last, time < second[user]


_NUM_SAMPLED_USERS = 300
_FACTS = {
    "text": [0, 1, 2, 3, 4],
    "features": [0, 5, 6, 7, 8],
    "joint": list(range(9)),
}


@dataclass(frozen=True)
class _Catalogue:
    """What is known of the items: meanings, log price (standardised) and rating."""

    meanings: dict[str, Ints]
    price: Floats
    rating: Floats

    @classmethod
    def of(cls, log: pa.Table, item: Ints, num_items: int) -> _Catalogue:
        row = np.zeros(num_items, np.int64)
        row[item] = np.arange(len(item))
        seen = log.take(pa.array(row))
        price = np.log(np.nan_to_num(seen["price"].to_numpy(), nan=15.0))
        rating = np.nan_to_num(seen["rating"].to_numpy(), nan=3.9)
        return cls(_read(seen["item_text"]), (price - price.mean()) / price.std(), rating)

    def facts(
        self, user: Ints, item: Ints, ask_user: Ints, ask_item: Ints, *, num_users: int
    ) -> Floats:
        """Facts of each asked user and item from a history of users and items, float32 [n, 9]:
        the share of the history of the item's category, style, material, colour and type; then
        the item's popularity, rating, squared distance from the history's price, and price."""
        size = np.maximum(np.bincount(user, minlength=num_users), 1)
        columns = []
        for name in ("category", "style", "material", "colour", "kind"):
            codes = self.meanings[name]
            counts = np.zeros((num_users, codes.max() + 1))
            np.add.at(counts, (user, codes[item]), 1.0)
            columns.append(counts[ask_user, codes[ask_item]] / size[ask_user])
        popular = np.log1p(np.bincount(item, minlength=len(self.price)))
        level = np.bincount(user, weights=self.price[item], minlength=num_users) / size
        columns += [popular[ask_item], self.rating[ask_item]]
        columns += [(self.price[ask_item] - level[ask_user]) ** 2, self.price[ask_item]]
        return np.stack(columns, axis=1).astype(np.float32)


def _choices(early: Floats, late: Floats) -> Floats:
    """Scores of the `late` rows by trees that tell, in the `early` rows, what a user bought next
    (the first of every 21) from 20 random items."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    trees = HistGradientBoostingClassifier(learning_rate=0.05, max_iter=100, random_state=0)
    trees.fit(early, np.arange(len(early)) % 21 == 0)
    scores: Floats = trees.decision_function(late)
    return scores


def _table(figures: Mapping[str, Difficulty]) -> str:
    lines = [
        "| task | metric | predictor | value | share of the best lift |",
        "|---|---|---|---|---|",
    ]
    for task, found in figures.items():
        lines.append(f"| {task} | {found.metric} | random | {found.random:.3f} | 0% |")
        lines += [
            f"| {task} | {found.metric} | {learner} | {value:.3f} | {found.lift(learner):.0%} |"
            for learner, value in sorted(found.values.items(), key=lambda pair: pair[1])
        ]
        lines.append(f"| {task} | {found.metric} | best possible | {found.best:.3f} | 100% |")
    return "\n".join(lines)


def _records(figures: Mapping[str, Difficulty]) -> list[dict[str, object]]:
    records: list[dict[str, object]] = []
    for task, found in figures.items():
        rows = {"random": found.random, **found.values, "best_possible": found.best}
        for learner, value in rows.items():
            records.append(
                {
                    "id": f"difficulty/{task}/{learner}", "value": value, "unit": found.metric,
                    "peer": found.best, "low": None, "high": None, "n": found.num_rows,
                }
            )  # fmt: skip
    return records


def main(arguments: list[str] | None = None) -> None:
    """Measure the demo's marketplace, print the table, write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size", choices=sorted(SIZES), default="demo")
    parser.add_argument("--output", type=Path, default=Path("runs/bench/difficulty.json"))
    options = parser.parse_args(arguments)
    figures = measure(SIZES[options.size], seed=options.seed)
    print(_table(figures))
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(_records(figures), indent=2) + "\n")


if __name__ == "__main__":
    main()
