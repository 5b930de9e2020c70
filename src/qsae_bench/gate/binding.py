"""Tell a bound that binds from one that lets everything pass, or nothing. Pure."""

from __future__ import annotations

from qsae_bench.metrics import METRICS
from qsae_bench.metrics.base import Limits, Metric


def why_not_binding(key: str, lower: float | None, upper: float | None) -> str:
    """Return why an entry's ``min`` (lower) and ``max`` (upper) can't be a bound, or ''."""
    metric = METRICS[key]
    if lower is None and upper is None:
        return "max or min is needed"
    if lower is not None and metric.better == "lower":
        return f"min = {lower:g} lets every damage pass, because lower is better: write max"
    if upper is not None and metric.better == "higher":
        return f"max = {upper:g} lets every damage pass, because higher is better: write min"
    if lower is not None and upper is not None and lower >= upper:
        return f"min = {lower:g} must be below max = {upper:g}, or nothing passes"
    return _why_beyond(metric, lower, upper)


def _why_beyond(metric: Metric, lower: float | None, upper: float | None) -> str:
    """Return which bound lies where the metric never is, or ''."""
    least, most = metric.limits
    percent = metric.limits == Limits.FRACTION
    for name, bound in (("min", lower), ("max", upper)):
        if bound is None:
            continue
        as_share = f"; {bound:g}% is {bound / 100:g}" if percent and 1 < bound <= 100 else ""
        if bound > most or (bound == most and name == "max"):
            what = "nothing passes" if name == "min" else "it bounds nothing"
            return f"{name} = {bound:g}: never above {most:g}, so {what}{as_share}"
        if bound < least or (bound == least and name == "min"):
            what = "nothing passes" if name == "max" else "it bounds nothing"
            return f"{name} = {bound:g}: never below {least:g}, so {what}"
    return ""
