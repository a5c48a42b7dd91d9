"""The model of pre-training: the encoder, and BERT's head that guesses masked word pieces.

Shapes: T tokens, B rows (texts), P masked pieces, D hidden size, V entries of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BertModel
from transformers.models.bert.modeling_bert import BertPredictionHeadTransform

from rectrain.data.batch import MicroBatch, Slot
from rectrain.data.texts import MLM
from rectrain.data.tokenize import WordPieces
from rectrain.model.adapters import RankBudget
from rectrain.model.balancing import StaticWeights
from rectrain.model.encoder import token_states
from rectrain.model.masking import MaskedTexts, WordMasks, draw, fixed_draws

__all__ = ["MaskedLanguageModel"]

_untyped: Any = BertPredictionHeadTransform


class MaskedLanguageModel(nn.Module):
    """Guesses masked words of texts; the run's one task is `mlm`.

    The head sees masked places alone: dense, activation, norm, then the word embeddings
    transposed, and a bias. Like the multi-task model, every forward calls every module once,
    whatever the micro-batch holds.

    Attributes:
        rank_budget: none: the whole encoder is trained, without adapters.

    Args:
        encoder: what is trained.
        pieces: of the tokenizer; the encoder may have more entries.
        share: of the words to mask, 0 to 1.
        activation_checkpointing: recompute the encoder's layers in the backward pass.
        seed: of the head's fresh weights; the caller's random state is left alone.
    """

    def __init__(
        self,
        encoder: BertModel,
        *,
        pieces: WordPieces,
        share: float,
        activation_checkpointing: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.activation_checkpointing = activation_checkpointing
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.transform: Any = _untyped(encoder.config)
            nn.init.normal_(self.transform.dense.weight, std=encoder.config.initializer_range)
            nn.init.zeros_(self.transform.dense.bias)
        self.bias = nn.Parameter(torch.zeros(encoder.config.vocab_size))
        self.masks = WordMasks(pieces, share=share)
        self.balancer = StaticWeights([1.0])
        self.rank_budget: RankBudget | None = None

    @property
    def task_names(self) -> tuple[str, ...]:
        """The run's one task."""
        return (MLM,)

    def forward(
        self,
        batch: MicroBatch,
        *,
        mode: Literal["loss", "score"] = "loss",
        scale: float = 1.0,
        num_shares: int = 1,
        balance: Callable[[Tensor], Tensor] | None = None,
    ) -> Any:
        """Masks the texts of a micro-batch and guesses.

        Args:
            batch: one slot, of rows that are different texts.
            mode: what to return; "loss" masks anew by torch's random state, "score" always alike.
            scale: factor of the loss (to undo an average over ranks).
            num_shares: forwards of the whole step, over all workers.
            balance: in the place of the balancer.

        Returns:
            mode "loss": (scale · loss, {"mlm": loss, detached}), float32 scalars. The loss is the
                negative log-likelihood of the masked pieces, summed, over their expected number
                in the whole step (share · slot.count), in nats.
            mode "score": {"mlm": (float32 [B] summed negative log-likelihood of each row,
                float32 [B] its masked pieces)}.
        """
        (slot,) = batch.slots
        draws = draw(batch.texts) if mode == "loss" else fixed_draws(batch.texts)
        masked = self.masks.hide(batch.texts, draws)
        losses = self._losses(masked)
        if mode == "score":
            return {MLM: _by_row(losses, masked, slot)}
        loss = losses.sum() / max(self.masks.share * slot.count, 1.0)
        losses = loss[None]
        total = self.balancer(losses, num_shares=num_shares) if balance is None else balance(losses)
        return scale * total, {MLM: loss.detach()}

    def _losses(self, masked: MaskedTexts) -> Tensor:
        """Negative log-likelihood of each masked piece, and a 0 at the end: float32 [P + 1]."""
        states = token_states(
            self.encoder, masked.texts, activation_checkpointing=self.activation_checkpointing
        )
        # One more place than there are, with a weight of 0: no layer ever sees an empty tensor.
        places = torch.cat([masked.places, masked.places.new_zeros(1)])
        labels = torch.cat([masked.labels, masked.labels.new_zeros(1)])
        hidden = self.transform(states[places])
        logits = F.linear(hidden, self.encoder.embeddings.word_embeddings.weight, self.bias)
        losses = F.cross_entropy(logits.float(), labels, reduction="none")
        return torch.cat([losses[:-1], losses[-1:] * 0.0])


def _by_row(losses: Tensor, masked: MaskedTexts, slot: Slot) -> tuple[Tensor, Tensor]:
    """Sums of the masked pieces of each row's text, and their number."""
    lengths = masked.texts.lengths
    text = torch.arange(lengths.shape[0], device=lengths.device).repeat_interleave(lengths)
    text = text[masked.places]
    zeros = losses.new_zeros(lengths.shape[0])
    sums = zeros.index_add(0, text, losses[: text.shape[0]])
    counts = zeros.index_add(0, text, torch.ones_like(losses[: text.shape[0]]))
    return sums[slot.item.index], counts[slot.item.index]
