"""The model of pre-training: BERT's own head and loss, and a micro-batch that may be empty."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pretrain_toy import VOCABULARY, random_texts, write_texts
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from transformers import BertForMaskedLM

from rectrain.data.batch import MicroBatch, PackedTexts, build_micro_batch
from rectrain.data.config import DataConfig
from rectrain.data.loader import Loader, empty_tables, open_tasks, plan_training
from rectrain.data.texts import MLM, TextCorpus
from rectrain.data.tokenize import load_tokenizer, word_pieces
from rectrain.model.encoder import load_encoder
from rectrain.model.masked import MaskedLanguageModel
from rectrain.model.masking import MaskedTexts, WordMasks, fixed_draws
from rectrain.train.step import dropout_seed

NUM_MICRO_BATCHES, SEED = 5, 7


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> TextCorpus:
    root = tmp_path_factory.mktemp("texts") / "data"
    return TextCorpus(open_tasks([str(write_texts(root, train=random_texts(80, seed=1)))]))


@pytest.fixture
def model(corpus: TextCorpus) -> MaskedLanguageModel:
    encoder = load_encoder("tiny", vocab_size=len(VOCABULARY), dropout=0.0, seed=SEED)
    pieces = word_pieces(load_tokenizer(corpus.tokenizer_path))
    return MaskedLanguageModel(encoder, pieces=pieces, share=0.3, seed=SEED)


def batches(corpus: TextCorpus, *, rank: int = 0, world_size: int = 1) -> Loader:
    rows = {MLM: corpus.shards(MLM, "train")}
    config = DataConfig(tokens_per_micro_batch=60)
    plan = plan_training(rows, config=config, seed=SEED, num_micro_batches=NUM_MICRO_BATCHES)
    return Loader(rows, plan=plan, num_steps=3, rank=rank, world_size=world_size)


def first(corpus: TextCorpus) -> MicroBatch:
    with batches(corpus) as loader:
        return next(loader)[1][0]


def hugging_face(model: MaskedLanguageModel, masked: MaskedTexts) -> tuple[BertForMaskedLM, Any]:
    """BertForMaskedLM with the same weights; its logits of the masked places, padded inside."""
    config = model.encoder.config
    theirs: Any = BertForMaskedLM(config).eval()
    theirs.bert.load_state_dict(model.encoder.state_dict())
    theirs.cls.predictions.transform.load_state_dict(model.transform.state_dict())
    with torch.no_grad():
        theirs.cls.predictions.bias.copy_(model.bias)
        theirs.cls.predictions.decoder.bias.copy_(model.bias)
    lengths = masked.texts.lengths
    ids = pad_sequence(list(masked.texts.input_ids.split(lengths.tolist())), batch_first=True)
    real = torch.arange(ids.shape[1]) < lengths[:, None]
    logits = theirs(input_ids=ids, attention_mask=real.long()).logits[real]
    return theirs, logits[masked.places]


def test_loss_and_gradients_are_those_of_hugging_faces_bert(
    corpus: TextCorpus, model: MaskedLanguageModel
) -> None:
    with torch.no_grad():
        model.bias.normal_()
    batch = first(corpus)
    torch.manual_seed(3)
    loss, parts = model(batch, scale=2.0, num_shares=4)
    loss.backward()
    torch.manual_seed(3)
    masked = model.masks.hide(
        batch.texts, torch.rand(len(batch.texts.input_ids), 3, dtype=torch.float64)
    )
    assert len(masked.places) > 5
    theirs, logits = hugging_face(model, masked)
    expected = cross_entropy(logits, masked.labels, reduction="sum") / (0.3 * batch.slots[0].count)
    torch.testing.assert_close(parts[MLM], expected.detach(), rtol=1e-5, atol=1e-5)
    (2.0 * expected).backward()
    ours, tied = dict(model.encoder.named_parameters()), theirs.cls.predictions
    for name, parameter in theirs.bert.named_parameters():
        torch.testing.assert_close(ours[name].grad, parameter.grad, rtol=1e-4, atol=1e-5)
    assert tied.decoder.weight is theirs.bert.embeddings.word_embeddings.weight
    dense = model.transform.dense.weight.grad
    torch.testing.assert_close(dense, tied.transform.dense.weight.grad, rtol=1e-4, atol=1e-5)


def test_validation_scores_each_row_by_fixed_masks(
    corpus: TextCorpus, model: MaskedLanguageModel
) -> None:
    batch = first(corpus)
    with torch.no_grad():
        sums, counts = model.eval()(batch, mode="score")[MLM]
        again = model(batch, mode="score")[MLM]
        masked = model.masks.hide(batch.texts, fixed_draws(batch.texts))
        _, logits = hugging_face(model, masked)
    assert torch.equal(sums, again[0]) and torch.equal(counts, again[1])
    each = cross_entropy(logits, masked.labels, reduction="none")
    ends = batch.texts.lengths.cumsum(0)
    for row, text in enumerate(batch.slots[0].item.index.tolist()):
        begin, end = ends[text] - batch.texts.lengths[text], ends[text]
        inside = (masked.places >= begin) & (masked.places < end)
        assert counts[row] == inside.sum()
        torch.testing.assert_close(sums[row], each[inside].sum(), rtol=1e-5, atol=1e-5)


def test_an_empty_micro_batch_reaches_every_parameter_with_zero(
    corpus: TextCorpus, model: MaskedLanguageModel
) -> None:
    features = {MLM: corpus.features(MLM)}
    empty = build_micro_batch(empty_tables(features), counts={MLM: 40})
    loss, parts = model(empty)
    loss.backward()
    assert parts[MLM] == 0
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())
    sums, counts = model(empty, mode="score")[MLM]
    assert len(sums) == len(counts) == 0


def masks_of(
    corpus: TextCorpus,
    model: MaskedLanguageModel,
    world_size: int,
    monkeypatch: pytest.MonkeyPatch,
) -> dict[Any, Any]:
    """(step, micro-batch) -> what is shown and guessed, as the workers of a run would see it."""
    seen = {}
    masked: list[MaskedTexts] = []
    hide = WordMasks.hide

    def watched(masks: WordMasks, texts: PackedTexts, draws: Tensor) -> MaskedTexts:
        masked.append(hide(masks, texts, draws))
        return masked[-1]

    monkeypatch.setattr(WordMasks, "hide", watched)
    for rank in range(world_size):
        with batches(corpus, rank=rank, world_size=world_size) as loader:
            for step, micro_batches in loader:
                for place, batch in enumerate(micro_batches):
                    number = place * world_size + rank
                    torch.manual_seed(dropout_seed(SEED, step=step, micro_batch=number))
                    with torch.no_grad():
                        model(batch)
                    found = masked[-1]
                    if batch.num_tokens:
                        seen[step, number] = (found.texts.input_ids.tolist(), found.labels.tolist())
    return seen


def test_masks_are_the_same_on_any_number_of_workers(
    corpus: TextCorpus, model: MaskedLanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = masks_of(corpus, model, 1, monkeypatch)
    assert len(one) == 3 * NUM_MICRO_BATCHES
    assert masks_of(corpus, model, 2, monkeypatch) == one
    assert masks_of(corpus, model, 3, monkeypatch) == one
    assert len({str(found) for found in one.values()}) == len(one)


def test_a_step_is_the_mean_loss_of_the_masked_pieces(
    corpus: TextCorpus, model: MaskedLanguageModel
) -> None:
    """Shares of a step's micro-batches add up; with equal weights the sum is near log V."""
    with torch.no_grad(), batches(corpus) as loader:
        model.transform.LayerNorm.weight.zero_()  # no piece is likelier than another
        totals = []
        for step, micro_batches in loader:
            torch.manual_seed(step)
            totals.append(sum(float(model(batch)[1][MLM]) for batch in micro_batches))
    expected = torch.tensor(float(len(VOCABULARY))).log()
    assert sum(totals) / len(totals) == pytest.approx(float(expected), rel=0.1)
