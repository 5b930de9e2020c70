"""Define what a run document holds about a cell beside the last accepted run of it."""

from __future__ import annotations

from qsae_bench.gate.accepted import AgainstAccepted, in_short
from qsae_bench.results.strict_model import StrictModel


class WorseRecord(StrictModel):
    """Record a metric in which a cell is worse than in the accepted run."""

    metric: str
    layer: int | None
    accepted: float
    now: float
    low: float | None
    """lower end of the 95% interval of ``now`` − ``accepted``, which is paired"""
    high: float | None
    p: float
    """adjusted for all metrics that were tested"""


class AcceptedRecord(StrictModel):
    """Record how a cell compares with the last accepted run of it, on the tokens that both have."""

    run: str = ""
    """id of that run; '' where there is none"""
    started: str = ""
    tokens: int = 0
    tests: int = 0
    """metrics that were tested; 0 where the rows of both are equal"""
    worse: list[WorseRecord] = []
    said: str = ""
    """that the cell is worse, in a line; '' if it is not"""
    moved: str = ""
    """what changed between the two runs"""
    not_compared: str = ""
    """why nothing was compared"""
    fails: bool = False
    """whether a worse cell fails its test, as with ``--strict``"""

    @classmethod
    def of(cls, found: AgainstAccepted, fails: bool) -> AcceptedRecord:
        """Convert a comparison; ``fails`` is what a worse cell does."""
        worse = [
            WorseRecord(
                metric=d.metric, layer=d.layer, accepted=d.tested.b, now=d.tested.a,
                low=d.tested.difference.low, high=d.tested.difference.high, p=d.adjusted_p or 0.0,
            )
            for d in found.worse
        ]  # fmt: skip
        same = ("run", "started", "tokens", "tests", "moved", "not_compared")
        return cls(
            **{name: getattr(found, name) for name in same},
            worse=worse, said=in_short(found), fails=found.is_worse and fails,
        )  # fmt: skip
