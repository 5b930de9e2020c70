"""Declare every metric: a key, what it describes, and its formula over column sums.

Each module holds one group: the columns that it reads off a batch (torch, imported where it is used) and
the metrics that those columns give (arithmetic that works on floats and on bootstrap replicates alike). The
package imports only the root modules, and nothing of it loads torch on import.

``METRICS`` is the registry that every other package reads facts from
(:class:`qsae_bench.metrics.base.Metric` has the fields, docs/metrics.md describes each metric); ``GROUPS``
names the metrics of each module, ``headline`` those that are shown unasked.
:mod:`qsae_bench.metrics.measurement` has what a pass yields.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from qsae_bench.metrics import (
    cost,
    features,
    generation,
    loss,
    reconstruction,
    residual,
    sinks,
    splice,
    weights,
)
from qsae_bench.metrics.base import Metric, View

__all__ = ["GROUPS", "METRICS", "METRICS_VERSION", "VERSIONS", "headline", "version_difference"]

_MODULES = (loss, sinks, residual, reconstruction, features, splice, generation, weights, cost)

GROUPS: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        module.__name__.rpartition(".")[2]: frozenset(metric.key for metric in module.METRICS)
        for module in _MODULES
    }
)
"""group (its module's name) -> the keys in it"""

_METRICS = {metric.key: metric for module in _MODULES for metric in module.METRICS}
METRICS: Mapping[str, Metric] = MappingProxyType(_METRICS)
"""key -> metric, in the order in which run documents and tables have them"""

VERSIONS: Mapping[int, str] = MappingProxyType(
    {
        1: "the formulas of the first release",
        2: "residuals, SAEs and features are measured over ordinary positions, without sinks",
    }
)
"""version of the metrics -> what it changed, for whoever meets numbers of two versions"""

METRICS_VERSION = max(VERSIONS)
"""Add a line to ``VERSIONS`` whenever a change gives another number for the same model and text: a formula,
a column, the positions that count. It stands in run documents, the journal and the history, so that another
formula is never read as another model. A new metric is no new version"""


def version_difference(version: int) -> str:
    """Return how a version of the metrics differs from today's, in a few words; '' for today's."""
    if version == METRICS_VERSION:
        return ""
    if version > METRICS_VERSION:
        return f"metrics version {version}, of a newer qsae-bench; this one computes {METRICS_VERSION}"
    since = [f"{number}: {VERSIONS[number]}" for number in range(version + 1, METRICS_VERSION + 1)]
    return f"metrics version {version}, today's is {METRICS_VERSION} ({'; '.join(since)})"


def headline(view: View) -> tuple[str, ...]:
    """Return the keys of the metrics that ``view`` shows unasked, in the order of ``METRICS``."""
    return tuple(key for key, metric in METRICS.items() if view in metric.headline_in)
