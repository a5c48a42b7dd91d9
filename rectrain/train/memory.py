"""What a worker's memory must hold, and the most tokens of a micro-batch that it can."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from pathlib import Path

import psutil

from rectrain.data.loader import catalogues, longest_text
from rectrain.data.plan import Plan
from rectrain.data.shards import Prepared
from rectrain.errors import ResourceError
from rectrain.model.adapters import adapted_width
from rectrain.model.multitask import MultiTaskModel
from rectrain.train.build import Model
from rectrain.train.config import PretrainConfig, RunConfig
from rectrain.train.frozen import cached_texts, fixed_models
from rectrain.train.run_plan import plan_run, with_micro_batch
from rectrain.train.step import factored_elements, model_facts
from rectrain.train.zero import bucket_elements, state_bytes

__all__ = [
    "FEWEST_TOKENS",
    "PROCESS_BYTES",
    "activation_bytes",
    "free_bytes",
    "largest_micro_batch",
    "worker_bytes",
]

FEWEST_TOKENS = 16  # what `data.tokens_per_micro_batch` allows
PROCESS_BYTES = 600 << 20  # Python, torch, DeepSpeed and Ray, measured on Linux
_PAIR_VALUES = 5  # of a user and an item: logit, corrected, masked, its softmax; masks' bytes
_SOFT_VALUES = 12  # with a teacher, too: softened ones of both (7), their gap and its product (5)
_LOGITS = 3  # a masked piece's logits, their softmax, and the gradient
_USED_SHARE = 0.8  # the rest is for what no bound counts: heads, gaps, rows read ahead
_CGROUP = Path("/sys/fs/cgroup")


def activation_bytes(
    *,
    num_tokens: int,
    hidden_size: int,
    num_layers: int,
    max_length: int,
    num_heads: int,
    activation_checkpointing: bool = False,
    dropped_width: int = 0,
) -> int:
    """An upper bound of what a forward and its backward pass hold besides weights, in fp32 bytes.

    A layer keeps 34 bytes a token and hidden unit, and 5 a head and pair of tokens in attention
    (Korthikanti et al., 2022, equation 1, with 2 bytes a value): 17 and 2.5 values. On a CPU it is
    23 and 2.5, as measured at 4 and 12 layers: dropout's masks are floats there, attention copies
    its inputs by length of text, and freed pieces are not all used again. Gradients on their way
    take what a layer keeps, once; the embeddings keep three values. Not counted: the heads.

    Args:
        num_tokens: of all texts together.
        hidden_size: of the encoder.
        num_layers: of the encoder.
        max_length: tokens of a text, at most.
        num_heads: of attention.
        activation_checkpointing: layers keep little but their inputs, and compute again one by
            one; 6 values a token and hidden unit, measured likewise.
        dropped_width: inputs of a layer's adapters together, where they have dropout: each keeps a
            mask and what is left.
    """
    per_layer = 23 * num_tokens * hidden_size + 5 * num_heads * num_tokens * max_length // 2
    per_layer += 2 * num_tokens * dropped_width
    num_whole, kept = (1, 6 * num_layers) if activation_checkpointing else (num_layers, 0)
    return 4 * ((num_whole + 1) * per_layer + (kept + 3) * num_tokens * hidden_size)


def worker_bytes(
    config: RunConfig, data: Mapping[str, Prepared], *, model: Model, plan: Plan, num_workers: int
) -> dict[str, int]:
    """Bytes that one of the workers holds besides its process, by kind; activations at most.

    Args:
        config: of the run.
        data: task -> its prepared data.
        model: whole, as the run starts it.
        plan: of the run, which knows its largest micro-batch.
        num_workers: over which ZeRO splits.
    """
    fixed = _fixed_bytes(config, data, model=model, num_workers=num_workers)
    return fixed | _forward_bytes(config, data, model=model, plan=plan)


def _fixed_bytes(
    config: RunConfig, data: Mapping[str, Prepared], *, model: Model, num_workers: int
) -> dict[str, int]:
    """What does not depend on the size of a micro-batch."""
    train = config.train
    facts = model_facts(model, hidden_size=model.encoder.config.hidden_size)
    held = state_bytes(facts.num_parameters, zero_stage=train.zero_stage, world_size=num_workers)
    if train.optimizer == "adafactor":
        held["optimizer"] = 4 * factored_elements(model)
    held["bucket"] = 4 * bucket_elements(facts) if train.zero_stage > 0 else 0
    if train.adapter != "none":
        frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
        held["frozen"] = 4 * frozen // (num_workers if train.zero_stage == 3 else 1)
    if train.freeze == "encoder":
        held["frozen encoder"] = 4 * model.encoder.num_parameters()
    if isinstance(model, MultiTaskModel) and model.distillation is not None:
        teacher = model.distillation.teacher
        held["teacher"] = 4 * sum(p.numel() for p in teacher.parameters())
    if fixed := fixed_models(model):
        widths = [int(one.encoder.config.hidden_size) for one in fixed]
        held["vectors"] = cached_texts(config, data, widths=widths).num_bytes
    return held


def _forward_bytes(
    config: RunConfig, data: Mapping[str, Prepared], *, model: Model, plan: Plan
) -> dict[str, int]:
    """What grows with a micro-batch."""
    train, bert = config.train, model.encoder.config
    items = {
        task: table.column("num_tokens").to_numpy() for task, table in catalogues(data).items()
    }
    num_tokens = plan.most_tokens(item_tokens=items)
    held = {}
    # Of a super-network the largest, the smallest and random ones, none larger than the first.
    num_forwards = 2 + train.elastic_random if train.is_elastic else 1
    if train.freeze == "none":
        held["activations, at most"] = num_forwards * activation_bytes(
            num_tokens=num_tokens,
            hidden_size=bert.hidden_size,
            num_layers=bert.num_hidden_layers,
            max_length=longest_text(data),
            num_heads=bert.num_attention_heads,
            activation_checkpointing=train.activation_checkpointing,
            dropped_width=adapted_width(model.encoder) // bert.num_hidden_layers
            if train.adapter_dropout > 0
            else 0,
        )
    if items:
        num_values = _PAIR_VALUES + (0 if train.teacher is None else _SOFT_VALUES)
        num_values += (num_forwards - 1) * (_PAIR_VALUES + _SOFT_VALUES)
        held["logits"] = (
            4
            * num_values
            * sum(
                _num_pairs(
                    plan.most_rows(task), num_drawn=min(config.data.num_negatives, len(tokens))
                )
                for task, tokens in items.items()
            )
        )
    if isinstance(config, PretrainConfig):
        held["guesses"] = int(_LOGITS * 4 * config.mask_share * num_tokens * bert.vocab_size)
    return held


def _num_pairs(num_rows: int, *, num_drawn: int) -> int:
    """Of each row with each item of a two-tower loss, its own and the drawn ones."""
    return num_rows * (num_rows + num_drawn)


def largest_micro_batch(
    config: RunConfig, data: Mapping[str, Prepared], *, model: Model, memory_bytes: int
) -> int:
    """The most `data.tokens_per_micro_batch` of which `worker_bytes` fit into a worker's memory.

    Args:
        config: of the run; an elastic one must fit its fewest workers.
        data: task -> its prepared data.
        model: whole, as the run starts it.
        memory_bytes: what a worker may take, of which a fifth is left to what isn't counted.

    Raises:
        ResourceError: the smallest micro-batch doesn't fit.
    """
    first, fewest = with_micro_batch(config, FEWEST_TOKENS), config.train.min_workers
    smallest = plan_run(first, data).plan
    fixed = sum(_fixed_bytes(first, data, model=model, num_workers=fewest).values())

    def needed(tokens: int) -> int:
        plan = smallest.resized(tokens)
        return fixed + sum(_forward_bytes(first, data, model=model, plan=plan).values())

    most = sum(int(prepared.splits(task)["train"]["tokens"]) for task, prepared in data.items())
    choices = range(FEWEST_TOKENS, max(FEWEST_TOKENS, most) + 1)
    num_fitting = bisect_right(choices, int(_USED_SHARE * memory_bytes), key=needed)
    if num_fitting == 0:
        raise ResourceError(
            what="data.tokens_per_micro_batch",
            got=f"auto with {memory_bytes >> 20:,} MiB free for a worker",
            rule=f"a worker needs {int(needed(FEWEST_TOKENS) / _USED_SHARE) >> 20:,} MiB at least",
            fix="free memory, take fewer workers on this machine, or a higher train.zero_stage",
        )
    return choices[num_fitting - 1]


def free_bytes(*, num_workers: int, cgroup: Path = _CGROUP) -> int:
    """Memory that one worker may take: on its GPU, or of this machine's, shared by all of them.

    Args:
        num_workers: that run on this machine if it has no GPU.
        cgroup: of the container, whose limit can be below the machine's.
    """
    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.mem_get_info()[0]) - PROCESS_BYTES
    free = psutil.virtual_memory().available
    limit = cgroup / "memory.max"
    if limit.exists() and (text := limit.read_text().strip()) != "max":
        free = min(free, int(text) - int((cgroup / "memory.current").read_text()))
    return int(free) // num_workers - PROCESS_BYTES
