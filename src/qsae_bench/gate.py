"""measurements × thresholds -> verdicts. Pure: no torch, no pytest, no files."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from qsae_bench.metrics import METRICS
from qsae_bench.specs import Bounds
from qsae_bench.statistics import Estimate, Estimates
from qsae_bench.thresholds import Threshold

Status = Literal["pass", "fail", "inconclusive", "suspicious", "invalid", "unset"]
FAILING: frozenset[Status] = frozenset({"fail", "inconclusive", "invalid", "unset"})
WORST_FIRST: tuple[Status, ...] = ("invalid", "fail", "unset", "inconclusive", "suspicious", "pass")


@dataclass(frozen=True)
class Verdict:
    """What was decided about one metric of one cell (of one layer), and why."""

    metric: str
    layer: int | None
    status: Status
    estimate: Estimate
    threshold: Threshold | None
    tokens: int
    reason: str = ""
    """why, where the numbers alone don't say it"""

    @property
    def failing(self) -> bool:
        return self.status in FAILING


def judge(
    metric: str,
    estimate: Estimate,
    threshold: Threshold | None,
    tokens: int,
    layer: int | None = None,
    broken: str = "",
) -> Verdict:
    """Decide one metric. ``broken`` names what makes the whole cell invalid, if anything does."""

    def verdict(status: Status, reason: str = "") -> Verdict:
        return Verdict(metric, layer, status, estimate, threshold, tokens, reason)

    if broken:
        return verdict("invalid", broken)
    if not estimate.is_finite:
        return verdict("invalid", f"{metric} is not finite")
    if threshold is None:
        return verdict("unset", f"no threshold for {metric}")
    low = estimate.value if estimate.low is None else estimate.low
    high = estimate.value if estimate.high is None else estimate.high
    if threshold.side == "min":  # mirror: a lower bound is an upper bound on the negative
        low, high, bound = -high, -low, -threshold.bound
    else:
        bound = threshold.bound
    if high <= bound:
        return verdict("pass")
    if low > bound:
        return verdict("fail")
    return verdict("inconclusive", _tokens_to_decide(estimate, threshold.bound, tokens))


def _tokens_to_decide(estimate: Estimate, bound: float, tokens: int) -> str:
    """An interval narrows with the square root of the tokens."""
    distance = abs(estimate.value - bound)
    if distance == 0:
        return "the value lies on the threshold: no number of tokens decides it"
    ratio = estimate.half_width / distance
    needed = tokens * ratio * ratio
    if not math.isfinite(needed):
        return "the value lies too close to the threshold: no number of tokens decides it"
    return f"about {max(math.ceil(needed), tokens + 1):,} tokens would decide it at this variance"


def below_floor(threshold: Threshold, floor: Estimate, own: Estimate) -> str:
    """Why a threshold can't be met by the numerics alone, or ''.

    ``own`` is the reference against itself, ``floor`` the same at another batch size: how far that
    moved the metric, to either side and to the end of its interval, is what no threshold may ask for
    less than.
    """
    ends = [e for e in (floor.value, floor.low, floor.high) if e is not None and math.isfinite(e)]
    moved = max((abs(end - own.value) for end in ends), default=math.inf)
    room = threshold.bound - own.value if threshold.side == "max" else own.value - threshold.bound
    if moved <= room:
        return ""
    return (
        f"the threshold is below the noise floor: another batch size alone moves {threshold.metric} "
        f"of the reference by up to {moved:.3g}; loosen it"
    )


def judge_reference(estimates: Estimates, bounds: Mapping[str, Bounds], tokens: int) -> tuple[Verdict, ...]:
    """Is the reference itself sane? Everything measured against it rests on that."""
    verdicts = []
    for key, bound in bounds.items():
        places: dict[int | None, Estimate] = (
            {None: estimates.cell[key]}
            if METRICS[key].scope == "cell"
            else {layer: found[key] for layer, found in estimates.layers.items()}
        )
        for layer, estimate in places.items():
            ok = bound.hold(estimate.value)
            reason = (
                "" if ok else f"{key} {estimate.value:.4g} is outside the sane range "
                f"[{bound.min:g}, {bound.max:g}] of this reference{_pairing(key, estimates.at(layer))}"
            )  # fmt: skip
            verdicts.append(
                Verdict(key, layer, "pass" if ok else "invalid", estimate, None, tokens, reason)
            )
    return tuple(verdicts)


PAIRING = ("l0", "fvu")
"""together they tell SAEs of another model: either alone has other causes too"""


def _pairing(key: str, estimates: Mapping[str, Estimate]) -> str:
    """The other of the two numbers that show whether SAE and model belong together."""
    if key not in PAIRING:
        return ""
    both = ", ".join(f"{k} {estimates[k].value:.4g}" for k in PAIRING if k in estimates)
    return f" ({both}): is this SAE this model's?"


def worst(statuses: Iterable[Status]) -> Status | None:
    """The gravest status, or None where nothing was judged."""
    found = set(statuses)
    return next((status for status in WORST_FIRST if status in found), None)


def explain(cell_id: str, verdict: Verdict, reference: Estimates | None, more: str) -> str:
    """The failure message, for the person who gets it at 3 a.m."""
    where = cell_id if verdict.layer is None else f"{cell_id} layer {verdict.layer}"
    e, unit = verdict.estimate, METRICS[verdict.metric].unit
    interval = "" if e.low is None or e.high is None else f" [{e.low:.6g}, {e.high:.6g}]"
    lines = [f"{where}: {verdict.metric} {verdict.status.upper()}"]
    lines.append(f"  measured   {e.value:.6g}{interval} {unit} on {verdict.tokens:,} tokens".rstrip())
    if verdict.threshold is not None:
        lines.append(f"  threshold  {verdict.threshold}")
    if verdict.reason:
        lines.append(f"  why        {verdict.reason}")
    if verdict.status == "unset":
        lines.append(f"  do         add {verdict.metric} to thresholds.toml for this cell")
    if reference is not None:
        lines.append(f"  reference  {_reference_line(verdict, reference)}")
    lines.append(f"  more       {more}")
    return "\n".join(lines)


def _reference_line(verdict: Verdict, reference: Estimates) -> str:
    parts = [f"perplexity {reference.cell['perplexity'].value:.4g}"]
    if verdict.layer is not None and verdict.layer in reference.layers:
        layer = reference.layers[verdict.layer]
        parts += [f"fvu {layer['fvu'].value:.4g}", f"l0 {layer['l0'].value:.3g}"]
    return ", ".join(parts)
