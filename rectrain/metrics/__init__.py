"""What a task is judged by: metrics as functions of row weights, their bootstrap, and gathering.

A metric is prepared once from its `Examples` (sorting, tie blocks, ranks) and is then a cheap
function of the rows' weights. A bootstrap resample of the groups is nothing but other weights, so
every metric gets intervals and paired differences from one piece of code.
"""

from rectrain.metrics.bootstrap import (
    Interval,
    bootstrap_interval,
    paired_difference,
    resample,
    summarise,
)
from rectrain.metrics.examples import Examples, group_codes
from rectrain.metrics.gather import gather_arrays
from rectrain.metrics.pointwise import num_one_class_groups
from rectrain.metrics.ranking import (
    catalogue_coverage,
    catalogue_ranks,
    catalogue_top,
    graded_groups,
    intra_list_dissimilarity,
    rank_within_groups,
)
from rectrain.metrics.table import METRICS, MetricSpec, compute, metric
from rectrain.metrics.trivial import trivial

__all__ = [
    "METRICS",
    "Examples",
    "Interval",
    "MetricSpec",
    "bootstrap_interval",
    "catalogue_coverage",
    "catalogue_ranks",
    "catalogue_top",
    "compute",
    "gather_arrays",
    "graded_groups",
    "group_codes",
    "intra_list_dissimilarity",
    "metric",
    "num_one_class_groups",
    "paired_difference",
    "rank_within_groups",
    "resample",
    "summarise",
    "trivial",
]
