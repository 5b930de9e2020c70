"""Bounds that bind, for any metric, as Hypothesis draws them."""

from __future__ import annotations

from hypothesis import strategies as st

from qsae_bench.gate.thresholds import Threshold
from qsae_bench.metrics import METRICS


@st.composite
def ends(draw, metric):
    """The lower and upper end of a bound that may stand in a file; None where it has none."""
    least, most = METRICS[metric].limits
    inside = {"allow_nan": False, "allow_infinity": False}
    lowers = st.floats(least, most, exclude_min=True, **inside)
    uppers = st.floats(least, most, exclude_max=True, **inside)
    better = METRICS[metric].better
    if better == "lower":
        return None, draw(uppers)
    if better == "higher":
        return draw(lowers), None
    both = st.tuples(lowers, uppers).filter(lambda two: two[0] < two[1])
    return draw(both | st.tuples(lowers, st.none()) | st.tuples(st.none(), uppers))


@st.composite
def thresholds(draw, metric, sources):
    return Threshold.between(metric, *draw(ends(metric)), draw(sources))
