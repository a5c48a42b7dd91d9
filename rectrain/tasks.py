"""The tasks of a shop: one entry each. A new task is one entry here and its test."""

from __future__ import annotations

from rectrain.data.tables import AD_CTR, RECOMMENDATION, RISK, SEARCH_RANKING
from rectrain.model.spec import TaskSpec

__all__ = ["TASKS", "TaskSpec"]

_RANKING = ("ndcg@10", "mrr", "hr@10", "recall@10")
_BINARY = ("auc", "gauc", "pr_auc", "log_loss", "ece")

TASKS: dict[str, TaskSpec] = {
    spec.name: spec
    for spec in (
        TaskSpec(
            name="recommendation",
            fields=RECOMMENDATION,
            query=("history",),
            item=("item_text",),
            head="two_tower",
            loss="in_batch_softmax",
            metrics=_RANKING,
            primary="ndcg@10",
        ),
        TaskSpec(
            name="search_ranking",
            fields=SEARCH_RANKING,
            query=("query",),
            item=("item_text",),
            head="bi_encoder",
            loss="listwise_softmax",
            metrics=("ndcg@10", "mrr"),
            primary="ndcg@10",
        ),
        TaskSpec(
            name="ad_ctr",
            fields=AD_CTR,
            query=("history", "context"),
            item=("item_text",),
            head="pair",
            loss="bce",
            metrics=(*_BINARY, "ctr"),
            primary="auc",
        ),
        TaskSpec(
            name="risk",
            fields=RISK,
            query=(),
            item=("item_text",),
            head="single",
            loss="bce",
            metrics=(*_BINARY, "recall@fpr0.01", "conversion"),
            primary="auc",
        ),
    )
}
