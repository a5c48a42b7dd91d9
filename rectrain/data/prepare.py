"""Prepare data on Ray Data: check, split, fit, encode, tokenise, write; then the manifest, last.

    parts of the source ─► check (parallel) ─► split and fit (keys and features only, one process)
                                            ─► encode, tokenise, write shards (parallel)

Rows travel through Arrow files in a temporary directory beside the output, so that no process
holds more than one part of them, and neither order nor parallelism changes a byte.
"""

from __future__ import annotations

import json
import logging
import pickle
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
import ray.data

from rectrain.cluster import connect
from rectrain.data.assemble import Spec
from rectrain.data.augment import SHOP, Augmenter, load_synonyms
from rectrain.data.config import PrepareConfig, SplitConfig
from rectrain.data.encoding import FeatureEncoder
from rectrain.data.layout import (
    TaskSplit,
    build_catalogue,
    choose_split,
    key_columns,
    lay_out,
    refuse_unread,
    settle_split,
    split_task,
)
from rectrain.data.shards import FORMAT, MANIFEST, Prepared, Shards
from rectrain.data.sources import Part, Source, find_source
from rectrain.data.sources.source import fingerprint
from rectrain.data.split import TRAIN, bar_held_out
from rectrain.data.stages import (
    CHECKED,
    PLANS,
    REJECTED,
    Checked,
    TaskWriter,
    check_part,
    find_spec,
    write_rejects,
)
from rectrain.data.staging import build_directory
from rectrain.data.tokenize import load_tokenizer, tokenizer_hash
from rectrain.errors import DataError, RectrainError

__all__ = ["empty_splits", "plan", "prepare"]

_HOW = {"output", "overwrite", "num_workers"}  # settings that don't change what is made


def prepare(config: PrepareConfig, *, specs: Mapping[str, Spec]) -> Prepared:
    """Make a prepared directory; one made before by the same settings and inputs is kept.

    Args:
        config: what to prepare and where to put it.
        specs: every known task, own features included.

    Raises:
        RectrainError: an input, a row or a setting is wrong; nothing is left at the output.
    """
    source, output = find_source(config.source), Path(config.output).absolute()
    what = {
        "source": config.source,
        "inputs": fingerprint([*config.input, *_own_files(config)]),
        "config": config.model_dump(mode="json", exclude=_HOW),
    }
    if (kept := _existing(output, what, config=config, specs=specs)) is not None:
        return kept
    _augmenter(config)  # a mistake in its file shows before the work begins
    with build_directory(output) as temporary:
        manifest = _build(temporary, config, source=source, specs=specs)
        text = json.dumps({"format": FORMAT, **manifest, **what, "seed": config.seed}, indent=1)
        (temporary / MANIFEST).write_text(text)
    prepared = Prepared.open(str(output))
    for line in empty_splits(prepared.manifest):
        _say(f"warning: {line}")
    return prepared


def empty_splits(manifest: Mapping[str, Any]) -> list[str]:
    """What the held-out splits without a row mean, in words for the user: one line each.

    Args:
        manifest: of prepared data.
    """
    uses = {"validation": "training can't judge it", "test": "jobs.evaluate can't judge it"}
    return [
        f"{task}: no row in {split}, so {use}; give more rows, or set --split.{split}_share"
        for task, facts in manifest["tasks"].items()
        for split, use in uses.items()
        if facts["splits"][split]["rows"] == 0
    ]


def _own_files(config: PrepareConfig) -> list[str]:
    """Files beside the inputs whose content decides what is made."""
    synonyms = config.augment.synonyms
    return [synonyms] if config.augment.copies and synonyms != SHOP else []


def _existing(
    output: Path, what: Mapping[str, Any], *, config: PrepareConfig, specs: Mapping[str, Spec]
) -> Prepared | None:
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return None
    if not (output / MANIFEST).exists():
        raise DataError(
            what="output", got=f"{output}, which holds other files",
            rule="only prepared data is ever replaced", fix="give another --output",
        )  # fmt: skip
    if config.overwrite:
        return None
    prepared = Prepared.open(str(output))
    same = all(prepared.manifest.get(key) == value for key, value in what.items())
    if same and _same_content(prepared, config=config, specs=specs):
        _say(f"{output} is prepared already, from the same inputs and settings")
        return prepared
    raise DataError(
        what="output", got=f"{output}, prepared from other inputs or settings",
        rule="nothing is overwritten unasked", fix="add --overwrite=true, or give another --output",
    )  # fmt: skip


def _same_content(prepared: Prepared, *, config: PrepareConfig, specs: Mapping[str, Spec]) -> bool:
    """Whether own features and the tokenizer are as they were: their files' paths don't tell."""
    fields = {task: _fields(specs[task]) for task in prepared.tasks}
    return prepared.tokenizer_sha256 == tokenizer_hash(load_tokenizer(config.encoder)) and all(
        prepared.manifest["tasks"][task]["fields"] == json.loads(json.dumps(found))
        for task, found in fields.items()
    )


def _fields(spec: Spec) -> list[dict[str, Any]]:
    return [asdict(field) for field in spec.fields.fields]


def _build(
    root: Path, config: PrepareConfig, *, source: Source, specs: Mapping[str, Spec]
) -> dict[str, Any]:
    """Make everything but the manifest; give its "tasks" and "tokenizer"."""
    scratch = root / "scratch"
    for name in (CHECKED, REJECTED, PLANS):
        (scratch / name).mkdir(parents=True)
    tokenizer = load_tokenizer(config.encoder)
    tokenizer.save_pretrained(str(root / "tokenizer"))
    checked = _check_parts(scratch, config, parts=source.parts(config), specs=specs)
    specs = {task: specs[task] for task in specs if task in checked}
    splits = _split_tasks(checked, config, source=source, specs=specs)
    tasks = {}
    for task, spec in specs.items():
        _say(f"{task}: writing")
        tasks[task] = _write_task(
            root, checked[task], splits[task], config=config, spec=spec, task=task
        )
    shutil.rmtree(scratch)
    sha256 = tokenizer_hash(tokenizer)
    facts = {"sha256": sha256, "vocab_size": len(tokenizer), "max_length": config.max_length}
    return {"tasks": tasks, "tokenizer": facts}


# ---------------------------------------------------------------- checking


def _check_parts(
    scratch: Path, config: PrepareConfig, *, parts: Sequence[Part], specs: Mapping[str, Spec]
) -> dict[str, Checked]:
    """Check every part in parallel; gather what was found by task."""
    check = partial(check_part, parts=parts, specs=specs, scratch=scratch, tasks=config.tasks)
    found: dict[str, list[dict[str, Any]]] = {}
    results = _parallel(check, range(len(parts)), what="checking", workers=config.num_workers)
    for result in results:
        for task, facts in result["tasks"].items():
            found.setdefault(task, []).append(facts)
    if not found:
        raise DataError(
            what="tasks", got=config.tasks, rule="the source must hold at least one of them",
            fix="leave --tasks out, or name tasks of this source",
        )  # fmt: skip
    return {task: _gather(task, facts, scratch, config) for task, facts in found.items()}


def _gather(
    task: str, facts: Sequence[Mapping[str, Any]], scratch: Path, config: PrepareConfig
) -> Checked:
    rows = Shards(scratch / CHECKED, [{"path": fact["name"]} for fact in facts])
    bad: Counter[str] = sum((Counter(fact["bad"]) for fact in facts), Counter())
    aside: Counter[str] = sum((Counter(fact["aside"]) for fact in facts), Counter())
    num_rows = sum(fact["rows"] for fact in facts)
    share = bad.total() / max(num_rows - aside.total(), 1)
    if share > config.max_reject_share:
        worst = ", ".join(f"{reason} ({count})" for reason, count in bad.most_common(3))
        raise DataError(
            what=f"bad rows of {task}", got=f"{share:.1%} ({worst})",
            rule=f"at most {config.max_reject_share:.1%} may break a rule",
            fix="mend the rows, or raise --max_reject_share",
        )  # fmt: skip
    sizes = {tuple(fact["vectors"].items()) for fact in facts}
    vectors = {name: size for found in sizes for name, size in found}
    if any(vectors[name] != size for found in sizes for name, size in found):
        raise DataError(
            what=f"vectors of {task}", got=f"sizes {sorted(sizes)} in different files",
            rule="a vector field has one size", fix="mend the files",
        )  # fmt: skip
    ignored = tuple(sorted({name for fact in facts for name in fact["ignored"]}))
    if ignored:
        _say(f"{task}: no field, so not used: {', '.join(ignored)}")
    paths = tuple(scratch / REJECTED / fact["name"] for fact in facts)
    return Checked(rows, num_rows, bad, aside, ignored, vectors, paths)


# ---------------------------------------------------------------- splitting


def _split_tasks(
    checked: Mapping[str, Checked],
    config: PrepareConfig,
    *,
    source: Source,
    specs: Mapping[str, Spec],
) -> dict[str, TaskSplit]:
    """Split every task, then bar what one task holds out from the others' training."""
    splits, ways = {}, {}
    for task, spec in specs.items():
        keys = checked[task].rows.table(columns=key_columns(spec))
        settled = settle_split(config.split, defaults=source.splits.get(task, {}))
        by, reason = choose_split(spec, keys, config=settled)
        ways[task] = (by, settled)
        _say(f"{task}: split by {by}: {reason}")
        splits[task] = split_task(
            spec, keys, config=settled, seed=config.seed, max_history=config.max_history
        )
    refuse_unread(config.split, ways=ways)
    codes = bar_held_out(
        {task: split.code for task, split in splits.items()},
        {
            task: checked[task].rows.column("row_id")
            for task in splits
            if "row_id" in specs[task].fields
        },
        parts={task: split.part for task, split in splits.items()},
        holdouts=source.holdouts,
    )
    for task, code in codes.items():
        if not np.any(code == TRAIN):
            raise DataError(
                what=f"train split of {task}", got="no row", rule="needs at least one",
                fix="give more rows, or hold out smaller shares (--split.test_share)",
            )  # fmt: skip
    return {task: split._replace(code=codes[task]) for task, split in splits.items()}


# ---------------------------------------------------------------- writing


def _write_task(
    root: Path, checked: Checked, split: TaskSplit, *, config: PrepareConfig, spec: Spec, task: str
) -> dict[str, Any]:
    """Fit the features, write shards, catalogue and rejects; give the task's manifest entry."""
    (root / task).mkdir()
    (root / "scratch" / PLANS / task).mkdir()
    features = _fit(checked, split, spec=spec)
    copies = 0 if spec.has_catalogue else config.augment.copies
    writer = TaskWriter(
        root, task, spec, checked.rows, features, config.max_length, config.max_history,
        _augmenter(config) if copies else None,
    )  # fmt: skip
    keys = checked.rows.table(columns=key_columns(spec))
    catalogue = build_catalogue(keys, split) if spec.has_catalogue else None
    extra = writer.write_catalogue(split, catalogue) if catalogue is not None else {}
    layout = lay_out(
        spec, keys, split, catalogue=catalogue, max_list_size=config.max_list_size,
        seed=config.seed, copies=copies,
    )  # fmt: skip
    splits = _write_splits(writer, layout, config=config)
    aside = write_rejects(root, checked, split, task=task, shard_rows=config.shard_rows)
    own = sum(s["rows"] - s.get("augmented", {}).get("rows", 0) for s in splits.values())
    counted = own + checked.bad.total() + aside.total()
    assert counted == checked.num_rows, f"{task}: {counted} of {checked.num_rows} rows accounted"
    return {
        "rows": checked.num_rows,
        "fields_version": spec.fields.version,
        "fields": _fields(spec),
        "ignored_columns": list(checked.ignored),
        "features": features.to_json(),
        "splits": splits,
        "rejects": {"rows": checked.bad.total(), "reasons": dict(sorted(checked.bad.items()))},
        "set_aside": {"rows": aside.total(), "reasons": dict(sorted(aside.items()))},
        **extra,
    }


def _augmenter(config: PrepareConfig) -> Augmenter:
    return Augmenter(config.augment, load_synonyms(config.augment.synonyms), config.seed)


def _fit(checked: Checked, split: TaskSplit, *, spec: Spec) -> FeatureEncoder:
    names = spec.fields.names("numeric", "categorical")
    train = checked.rows.take(np.flatnonzero(split.code == TRAIN), columns=names)
    return replace(FeatureEncoder.fit(train, spec.fields), vectors=checked.vectors)


def _write_splits(
    writer: TaskWriter, layout: Mapping[str, pa.Table], *, config: PrepareConfig
) -> dict[str, Any]:
    """Write all shards of a task in parallel; give the manifest's facts of each split."""
    names: dict[str, list[str]] = {split: [] for split in layout}
    for split, plan in layout.items():
        for number, start in enumerate(range(0, plan.num_rows, config.shard_rows)):
            names[split].append(f"{split}-{number:05d}.arrow")
            writer.write_plan(names[split][-1], plan.slice(start, config.shard_rows))
    every = [name for split in layout for name in names[split]]
    write = partial(writer.write_split, names=every)
    made = _parallel(write, range(len(every)), what=writer.task, workers=config.num_workers)
    splits: dict[str, Any] = {}
    groups = writer.spec.fields.name_of("group")
    for split, plan in layout.items():
        own = [found for name, found in zip(every, made, strict=True) if name in names[split]]
        splits[split] = {
            "rows": plan.num_rows,
            "groups": _num_distinct(writer.rows, groups, plan["row"]) if groups else 0,
            "tokens": sum(found["tokens"] for found in own),
            "files": [found["file"] for found in own],
        }
        if changes := sum((Counter(found["augmented"]) for found in own), Counter[str]()):
            splits[split]["augmented"] = dict(changes)
    return splits


def _num_distinct(rows: Shards, column: str, taken: pa.ChunkedArray) -> int:
    return int(pc.count_distinct(rows.column(column).take(taken)).as_py())


# ---------------------------------------------------------------- Ray Data


def _parallel(
    function: Callable[[int], dict[str, Any]],
    numbers: Sequence[int],
    *,
    what: str,
    workers: int | None,
) -> list[dict[str, Any]]:
    """Call function(number) for each number on Ray Data; results in the order of the numbers.

    Each result holds "rows", for the progress line.

    Raises:
        RectrainError: the first user's mistake that a call raised.
    """
    connect()  # this late, so that mistakes in settings show at once
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    pool = ray.data.TaskPoolStrategy(size=min(workers or len(numbers), len(numbers)))
    dataset = ray.data.from_items(
        [{"number": number} for number in numbers], override_num_blocks=len(numbers)
    ).map(partial(_call, function=function), compute=pool)
    results: dict[int, dict[str, Any]] = {}
    start, rows = time.monotonic(), 0
    for answer in dataset.iter_rows():
        if answer["mistake"]:
            raise cast(RectrainError, pickle.loads(answer["mistake"]))
        result = json.loads(answer["result"])
        results[answer["number"]] = result
        rows += result["rows"]
        seconds = time.monotonic() - start
        left = seconds / len(results) * (len(numbers) - len(results))
        _say(
            f"{what}: {len(results)}/{len(numbers)} parts, {rows:,} rows, "
            f"{rows / max(seconds, 1e-9):,.0f} rows/s, {left:.0f} s left"
        )
    return [results[number] for number in numbers]


def _call(row: dict[str, Any], *, function: Callable[[int], dict[str, Any]]) -> dict[str, Any]:
    """A user's mistake travels as a value: Ray would wrap and log it, and try again."""
    answer = {"number": row["number"], "result": "", "mistake": b""}
    try:
        answer["result"] = json.dumps(function(row["number"]))
    except RectrainError as mistake:
        answer["mistake"] = pickle.dumps(mistake)
    return answer


def _say(line: str) -> None:
    print(f"prepare: {line}", file=sys.stderr, flush=True)


def plan(config: PrepareConfig, *, specs: Mapping[str, Spec]) -> str:
    """What `prepare` would do: the source's first part is read and its columns are checked.

    Raises:
        RectrainError: an input or a setting is wrong.
    """
    load_tokenizer(config.encoder)
    _augmenter(config)
    source = find_source(config.source)
    parts = source.parts(config)
    lines, ways = [f"parts: {len(parts)}"], {}
    for task, table in parts[0]().items():
        if config.tasks is not None and task not in config.tasks:
            continue
        spec = find_spec(task, specs)
        fields = spec.fields
        fields.check_columns(table.schema)
        missing = [name for name in fields.names() if name not in table.column_names]
        split = settle_split(config.split, defaults=source.splits.get(task, {}))
        by, reason = choose_split(spec, _keys(spec, table), config=split)
        ways[task] = (by, split)
        lines += [
            f"{task}: {table.num_rows:,} rows in the first part",
            f"  not given: {', '.join(missing) or 'none'}",
            f"  split: by {by}: {reason}{_held_out(split, by=by)}",
        ]
    if len(parts) == 1:  # others may hold other tasks
        refuse_unread(config.split, ways=ways)
    return "\n".join(lines)


def _keys(spec: Spec, table: pa.Table) -> pa.Table:
    """The key columns of a source's table, null where it lacks them."""
    return pa.table(
        {
            name: table[name] if name in table.column_names else pa.nulls(table.num_rows)
            for name in key_columns(spec)
        }
    )


def _held_out(split: SplitConfig, *, by: str) -> str:
    if by in ("rows", "baskets"):
        return ""
    if by == "group" and split.fold is not None:
        return f"; part {split.fold} of {split.num_folds} is test, the next one validation"
    held = [
        f"{name} from {start:%Y-%m-%d %H:%M} UTC" if by == "time" and start else f"{name} {share:g}"
        for name, start, share in (
            ("validation", split.validation_start, split.validation_share),
            ("test", split.test_start, split.test_share),
        )
    ]
    gap = [f"a gap of {split.gap_days:g} days"] if by == "time" and split.gap_days else []
    return f"; {', '.join([*held, *gap])}"
