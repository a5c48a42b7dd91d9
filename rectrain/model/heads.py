"""From the vectors of the texts to the tasks' scores: list pooling and the four heads.

Shapes: U texts, S places of texts, B rows, K items, D the encoder's hidden size, F width of the
features.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rectrain.data.batch import TextLists
from rectrain.model.spec import Head

__all__ = [
    "BiEncoderHead",
    "HeadSizes",
    "ListPooling",
    "PairHead",
    "SingleHead",
    "TwoTowerHead",
    "build_head",
]

_MAX_RECENCY = 16
_START_SCALE = 16.0
_MAX_LOG_SCALE = 4.6052  # a scale of 100


class ListPooling(nn.Module):
    """A list of texts as one vector: a mean weighted by how recent each text is.

    The text r places from the end of its list has the weight softmax(z)_r over the list, z a
    learned logit of each place that starts at 0 (the plain mean); places from 15 on share one.
    One text is returned as it is. An empty list gives a learned vector.

    Args:
        width: D.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.recency = nn.Parameter(torch.zeros(_MAX_RECENCY))
        # Not zero: the gradient of normalising a zero vector explodes.
        self.missing = nn.Parameter(torch.randn(width) * 0.02)

    def forward(self, vectors: Tensor, lists: TextLists) -> Tensor:
        """Pools the lists of one side.

        Args:
            vectors: [U, D], of all texts.
            lists: B lists.

        Returns:
            [B, D].
        """
        sizes = lists.offsets.diff()
        if not torch.is_grad_enabled() and bool((sizes == 1).all()):  # each text as it is
            return vectors[lists.index]
        num_rows = sizes.shape[0]
        row = torch.arange(num_rows, device=sizes.device).repeat_interleave(sizes)
        place = torch.arange(row.shape[0], device=sizes.device)
        recency = (lists.offsets[1:][row] - 1 - place).clamp(max=_MAX_RECENCY - 1)
        # One maximum for all lists: it cancels, and logits differ by far less than exp's range.
        weight = (self.recency - self.recency.detach().max()).exp()[recency]
        total = weight.new_zeros(num_rows).index_add(0, row, weight)
        weighted = (weight / total[row])[:, None].to(vectors.dtype) * vectors[lists.index]
        pooled = vectors.new_zeros(num_rows, vectors.shape[1]).index_add(0, row, weighted)
        return torch.where((sizes == 0)[:, None], self.missing.to(vectors.dtype), pooled)


@dataclass(frozen=True)
class HeadSizes:
    """What a head is made from.

    Attributes:
        width: D.
        feature_width: F, of the rows' or items' features.
        hidden: width of the hidden layers.
        dropout: probability.
        bias: of a logit's last layer: whether the score of a row stands alone. Where scores are
            only compared inside a list, the gradient of a bias would be rounding noise, which Adam
            would blow up.
    """

    width: int
    feature_width: int
    hidden: int
    dropout: float
    bias: bool = True


class TwoTowerHead(nn.Module):
    """Vectors of both sides whose inner product is the score, for an index of items.

    u = norm(q + A(q)), v = norm(d + C(d, features)) of vectors q and d scaled alike, A and C
    networks whose last layer starts at zero: training starts at the pretrained cosine. The score is
    scale · uᵀv + popularity · log q, with a learned scale and a learned share of the item's log
    popularity that starts at 1 (a prior: the loss takes log q of the sampling out again). Both
    terms are folded into the vectors, [scale · u, 1] of a query and [v, popularity · log q] of an
    item.
    """

    def __init__(self, sizes: HeadSizes) -> None:
        super().__init__()
        width = sizes.width
        self.query = _mlp(width, _zero(nn.Linear(sizes.hidden, width)), sizes)
        self.item = _mlp(width + sizes.feature_width, _zero(nn.Linear(sizes.hidden, width)), sizes)
        self.log_scale = nn.Parameter(torch.tensor(_START_SCALE).log().reshape(1))
        self.popularity = nn.Parameter(torch.ones(1))

    def forward(
        self, query: Tensor, item: Tensor, features: Tensor, log_q: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Embeds both sides.

        Args:
            query: [B, D].
            item: [K, D].
            features: [K, F], of the items.
            log_q: float32 [K], log of the item's share of the training rows.

        Returns:
            Float32 [B, D + 1] of queries and [K, D + 1] of items; their inner product is the score.
        """
        q, d = _unit_rms(query), _unit_rms(item)
        u = F.normalize((q + self.query(q)).float(), dim=1)
        v = F.normalize((d + self.item(torch.cat([d, features], dim=1))).float(), dim=1)
        scale = self.log_scale.float().clamp(max=_MAX_LOG_SCALE).exp()
        prior = (self.popularity.float() * log_q)[:, None]
        query_vectors = torch.cat([scale * u, torch.ones_like(u[:, :1])], dim=1)
        return query_vectors, torch.cat([v, prior], dim=1)


class BiEncoderHead(nn.Module):
    """A graded match of two texts: scale · cos(q, d) + r(q∘d, |q − d|, features).

    The last layer of the network r starts at zero: training starts at the pretrained cosine. It
    never has a bias (see `HeadSizes`). The scale is learned.
    """

    def __init__(self, sizes: HeadSizes) -> None:
        super().__init__()
        last = _zero(nn.Linear(sizes.hidden, 1, bias=False))
        self.residual = _mlp(2 * sizes.width + sizes.feature_width, last, sizes)
        self.log_scale = nn.Parameter(torch.tensor(_START_SCALE).log().reshape(1))

    def forward(self, query: Tensor, item: Tensor, features: Tensor) -> Tensor:
        """Scores float32 [B] of query [B, D] and item [B, D] with features [B, F]."""
        cosine = F.cosine_similarity(query.float(), item.float(), dim=1)
        q, d = _unit_rms(query), _unit_rms(item)
        residual = self.residual(torch.cat([q * d, (q - d).abs(), features], dim=1))
        scale = self.log_scale.float().clamp(max=_MAX_LOG_SCALE).exp()
        return scale * cosine + residual.float().squeeze(1)  # type: ignore[no-any-return]


class PairHead(nn.Module):
    """A logit from both sides fused: `_Logit` of the texts (u, v, u∘v, |u − v|) and features."""

    def __init__(self, sizes: HeadSizes) -> None:
        super().__init__()
        self.logit = _Logit(4 * sizes.width, sizes)

    def forward(self, query: Tensor, item: Tensor, features: Tensor) -> Tensor:
        """Logits float32 [B] of query [B, D] and item [B, D] with features [B, F]."""
        u, v = _unit_rms(query), _unit_rms(item)
        return self.logit(torch.cat([u, v, u * v, (u - v).abs()], dim=1), features)  # type: ignore[no-any-return]


class SingleHead(nn.Module):
    """A logit from the item side: `_Logit` of its vector and features."""

    def __init__(self, sizes: HeadSizes) -> None:
        super().__init__()
        self.logit = _Logit(sizes.width, sizes)

    def forward(self, item: Tensor, features: Tensor) -> Tensor:
        """Logits float32 [B] of item [B, D] with features [B, F]."""
        return self.logit(_unit_rms(item), features)  # type: ignore[no-any-return]


class _Logit(nn.Module):
    """deep(texts, features) + wide(features): a network of both, and one of the features alone.

    Beside vectors many times as wide, a few features drown in one network; with a path of their own
    they are learned as well as without texts (Cheng et al. 2016, "Wide & Deep Learning for
    Recommender Systems"; here the wide part is a network too).

    Args:
        text_width: width of the texts' vectors.
        sizes: of the head; a task without features has no wide part.
    """

    def __init__(self, text_width: int, sizes: HeadSizes) -> None:
        super().__init__()
        last = nn.Linear(sizes.hidden, 1, bias=sizes.bias)
        self.deep = _mlp(text_width + sizes.feature_width, last, sizes)
        if sizes.feature_width:
            self.wide = _mlp(sizes.feature_width, nn.Linear(sizes.hidden, 1, bias=False), sizes)

    def forward(self, texts: Tensor, features: Tensor) -> Tensor:
        """Logits float32 [B] of texts [B, text_width] and features [B, F]."""
        logit = self.deep(torch.cat([texts, features], dim=1)).float()
        if features.shape[1]:
            logit = logit + self.wide(features).float()
        return logit.squeeze(1)  # type: ignore[no-any-return]


_HEADS: dict[Head, type[TwoTowerHead | BiEncoderHead | PairHead | SingleHead]] = {
    "two_tower": TwoTowerHead,
    "bi_encoder": BiEncoderHead,
    "pair": PairHead,
    "single": SingleHead,
}


def build_head(
    kind: Head, sizes: HeadSizes
) -> TwoTowerHead | BiEncoderHead | PairHead | SingleHead:
    """The head of a task; `kind` is its `TaskSpec.head`."""
    return _HEADS[kind](sizes)


def _mlp(inputs: int, last: nn.Linear, sizes: HeadSizes) -> nn.Sequential:
    """Two hidden layers, and the last layer."""
    return nn.Sequential(
        nn.Linear(inputs, sizes.hidden),
        nn.GELU(),
        nn.Dropout(sizes.dropout),
        nn.Linear(sizes.hidden, sizes.hidden),
        nn.GELU(),
        nn.Dropout(sizes.dropout),
        last,
    )


def _zero(layer: nn.Linear) -> nn.Linear:
    """The layer with all parameters set to zero."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def _unit_rms(x: Tensor) -> Tensor:
    """Rows scaled to a root mean square of 1, so that any encoder's vectors suit the networks."""
    scale: float = x.shape[1] ** 0.5
    return F.normalize(x, dim=1) * scale
