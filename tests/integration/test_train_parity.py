"""N workers do what one does, at every ZeRO stage, and both do what plain torch does."""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torchjd.aggregation import CAGradWeighting, PCGradWeighting
from train_toy import TASKS, ToyModel, run_group, toy_micro_batch

from rectrain.train.config import TrainConfig

if TYPE_CHECKING:
    from rectrain.model.multitask import MultiTaskModel

NUM_STEPS, NUM_MICRO_BATCHES, SEED = 20, 2, 3
CASES = [
    *itertools.product((0, 1, 2, 3), ("static", "uncertainty", "dwa")),
    *itertools.product((0, 1, 2), ("pcgrad", "cagrad", "upgrad")),
]
# (stage, balancer, sharing) of the multi-task model itself.
REAL = [
    (0, "pcgrad", "gated_experts"),
    (1, "cagrad", "mmoe"),
    (2, "upgrad", "ple"),
    (3, "uncertainty", "shared_bottom"),
    (3, "dwa", "gated_experts"),
    (3, "static", "mmoe"),
    (3, "static", "ple"),
]
# (stage, balancer, sharing) of a run with a teacher.
TAUGHT = [
    (0, "pcgrad", "shared_bottom"),
    (1, "static", "shared_bottom"),
    (2, "uncertainty", "gated_experts"),
    (3, "static", "mmoe"),
]
ELASTIC = (0, 1, 2)  # stages at which a super-network trains
OFFLOADED = [(1, "optimizer"), (2, "optimizer"), (3, "optimizer"), (3, "all")]
# Settings of the optimizer, and the stage that they run at.
CRAFT: dict[str, dict[str, Any]] = {
    "adafactor": {"optimizer": "adafactor", "zero_stage": 0},
    "l2 whole": {"decay": "l2", "zero_stage": 0},
    "l2 split": {"decay": "l2", "zero_stage": 2},
    "l2 in pieces": {"decay": "l2", "zero_stage": 3},
}
MODEL_ROWS = Path(__file__).parents[1] / "model_toy.py"
Weights = dict[str, NDArray[np.float32]]


def _settings(stage: int, offload: str = "none") -> TrainConfig:
    return TrainConfig(
        num_steps=NUM_STEPS,
        zero_stage=stage,
        offload=offload,
        learning_rate=3e-3,
        head_learning_rate=1e-2,
        weight_decay=0.1,
        max_grad_norm=0.5,
        stage3_persistence_threshold=0,
    )


def _model(balancer: str, dropout: float = 0.0) -> ToyModel:
    torch.manual_seed(SEED)
    return ToyModel(balancer=balancer, dropout=dropout)


def _train(
    rank: int,
    train: TrainConfig,
    balancer: str,
    dropout: float = 0.0,
    num_micro_batches: int = NUM_MICRO_BATCHES,
) -> tuple[Weights, Any]:
    return _train_model(
        rank,
        _model(balancer, dropout),
        train=train.model_copy(update={"num_micro_batches": num_micro_batches}),
        batch=partial(toy_micro_batch, num_micro_batches=num_micro_batches),
        tasks=list(TASKS),
    )


def _train_model(
    rank: int,
    model: torch.nn.Module,
    *,
    train: TrainConfig,
    batch: Callable[[int, int], Any],
    tasks: list[str],
) -> tuple[Weights, Any]:
    from rectrain.train.checkpoint import _owned_tensors
    from rectrain.train.step import (
        build_engine,
        gradient_norm,
        learning_rate_share,
        num_accumulations,
        train_step,
    )

    world_size = torch.distributed.get_world_size()
    places = num_accumulations(train.micro_batches, world_size=world_size)
    engine = build_engine(model, train=train, hidden_size=37, num_accumulations=places)
    curve = []
    num_steps = train.num_steps or 0
    for step in range(num_steps):
        share = learning_rate_share(step, num_steps=num_steps, warmup_share=train.warmup_share)
        batches = [batch(step, a * world_size + rank) for a in range(places)]
        result = train_step(
            engine,
            batches,
            step=step,
            seed=SEED,
            learning_rate_share=share,
            tasks=tasks,
            gradient_place=train.balancer_gradients,
        )
        torch.distributed.all_reduce(result.losses)
        norm = gradient_norm(engine)
        curve.append([*result.losses.tolist(), *result.weights.tolist(), norm])
    state = {
        f"{kind}/{name}": t.detach().numpy().copy() for _, kind, name, t in _owned_tensors(engine)
    }
    return state, curve


def _model_rows() -> Any:
    """The module of made-up rows that the model's unit tests have."""
    rows = importlib.util.spec_from_file_location("model_rows", MODEL_ROWS)
    assert rows and rows.loader
    made = importlib.util.module_from_spec(rows)
    rows.loader.exec_module(made)
    return made


def _real_batches(made: Any) -> Callable[[int, int], Any]:
    """Step and place -> a ragged batch of all tasks, one of them empty."""
    from rectrain.data.batch import build_micro_batch
    from rectrain.tasks import TASKS as REAL

    sizes = [{t: 3 * ((m + n) % 3) for n, t in enumerate(REAL)} for m in range(NUM_MICRO_BATCHES)]
    counts = {task: max(1, sum(size[task] for size in sizes)) for task in REAL}

    def batch(step: int, place: int) -> Any:
        tables = {
            task: made._table(spec, sizes[place][task], seed=100 * step + 10 * place + number)
            for number, (task, spec) in enumerate(REAL.items())
        }
        return build_micro_batch(tables, counts=counts)

    return batch


def _real_model(
    made: Any, balancer: Any, sharing: Any, *, is_taught: bool, is_elastic: bool
) -> MultiTaskModel:
    from rectrain.model.config import ModelConfig
    from rectrain.model.elastic import Choices, Elastic, SuperNetwork
    from rectrain.model.encoder import load_encoder
    from rectrain.model.multitask import Distillation, MultiTaskModel
    from rectrain.tasks import TASKS as REAL

    def build(seed: int) -> MultiTaskModel:
        kind = SuperNetwork if is_elastic else MultiTaskModel
        return kind(
            load_encoder("tiny", vocab_size=made._VOCAB_SIZE, dropout=0.1, seed=seed),
            tasks=REAL,
            features=dict.fromkeys(REAL, made._FEATURES),
            config=ModelConfig(encoder="tiny", dropout=0.1, sharing=sharing, expert_width=24),
            balancer=balancer,
            seed=seed,
        )

    model = build(SEED)
    if is_taught:
        model.distillation = Distillation(
            teacher=build(SEED + 1).requires_grad_(False).eval(),
            weight=0.7,
            temperature=2.0,
            relation=1.0,
            num_micro_batches=NUM_MICRO_BATCHES,
        )
    if isinstance(model, SuperNetwork):
        choices = Choices.of(model.encoder.config, layers=[1], heads=[1], intermediate=[64, 200])
        model.elastic = Elastic(
            choices=choices, num_random=2, weight=0.7, temperature=2.0, relation=1.0,
            num_micro_batches=NUM_MICRO_BATCHES,
        )  # fmt: skip
    return model


def _train_real(
    rank: int,
    stage: int,
    balancer: Any,
    sharing: Any,
    *,
    is_taught: bool = False,
    is_elastic: bool = False,
    **more: Any,
) -> tuple[Weights, Any]:
    """The multi-task model itself, on ragged batches of all tasks, one of them empty."""
    from rectrain.tasks import TASKS as REAL

    made = _model_rows()
    model = _real_model(made, balancer, sharing, is_taught=is_taught, is_elastic=is_elastic)
    batch = _real_batches(made)
    changes = {"num_steps": 10, "learning_rate": 1e-3, "num_micro_batches": NUM_MICRO_BATCHES}
    train = _settings(stage).model_copy(update=changes | more)
    state, curve = _train_model(rank, model, train=train, batch=batch, tasks=list(REAL))
    # Softmax ignores a bias of the keys: its gradient is rounding alone, which Adam makes large.
    kept = {
        name: tensor
        for name, tensor in state.items()
        if name.startswith("model/") and not name.endswith("attention.self.key.bias")
    }
    return kept, curve


def _train_in_pieces(rank: int, stage: int) -> tuple[tuple[Weights, Any], int]:
    """The same, but ZeRO gathers few weights at a time; also the number of gathers."""
    import deepspeed.comm

    from rectrain.train import zero

    gather, num_gathers = deepspeed.comm.all_gather, 0

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal num_gathers
        num_gathers += 1
        return gather(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(zero, "_GLOO_GATHER_ELEMENTS", 64)
        patch.setattr(deepspeed.comm, "all_gather", counted)
        return _train(rank, _settings(stage), "static"), num_gathers


def _all_cases(rank: int) -> dict[Any, Any]:
    results: dict[Any, Any] = {}
    for stage, balancer in CASES:
        results[stage, balancer] = _train(rank, _settings(stage), balancer)
    for stage, offload in OFFLOADED:
        results[stage, offload] = _train(rank, _settings(stage, offload), "static")
    for case in REAL:
        results[case] = _train_real(rank, *case)
    for case in TAUGHT:
        results["taught", case] = _train_real(rank, *case, is_taught=True)
    for stage in ELASTIC:
        results["elastic", stage] = _train_real(
            rank, stage, "static", "shared_bottom", is_elastic=True
        )
    results["untaught"] = _train_real(rank, *TAUGHT[1])
    for name, changes in CRAFT.items():
        results[name] = _train(rank, _settings(2).model_copy(update=changes), "static")
    results["layers"] = _train_real(rank, 2, "static", "shared_bottom", layer_decay=0.7)
    for stage in (1, 2):
        results["pieces", stage] = _train_in_pieces(rank, stage)
    results["dropout"] = _train(rank, _settings(2), "static", 0.3)
    whole = _settings(2).model_copy(update={"balancer_gradients": "encoder"})
    results["whole encoder"] = _train(rank, whole, "upgrad", 0.3, num_micro_batches=3)
    return results


@pytest.fixture(scope="module")
def one_worker() -> dict[Any, Any]:
    return run_group(_all_cases, world_size=1, timeout_s=400)


@pytest.fixture(scope="module")
def two_workers() -> dict[Any, Any]:
    return run_group(_all_cases, world_size=2, timeout_s=400)


# torchjd's own solvers, but for UPGrad, whose problem scipy solves in another way than ours.
PLAIN_WEIGHTS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "pcgrad": lambda gramian: PCGradWeighting()(gramian),
    "cagrad": lambda gramian: 3 * CAGradWeighting(c=0.5)(gramian),
    "upgrad": lambda gramian: _plain_upgrad(gramian + 1e-4 * torch.eye(3)),
}


def _plain_upgrad(gramian: torch.Tensor) -> torch.Tensor:
    """The sum over tasks i of the least vᵀGv with v at least row i of the identity."""
    rows = []
    for bound in np.eye(3):
        free = itertools.chain.from_iterable(itertools.combinations(range(3), n) for n in range(4))
        best, least = bound, np.inf
        for places in map(list, free):  # the places where v is above its bound
            v = bound.copy()
            others = [place for place in range(3) if place not in places]
            g = gramian.numpy()
            v[places] = -np.linalg.solve(
                g[np.ix_(places, places)], g[np.ix_(places, others)] @ v[others]
            )
            if (v >= bound - 1e-12).all() and v @ g @ v < least:
                best, least = v, v @ g @ v
        rows.append(best)
    return torch.tensor(np.sum(rows, 0))


def _plain_losses(model: ToyModel, step: int) -> torch.Tensor:
    """Each task's loss in the whole step, with its graph."""
    held: list[torch.Tensor] = []
    for place in range(NUM_MICRO_BATCHES):
        model(
            toy_micro_batch(step, place, num_micro_batches=NUM_MICRO_BATCHES),
            balance=lambda losses: (held.append(losses), losses.sum())[1],
        )
    return torch.stack(held).sum(0)


def _plain_weights(model: ToyModel, losses: torch.Tensor, balancer: str, step: int) -> torch.Tensor:
    from rectrain.train.step import dropout_seed

    last = [*model.encoder[4].parameters(), *model.encoder[5].parameters()]
    w = torch.tensor([1.0, 2.0, 1.0])
    rows = [
        torch.cat([g.flatten() for g in torch.autograd.grad(loss, last, retain_graph=True)])
        for loss in w * losses
    ]
    gramian = torch.stack(rows).double() @ torch.stack(rows).double().T
    if not gramian.any():
        return w
    torch.manual_seed(dropout_seed(SEED, step=step, micro_batch=-1))
    return w * PLAIN_WEIGHTS[balancer](gramian / gramian.diagonal().mean()).float()


def _plain_torch(balancer: str, **changes: Any) -> tuple[Weights, list[list[float]]]:
    from transformers.optimization import Adafactor

    from rectrain.train.step import learning_rate_share, parameter_groups

    train = _settings(0).model_copy(update=changes)
    model = _model(balancer)
    groups = parameter_groups(model, train=train)
    optimizer: Any
    if train.optimizer == "adafactor":
        optimizer = Adafactor(groups, scale_parameter=False, relative_step=False)
    elif train.decay == "l2":
        optimizer = torch.optim.Adam(groups)
    else:
        optimizer = torch.optim.AdamW(groups)
    curve = []
    for step in range(NUM_STEPS):
        share = learning_rate_share(step, num_steps=NUM_STEPS, warmup_share=train.warmup_share)
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * share
        losses = _plain_losses(model, step)
        model.balancer(losses, num_shares=1).backward(retain_graph=True)
        weights = model.balancer.applied
        if balancer in PLAIN_WEIGHTS:  # the heads keep their fixed weights
            weights = _plain_weights(model, losses, balancer, step)
            encoder = list(model.encoder.parameters())
            gradients = torch.autograd.grad((weights * losses).sum(), encoder)
            for parameter, gradient in zip(encoder, gradients, strict=True):
                parameter.grad = gradient
        if balancer == "dwa":
            model.balancer.observe(losses.detach())
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), train.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        curve.append([*losses.tolist(), *weights.tolist(), norm.item()])
    return {f"model/{name}": p.detach().numpy() for name, p in model.named_parameters()}, curve


def _assert_close(got: tuple[Weights, Any], expected: tuple[Weights, Any]) -> None:
    for name, tensor in expected[0].items():
        gap = np.linalg.norm(got[0][name] - tensor) / max(np.linalg.norm(tensor), 1e-12)
        assert gap <= 1e-5, f"{name}: relative L2 {gap:.2e}"
    torch.testing.assert_close(
        torch.tensor(got[1]), torch.tensor(expected[1]), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize(("stage", "balancer"), CASES)
def test_one_worker_equals_plain_torch(one_worker: Any, stage: int, balancer: str) -> None:
    _assert_close(one_worker[stage, balancer], _plain_torch(balancer))


@pytest.mark.parametrize(("stage", "balancer"), CASES)
def test_two_workers_equal_one(
    one_worker: Any, two_workers: Any, stage: int, balancer: str
) -> None:
    _assert_close(two_workers[stage, balancer], one_worker[stage, balancer])


@pytest.mark.parametrize("name", CRAFT)
def test_other_optimizers_equal_plain_torch_on_any_number_of_workers(
    one_worker: Any, two_workers: Any, name: str
) -> None:
    _assert_close(one_worker[name], _plain_torch("static", **CRAFT[name]))
    _assert_close(two_workers[name], one_worker[name])


def test_layers_of_their_own_rates_on_any_number_of_workers(
    one_worker: Any, two_workers: Any
) -> None:
    _assert_close(two_workers["layers"], one_worker["layers"])


@pytest.mark.parametrize("case", REAL)
def test_two_workers_equal_one_with_the_real_model(
    one_worker: Any, two_workers: Any, case: Any
) -> None:
    _assert_close(two_workers[case], one_worker[case])
    assert any("word_embeddings" in name for name in one_worker[case][0])


@pytest.mark.parametrize("case", TAUGHT)
def test_two_workers_learn_of_a_teacher_as_one_does(
    one_worker: Any, two_workers: Any, case: Any
) -> None:
    _assert_close(two_workers["taught", case], one_worker["taught", case])


@pytest.mark.parametrize("stage", ELASTIC)
def test_two_workers_train_a_super_network_as_one_does(
    one_worker: Any, two_workers: Any, stage: int
) -> None:
    _assert_close(two_workers["elastic", stage], one_worker["elastic", stage])
    _assert_close(one_worker["elastic", stage], one_worker["elastic", 0])
    assert one_worker["elastic", stage][1] != one_worker["untaught"][1]


def test_a_teacher_changes_what_is_learned_and_nothing_that_is_kept(one_worker: Any) -> None:
    (taught, curve), (untaught, expected) = one_worker["taught", TAUGHT[1]], one_worker["untaught"]
    assert taught.keys() == untaught.keys()
    assert curve != expected


def test_gradients_of_the_whole_encoder_and_an_empty_micro_batch(
    one_worker: Any, two_workers: Any
) -> None:
    _assert_close(two_workers["whole encoder"], one_worker["whole encoder"])


@pytest.mark.parametrize("balancer", ["dwa", "pcgrad", "cagrad", "upgrad"])
def test_weights_follow_the_step(one_worker: Any, balancer: str) -> None:
    weights = np.array(one_worker[2, balancer][1])[:, len(TASKS) : -1]
    assert (np.abs(weights - [1.0, 2.0, 1.0]).max(1) > 1e-3).sum() >= 3


@pytest.mark.parametrize(("stage", "offload"), OFFLOADED)
def test_offload_changes_nothing(
    one_worker: Any, two_workers: Any, stage: int, offload: str
) -> None:
    for results in (one_worker, two_workers):
        _assert_close(results[stage, offload], one_worker[stage, "static"])


@pytest.mark.parametrize("stage", [1, 2])
def test_gathering_in_pieces_gives_the_same_bits(two_workers: Any, stage: int) -> None:
    """Of the encoder's matrices, 1850 elements, 28 pieces a step; and of each other group some."""
    (weights, curve), num_gathers = two_workers["pieces", stage]
    expected, expected_curve = two_workers[stage, "static"]
    assert num_gathers >= 28 * NUM_STEPS
    assert curve == expected_curve
    assert not [name for name in expected if not np.array_equal(weights[name], expected[name])]


def test_dropout_is_the_same_at_every_world_size(one_worker: Any, two_workers: Any) -> None:
    _assert_close(two_workers["dropout"], one_worker["dropout"])
    assert one_worker["dropout"][1] != one_worker[2, "static"][1]
