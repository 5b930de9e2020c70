"""Decide whether a cell is worse than the last accepted run of it. Pure: no torch, no pytest, no files.

Both runs read the same tokens, so the difference is paired and almost free of noise: it shows faults that
bounds let pass, which have to leave room. Two conditions keep it silent where nothing is wrong. The
difference must be shown (Holm over the cell's metrics), and be of a size that means something: another
library or batch size moves a number by little, and with enough tokens any difference is significant.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from qsae_bench.errors import plain
from qsae_bench.gate.verdict import Status
from qsae_bench.metrics import METRICS
from qsae_bench.stats.comparison import Difference, with_verdicts

WORSE: Status = "worse than accepted"

ACCEPTED_ALPHA = 0.01
"""largest adjusted p with which a cell is worse: stricter than ``compare``, as it is asked every night"""

RELEVANT = 0.01
"""share of the accepted harm by which a metric must be worse. Numerics move a mean over thousands of tokens
by less, and a fault that is worth a look moves some metric by much more"""

Place = tuple[str, int | None]
"""a metric and its layer, None for the whole cell"""


@dataclass(frozen=True)
class AgainstAccepted:
    """Hold the comparison of a cell with the last accepted run of it."""

    run: str = ""
    """id of that run; '' where there is none"""
    started: str = ""
    """when that run was started, ISO 8601"""
    tokens: int = 0
    """tokens that both were measured on"""
    tests: int = 0
    """metrics that were tested, corrected together; 0 where the rows of both are equal"""
    worse: tuple[Difference, ...] = ()
    """metrics that are worse, the surest first; A is this run, B the accepted one"""
    not_compared: str = ""
    """why nothing was compared"""
    moved: str = ""
    """what changed between the two runs, in a line"""

    @property
    def is_worse(self) -> bool:
        """Return whether the cell is worse than the accepted run."""
        return bool(self.worse)


def worse_metrics(
    differences: Sequence[Difference], noise: Mapping[Place, float]
) -> tuple[Difference, ...]:
    """Return the metrics in which A is worse than B, the surest and then the largest first.

    Args:
        differences: of A − B, of every metric that was tested; B is the accepted run.
        noise: how far numerics alone move a metric, where that was measured.
    """
    (judged,) = with_verdicts([differences], ACCEPTED_ALPHA)
    found = [
        d for d in judged
        if d.verdict == "worse"
        and abs(d.tested.difference.value) > least_relevant(d, noise.get((d.metric, d.layer), 0.0))
    ]  # fmt: skip
    return tuple(sorted(found, key=lambda d: (d.adjusted_p or 0.0, -relative_change(d))))


def least_relevant(difference: Difference, noise: float) -> float:
    """Return the smallest change of a metric that means something.

    It is the largest of the noise floor, of the least harm that a threshold of the metric would allow for,
    and of a share of the accepted run's own harm (its distance from a cell that lost nothing).
    """
    metric, accepted = METRICS[difference.metric], difference.tested.b
    harmless = accepted if metric.harmless is None else metric.harmless
    least = metric.least_harm.amount(harmless) if metric.least_harm is not None else 0.0
    return max(noise, least, RELEVANT * abs(accepted - harmless))


def relative_change(difference: Difference) -> float:
    """Return the change as a share of the accepted harm; infinite where that was 0."""
    metric, accepted = METRICS[difference.metric], difference.tested.b
    harm = abs(accepted - (metric.harmless or 0.0))
    return abs(difference.tested.difference.value) / harm if harm else math.inf


def in_short(found: AgainstAccepted) -> str:
    """Say in a line in what a cell is worse; '' if it is not."""
    if not found.worse:
        return ""
    first, *more = found.worse
    others = f" and {len(more)} more" if more else ""
    return (
        f"{WORSE}: {_place(first)} {first.tested.b:.4g} → {first.tested.a:.4g}{others} (of {found.tests} "
        f"tested); against run {found.run} of {found.started[:10]}"
    )


def message(cell_id: str, found: AgainstAccepted, compare: str, accept: str) -> str:
    """Return the message of a test that fails because a cell is worse.

    Args:
        compare: the command that shows the whole comparison.
        accept: the command with which this run becomes the accepted one.
    """
    names = [_place(d) for d in found.worse]
    width = max(map(len, names))
    lines = [
        f"{cell_id}: {WORSE.upper()} in {len(found.worse)} of {found.tests} metrics tested",
        f"  accepted   run {found.run} of {found.started[:10]}; both on the same {found.tokens:,} tokens",
    ]
    for name, d in zip(names, found.worse, strict=True):
        change, unit = d.tested.difference, METRICS[d.metric].unit
        spread = f" ± {change.half_width:.2g}" if change.half_width else ""
        lines.append(
            f"  worse      {name:{width}}  {d.tested.b:.4g} → {d.tested.a:.4g}: {change.value:+.3g}{spread}"
            f"{' ' if unit else ''}{unit}, Holm p {d.adjusted_p:.2g}"
        )
    lines += [f"  moved      {found.moved}"] if found.moved else []
    lines += [f"  more       {compare}", f"  accept it  {accept}"]
    return "\n".join(map(plain, lines))


def _place(difference: Difference) -> str:
    where = "" if difference.layer is None else f" of layer {difference.layer}"
    return f"{difference.metric}{where}"
