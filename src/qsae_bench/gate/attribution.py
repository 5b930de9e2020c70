"""Find what moved since a gate last passed: the reference, the quantized model, both, or the setup. Pure.

A failing gate is compared with the last run in which it passed. On the same text both runs read the same
tokens, so a difference between them is either numerics or a change. On other text, or on more of it, the
sampling of the text adds to the difference, and the intervals bound by how much.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from qsae_bench.metrics import METRICS, METRICS_VERSION, headline
from qsae_bench.stats.bootstrap import Estimate

Moved = Literal["reference", "quantized", "both", "neither", "setup", "unknown"]

REPEAT_TOLERANCE = 1e-4
"""relative change of a value that numerics alone explain. On the same tokens, hardware and versions a model
repeats to the last bit, or, where a GPU's kernels add in no fixed order, to the rounding of bfloat16 (2^-9
per number) averaged over at least a thousand tokens. A larger noise floor measured in the same run replaces
it"""

INTERVAL_TOLERANCE = 0.1
"""share of the interval's half-width. A gated metric that moved by less did not turn a gate from pass to
fail, unless it lay at the threshold, and then the threshold is what to look at"""


@dataclass(frozen=True)
class Setup:
    """Hold everything that can move a number although neither the model nor the quantization changed."""

    hardware: str
    versions: Mapping[str, str]
    """versions of packages, driver, CUDA and Python, and the number of threads"""
    corpus: str
    """fingerprint of the token sequences"""
    revision: str = ""
    """revision of the model; '' where it isn't known"""
    batch_size: int = 0
    """sequences per forward pass; 0 where it isn't known"""
    sae: str = ""
    """SAE that reads the gate's layer; '' where there is none, or it isn't known"""
    protocol: str = ""
    """protocol under which metrics are defined differently; '' for the definitions that gates use"""
    metrics_version: int = METRICS_VERSION
    """version of the formulas: only runs of the same one can be compared"""
    recipe: str = ""
    """digest of the quantization's entry and of its own code; '' where it isn't known"""

    def differences(self, now: Setup) -> list[str]:
        """Return what differs from this setup to ``now``, such as ``torch 2.12.0 → 2.13.0``."""
        found = []
        if self.hardware != now.hardware:
            found.append(f"hardware {self.hardware} → {now.hardware}")
        if self.corpus != now.corpus:
            found.append(f"corpus {self.corpus[:8] or 'none'} → {now.corpus[:8] or 'none'}")
        if self.revision and now.revision and self.revision != now.revision:
            found.append(f"model revision {self.revision[:8]} → {now.revision[:8]}")
        if self.batch_size != now.batch_size:
            found.append(f"batch size {self.batch_size or 'not known'} → {now.batch_size or 'not known'}")
        if self.sae and now.sae and self.sae != now.sae:
            found.append(f"SAE {self.sae} → {now.sae}")
        if self.recipe and now.recipe and self.recipe != now.recipe:
            found.append(f"the quantization's entry or code {self.recipe[:8]} → {now.recipe[:8]}")
        if self.protocol != now.protocol:
            found.append(f"protocol {self.protocol or 'none'} → {now.protocol or 'none'}")
        return found + version_differences(self.versions, now.versions)


def version_differences(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    """Return changed versions, ``torch 2.12.0 → 2.13.0``; ``none`` stands for an absent package."""
    changed = {name: (before.get(name, "none"), after.get(name, "none")) for name in [*after, *before]}
    return [f"{name} {old} → {new}" for name, (old, new) in changed.items() if old != new]


@dataclass(frozen=True)
class FailedGate:
    """Identify the gated metric of a cell whose gate fails."""

    model: str
    quantization: str
    metric: str
    layer: int | None
    bound: str = ""
    """the threshold as a reader writes it, ``≤ 1.2``; '' where there is none"""

    @property
    def cell(self) -> str:
        return f"{self.model}-{self.quantization}"


@dataclass(frozen=True)
class Snapshot:
    """Hold the part of one run's results that one gate depends on."""

    setup: Setup
    tokens: int
    """tokens that the cell was measured on"""
    reference: Mapping[str, Estimate]
    """the reference's indicators (:func:`model_indicators`), with those of the gate's layer"""
    own: Mapping[str, Estimate]
    """the quantized cell's indicators and the gated metric; empty for a gate on the reference itself"""
    bound: str = ""
    run_id: str = ""
    started: str = ""
    """start of a stored run, ISO 8601; '' for the run in progress"""
    failed_since: int = 0
    """number of later runs on this hardware in which the gate failed"""


@dataclass(frozen=True)
class Attribution:
    """Describe what moved, with the line that a failure message shows."""

    moved: Moved
    text: str
    """one line that begins with the name of ``moved``"""


@dataclass(frozen=True)
class _ModelChanges:
    """Hold the metrics of one of the two models, sorted into those that moved and those that did not."""

    name: str
    moves: list[str] = field(default_factory=list)
    rests: list[str] = field(default_factory=list)

    @property
    def changes(self) -> str:
        return ", ".join(self.moves or self.rests)

    def __str__(self) -> str:
        return f"{self.name} ({self.changes})"


MOVED_NAMES: Mapping[Moved, str] = {
    "reference": "the reference",
    "quantized": "the quantized model",
    "both": "both models",
    "neither": "neither model",
    "setup": "the setup",
    "unknown": "not known",
}


def choose_baseline(setups: Sequence[Setup], now: Setup) -> int | None:
    """Return the index of the run to compare with: the newest of the same setup, else the newest.

    ``setups``, newest first, are those of the runs in which the gate passed; None if there are none.
    """
    same = (index for index, setup in enumerate(setups) if not setup.differences(now))
    return next(same, 0 if setups else None)


def attribute(
    gate: FailedGate, now: Snapshot, before: Snapshot | None, noise: Mapping[str, float], absent: str = ""
) -> Attribution:
    """Return what moved between the last run in which the gate passed and now.

    Args:
        gate: the metric that failed, with its threshold now.
        before: the run to compare with, see :func:`choose_baseline`; None where there is none.
        noise: metric -> how far another batch size alone moved the reference's value, where that was
            measured.
        absent: why there is no run to compare with, where the caller knows more.
    """
    if before is None:
        why = absent or f"no accepted run of {gate.cell} on {now.setup.hardware} to compare with"
        return Attribution("unknown", f"{MOVED_NAMES['unknown']}: {why}")
    same_text = before.setup.corpus == now.setup.corpus
    reference = _ModelChanges("the reference")
    _compare(reference, before.reference, now.reference, _Tolerance(same_text, noise))
    quantized = _ModelChanges("the quantized model")
    # a metric relative to the reference moves with it; whether the quantized model moved too is then
    # decided by the metrics of that model alone
    deciding = [key for key in now.own if key != gate.metric] if reference.moves else [gate.metric]
    tolerance = _Tolerance(same_text, noise, (before.tokens, now.tokens), gate.metric)
    earlier, current = ({k: s.own[k] for k in deciding if k in s.own} for s in (before, now))
    _compare(quantized, earlier, current, tolerance)
    return _describe(gate, reference, quantized, before, before.setup.differences(now.setup))


def _describe(
    gate: FailedGate,
    reference: _ModelChanges,
    quantized: _ModelChanges,
    before: Snapshot,
    differences: list[str],
) -> Attribution:
    sides = [side for side in (reference, quantized) if side.moves or side.rests]
    if not sides:
        why = f"run {before.run_id}, the last accepted one, has none of the metrics that are compared"
        return Attribution("unknown", f"{MOVED_NAMES['unknown']}: {why}")
    movers = [side for side in sides if side.moves]
    against = f"run {before.run_id} of {before.started[:10]}, the last accepted one"
    if differences:
        against += " on this hardware"
    if before.failed_since:
        runs = "run" if before.failed_since == 1 else "runs"
        against += f", {before.failed_since} failed {runs} ago"
    rest = [f"{side} did not" for side in sides if not side.moves]
    moved: Moved = "neither"
    if movers and differences:
        moved = "setup"
        parts = [f"{', '.join(differences)}; with it {' and '.join(map(str, movers))}", *rest]
    elif movers:
        moved = "both" if len(movers) == 2 else "reference" if movers[0] is reference else "quantized"
        named = len(movers) == 2
        each = [f"{side.name} {side.changes}" if named else side.changes for side in movers]
        parts = [*each, *rest]
    else:
        threshold = "the value lies at its threshold, where it passed before"
        if gate.bound != before.bound:
            threshold = f"the threshold moved, {before.bound or 'none'} → {gate.bound or 'none'}"
        parts = [f"{', '.join(map(str, sides))} as before", threshold]
        parts += [f"though {', '.join(differences)}"] if differences else []
    return Attribution(moved, f"{MOVED_NAMES[moved]}: {'; '.join(parts)}; against {against}")


@dataclass(frozen=True)
class _Tolerance:
    """Hold how far a value may differ without its model having moved."""

    same_text: bool
    noise: Mapping[str, float]
    tokens: tuple[int, int] = (0, 0)
    gated: str = ""

    def of(self, metric: str, before: Estimate, after: Estimate) -> float:
        numerics = max(
            self.noise.get(metric, 0.0), REPEAT_TOLERANCE * max(abs(before.value), abs(after.value))
        )
        if metric == self.gated:
            numerics = max(numerics, INTERVAL_TOLERANCE * after.half_width)
        fewer, more = sorted(self.tokens)
        if self.same_text and fewer == more:
            return numerics
        if not self.same_text or fewer <= 0:  # two samples of text: their variances add
            return numerics + math.hypot(before.half_width, after.half_width)
        # the same text read further: the means over n and over m > n tokens differ with variance
        # s²(1/n - 1/m), and the interval on m tokens is the better estimate of s²/m
        width = (before if self.tokens[0] == more else after).half_width
        return numerics + width * math.sqrt(more / fewer - 1)


def _compare(
    side: _ModelChanges,
    before: Mapping[str, Estimate],
    after: Mapping[str, Estimate],
    tolerance: _Tolerance,
) -> None:
    """Sort the metrics that both runs have into those that moved and those that did not."""
    for metric, new in after.items():
        old = before.get(metric)
        if old is None:
            continue
        moved = math.isfinite(old.value) != math.isfinite(new.value)
        if math.isfinite(old.value) and math.isfinite(new.value):
            moved = abs(new.value - old.value) > tolerance.of(metric, old, new)
        width = f" ± {new.half_width:.2g}" if moved and new.half_width else ""
        change = f"{metric} {_number(old.value)} → {_number(new.value)}{width}"
        (side.moves if moved else side.rests).append(change if moved else f"{metric} {_number(new.value)}")


def _number(value: float) -> str:
    return f"{value:.6g}" if math.isfinite(value) else "not finite"


def model_indicators(
    cell: Mapping[str, Estimate], layer: Mapping[str, Estimate] | None
) -> dict[str, Estimate]:
    """Return the headline metrics of one model at a gate's place: of the cell, and of its layer if any.

    They move with their own model alone.
    """
    found = {key: (cell if METRICS[key].scope == "cell" else layer or {}) for key in headline("failure")}
    return {key: place[key] for key, place in found.items() if key in place}
