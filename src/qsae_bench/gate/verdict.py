"""Turn estimates and thresholds into verdicts and failure messages. Pure: no torch, no pytest, no files."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from qsae_bench.errors import plain
from qsae_bench.gate.thresholds import Threshold
from qsae_bench.metrics import METRICS, headline
from qsae_bench.registry.sae_spec import Bounds
from qsae_bench.stats.bootstrap import Estimate, Estimates

Status = Literal["pass", "fail", "inconclusive", "worse than accepted", "suspicious", "invalid", "unset"]
FAILING: frozenset[Status] = frozenset({"fail", "inconclusive", "invalid", "unset"})
WORST_FIRST: tuple[Status, ...] = (
    "invalid", "fail", "unset", "inconclusive", "worse than accepted", "suspicious", "pass",
)  # fmt: skip


@dataclass(frozen=True)
class GatedMetric:
    """Identify a metric of a cell, or of one of its layers, that a test holds against its threshold."""

    metric: str
    """its key; '' checks only that the cell as a whole is valid"""
    layer: int | None = None
    optional: bool = False
    """whether the metric is not judged where it has no threshold, instead of failing as ``unset``"""


@dataclass(frozen=True)
class Verdict:
    """Hold what was decided about one metric of one cell (of one layer), and why."""

    metric: str
    layer: int | None
    status: Status
    estimate: Estimate
    """with its 95% interval"""
    threshold: Threshold | None
    tokens: int
    reason: str = ""
    """why, where the numbers alone don't show it"""
    judged: Estimate | None = None
    """with the interval that decided: wider where the cell is looked at several times"""
    looks: int = 1
    """number of looks at the cell until then"""
    attribution: str = ""
    """what moved since the gate last passed, where it fails and the history shows it"""

    @property
    def failing(self) -> bool:
        """Return whether it fails a test."""
        return self.status in FAILING


@dataclass(frozen=True)
class GateFailure:
    """Hold a gate that fails a test, with the message of the failure."""

    metric: str
    """'' where it is the whole cell that is invalid"""
    status: Status
    message: str


def decide(
    metric: str,
    estimate: Estimate,
    threshold: Threshold | None,
    tokens: int,
    layer: int | None = None,
    invalid_reason: str = "",
    judged: Estimate | None = None,
    looks: int = 1,
    suspicious_below: float = -math.inf,
    exhausted: bool = False,
    strict: bool = False,
) -> Verdict:
    """Decide one metric.

    Args:
        invalid_reason: what makes the whole cell invalid, if anything does.
        judged: the estimate with the interval that decides, where that isn't its own.
        suspicious_below: a value significantly below it is better than the reference can be.
        exhausted: the corpus has no more text.
        strict: whether a provisional bound counts as none.
    """
    judged = judged or estimate

    def verdict(status: Status, reason: str = "") -> Verdict:
        return Verdict(metric, layer, status, estimate, threshold, tokens, reason, judged, looks)

    if invalid_reason:
        return verdict("invalid", invalid_reason)
    if not estimate.is_finite:
        return verdict("invalid", f"{metric} is not finite")
    if threshold is None:
        return verdict("unset", f"no threshold for {metric}")
    if strict and threshold.is_provisional:
        return verdict("unset", "the bound is provisional, and --strict takes none that was not measured")
    low = judged.value if judged.low is None else judged.low
    high = judged.value if judged.high is None else judged.high
    if high < suspicious_below:
        return verdict(
            "suspicious",
            f"better than its own reference by more than the noise floor, {-suspicious_below:.3g}",
        )
    least, most = threshold.allowed
    if low >= least and high <= most:
        return verdict("pass")
    if low > most or high < least:
        return verdict("fail")
    bound = threshold.nearest(judged.value)
    return verdict("inconclusive", _tokens_to_decide(judged, bound, tokens, exhausted))


def _tokens_to_decide(estimate: Estimate, bound: float, tokens: int, exhausted: bool) -> str:
    """Return at how many tokens the interval (∝ 1/√tokens) would exclude the bound half the time."""
    distance = abs(estimate.value - bound)
    if distance == 0:
        return "the value lies on the threshold: no number of tokens decides it"
    ratio = estimate.half_width / distance
    needed = tokens * ratio * ratio
    if not math.isfinite(needed):
        return "the value lies too close to the threshold: no number of tokens decides it"
    needed = max(math.ceil(needed), tokens + 1)
    do = "the text has no more" if exhausted else f"--max-tokens {needed}"
    return f"about {needed:,} tokens would decide it at this variance: {do}"


def suspicious_below(metric: str, reference: Mapping[str, Estimate], floor: Estimate | None) -> float:
    """Return the value below which a cell is better than its reference can be; -inf for most metrics.

    Args:
        reference: the reference's estimates at the metric's place.
        floor: the metric of the reference against itself at another batch size, if that was measured.
    """
    tolerance = METRICS[metric].suspicious
    if tolerance is None:
        return -math.inf
    own = reference[tolerance.of].value if tolerance.of else 0.0
    moved = [abs(e) for e in (floor.value, floor.low, floor.high) if e is not None] if floor else []
    return -max([tolerance.amount(own), *moved])


BELOW_NOISE_FLOOR = "the threshold is below the noise floor"
"""begins the reason of a verdict that is invalid by its threshold's fault, not its cell's"""


def numerical_noise(floor: Estimate, own: Estimate) -> float:
    """Return how far another batch size moves the reference's value.

    Both are of the same tokens, so the intervals are of the text and say nothing about numerics.
    """
    moved = abs(floor.value - own.value)
    return moved if math.isfinite(moved) else math.inf


def reason_below_noise_floor(threshold: Threshold, floor: Estimate, own: Estimate) -> str:
    """Return why numerics alone exceed a threshold, or ''.

    ``own`` is the reference against itself, ``floor`` the same at another batch size: no threshold may
    allow less than the distance between the two, see :func:`numerical_noise`.
    """
    moved = numerical_noise(floor, own)
    least, most = threshold.allowed
    if moved <= min(own.value - least, most - own.value):
        return ""
    return (
        f"{BELOW_NOISE_FLOOR}: another batch size alone moves {threshold.metric} "
        f"of the reference by {moved:.3g}; loosen it"
    )


def check_reference(estimates: Estimates, bounds: Mapping[str, Bounds], tokens: int) -> list[Verdict]:
    """Return whether the reference itself is sane, a verdict for each of its bounds."""
    verdicts = []
    for key, bound in bounds.items():
        places: dict[int | None, Estimate] = (
            {None: estimates.cell[key]}
            if METRICS[key].scope == "cell"
            else {layer: found[key] for layer, found in estimates.layers.items()}
        )
        for layer, estimate in places.items():
            status: Status = "pass"
            reason = ""
            if not bound.contains(estimate.value):
                status = "invalid"
                reason = f"{key} {estimate.value:.4g} is outside the sane range "
                reason += f"[{bound.min:g}, {bound.max:g}] of this reference"
                reason += _sae_hint(key, estimates.at(layer))
            verdicts.append(Verdict(key, layer, status, estimate, None, tokens, reason))
    return verdicts


def _sae_hint(key: str, estimates: Mapping[str, Estimate]) -> str:
    """Return both numbers that show whether SAE and model belong together; '' for another metric.

    Either alone has other causes too.
    """
    fit = [known for known in headline("failure") if METRICS[known].scope == "layer"]
    if key not in fit:
        return ""
    both = ", ".join(f"{k} {estimates[k].value:.4g}" for k in fit if k in estimates)
    return f" ({both}): is this SAE this model's?"


def worst_status(statuses: Iterable[Status]) -> Status | None:
    """Return the gravest status, or None where nothing was judged."""
    found = set(statuses)
    return next((status for status in WORST_FIRST if status in found), None)


def failure_message(cell_id: str, verdict: Verdict, reference: Estimates | None, more: str) -> str:
    """Return the failure message; ``more`` is the command that shows more."""
    where = cell_id if verdict.layer is None else f"{cell_id} layer {verdict.layer}"
    e, unit = verdict.estimate, METRICS[verdict.metric].unit
    interval = "" if e.low is None or e.high is None else f" [{e.low:.6g}, {e.high:.6g}]"
    lines = [
        f"{where}: {verdict.metric} {verdict.status.upper()}",
        f"  measured   {e.value:.6g}{interval} {unit} on {verdict.tokens:,} tokens",
    ]
    judged = verdict.judged or e
    if judged != e and judged.low is not None and judged.high is not None:
        lines.append(
            f"  judged by  [{judged.low:.6g}, {judged.high:.6g}]: wider at look {verdict.looks}, so that "
            "looking again keeps this gate's error at 5%"
        )
    if verdict.threshold is not None:
        lines.append(f"  threshold  {verdict.threshold}")
    if verdict.reason:
        lines.append(f"  why        {verdict.reason}")
    if verdict.status == "unset":
        lines.append(f"  do         add {verdict.metric} to thresholds.toml: qsae-bench thresholds update")
    if reference is not None:
        lines.append(f"  reference  {_reference_line(verdict, reference)}")
    if verdict.attribution:
        lines.append(f"  moved      {verdict.attribution}")
    lines.append(f"  more       {more}")
    return "\n".join(map(plain, lines))


def _reference_line(verdict: Verdict, reference: Estimates) -> str:
    parts = [f"perplexity {reference.cell['perplexity'].value:.4g}"]
    if verdict.layer is not None and verdict.layer in reference.layers:
        layer = reference.layers[verdict.layer]
        parts += [f"fvu {layer['fvu'].value:.4g}", f"l0 {layer['l0'].value:.3g}"]
    return ", ".join(parts)
