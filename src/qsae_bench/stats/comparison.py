"""Compare measurements A and B: check that they are comparable, test every metric, and give verdicts. Pure.

The tests of one question are corrected together (Holm 1979). Intervals are those of each metric alone, not
corrected.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from qsae_bench.errors import QsaeError, did_you_mean
from qsae_bench.metrics import GROUPS, METRICS, headline
from qsae_bench.metrics.base import Metric
from qsae_bench.metrics.measurement import Measurement, Rows, first_sequences
from qsae_bench.stats.documents import document_of
from qsae_bench.stats.permutation import Contrast, Resampling, feature_tests, row_tests

COMPARISON_ALPHA = 0.05
"""largest adjusted p with which a difference counts as shown"""

ComparisonVerdict = Literal["better", "worse", "differs", "no difference shown", "not tested"]


SAME_REFERENCE = 1e-6
"""relative difference between sums of the reference that recomputation on one machine explains"""


def check_comparable(
    a: Measurement, b: Measurement, metrics: Sequence[Metric], same_reference: float = SAME_REFERENCE
) -> None:
    """Check that A and B used the same sequences, the same reference and the same SAEs.

    The rows themselves show it: they hold the reference's sums of every sequence beside the cell's, over
    all valid positions, because each cell leaves out its own sinks too. Layers, and with them the SAEs, are
    checked only where ``metrics`` has one of scope "layer".

    Args:
        same_reference: largest relative difference between sums of the same reference.

    Raises:
        QsaeError: they differ, or a value is not finite; the message names what differs and what to do.
    """
    if a.model != b.model:
        raise QsaeError(f"another model: {a.model} and {b.model}; compare cells of one model")
    if a.corpus_fingerprint != b.corpus_fingerprint:
        raise QsaeError(
            f"another corpus: {len(a.rows)} sequences of fingerprint {a.corpus_fingerprint} and "
            f"{len(b.rows)} of {b.corpus_fingerprint}; measure both with the same --corpus and --tokens"
        )
    for one in (a, b):
        if not one.is_finite:
            raise QsaeError(f"{one.model}-{one.quantization}: non-finite values, nothing can be compared")
    if not _same_documents(a.rows, b.rows):
        raise QsaeError(
            "the same sequences count as other documents in A than in B; measure both with the same "
            "--sequences-per-document"
        )
    advice = "measure both with the same library versions, device and --batch-size, or in one run"
    for key in ("nll_r", "tokens"):
        if (gap := _gap(a.rows, b.rows, key)) > same_reference:
            raise QsaeError(f"another reference: {key} differs by up to {gap:.2g} (relative); {advice}")
    if not any(metric.scope == "layer" for metric in metrics):
        return
    for layer in common_layers(a, b):
        for key in ("energy_all_r", "positions_all", "sinks"):
            if (gap := _gap(a.layers[layer], b.layers[layer], key)) > same_reference:
                raise QsaeError(
                    f"another reference: {key} of layer {layer} differs by up to {gap:.2g} (relative); "
                    f"{advice}"
                )
        if (gap := _gap(a.layers[layer], b.layers[layer], "error_all_r")) > same_reference:
            raise QsaeError(
                f"another SAE at layer {layer}: on the same residual stream error_all_r differs by up to "
                f"{gap:.2g} (relative); measure both with the same SAE, or choose --metrics of the cell"
            )


def on_common_sequences(a: Measurement, b: Measurement) -> tuple[Measurement, Measurement]:
    """Return both, reduced to the sequences that both used; an undecided cell was measured on more.

    Both begin with the same corpus, or they are not comparable. Feature sums can't be reduced, so they are
    left out where the two differ in length.
    """
    common = min(len(a.rows), len(b.rows))
    if len(a.rows) == len(b.rows):
        return a, b
    return first_sequences(a, common), first_sequences(b, common)


def _same_documents(a: Rows, b: Rows) -> bool:
    """Return whether both count the same sequences as one document, as far as both know."""
    known = a.documents is not None and b.documents is not None
    return not known or np.array_equal(document_of(a), document_of(b))


def _gap(a: Rows, b: Rows, key: str) -> float:
    """Return the largest relative difference of one column over all sequences."""
    one, other = a.scalars[key], b.scalars[key]
    size = np.maximum(np.abs(one), np.abs(other))
    return float(np.divide(np.abs(one - other), size, out=np.zeros(len(size)), where=size > 0).max())


def common_layers(a: Measurement, b: Measurement) -> list[int]:
    """Return the layers that both were measured at."""
    return [layer for layer in a.layers if layer in b.layers]


@dataclass(frozen=True)
class Difference:
    """Hold the comparison of one metric of A and of B, at one layer or (None) of the cell."""

    metric: str
    layer: int | None
    tested: Contrast
    adjusted_p: float | None = None
    verdict: ComparisonVerdict = "not tested"
    """verdict on A: "better" means that A is better than B; "differs" where neither direction is better"""


def metrics_to_test(names: Iterable[str]) -> list[Metric]:
    """Return the named metrics, each once.

    Raises:
        QsaeError: a name is unknown, or the metric can't be tested.
    """
    found = []
    for name in dict.fromkeys(names):
        if name not in METRICS:
            near = did_you_mean(name, (key for key, metric in METRICS.items() if is_testable(metric)))
            raise QsaeError(f"unknown metric {name!r}{near}")
        if not is_testable(METRICS[name]):
            shown = name in GROUPS["cost"] | GROUPS["weights"]
            why = "is shown beside, not tested" if shown else "has no paired test"
            raise QsaeError(f"{name} {why}; the headline metrics are: {', '.join(headline('comparison'))}")
        found.append(METRICS[name])
    return found


def is_testable(metric: Metric) -> bool:
    """Return whether two cells can be tested for it: it is a function of row sums, or has a jackknife."""
    return metric.formula is not None or metric.interval == "jackknife"


def differences(
    a: Measurement, b: Measurement, metrics: Sequence[Metric], how: Resampling | None = None
) -> list[Difference]:
    """Return A − B of each metric, first of the cell, then layer by layer, without verdicts.

    What was not measured in both is left out: a layer, a metric's column, the feature vectors. These also
    where only one side's are in blocks of documents: rows of earlier versions have blocks of sequences.

    Args:
        a: comparable with ``b``, see :func:`check_comparable`, and of the same length.
        how: numbers of replicates and the seed; the defaults if None.
    """
    how = how or Resampling()
    constants = {"d_model": float(a.d_model)}
    places = [(None, a.rows, b.rows), *((k, a.layers[k], b.layers[k]) for k in common_layers(a, b))]
    found: list[Difference] = []
    for layer, rows_a, rows_b in places:
        here = [metric for metric in metrics if metric.scope == ("cell" if layer is None else "layer")]
        columns = {"", *(rows_a.scalars.keys() & rows_b.scalars.keys())}
        summed = [m for m in here if m.formula and m.needs in columns]
        tested = row_tests(rows_a, rows_b, summed, constants, how) if summed else {}
        same_blocks = (a.rows.documents is None) == (b.rows.documents is None)
        if layer is not None and same_blocks and layer in a.features and layer in b.features:
            keys = [metric.key for metric in here if metric.formula is None]
            tested |= feature_tests(a.features[layer], b.features[layer], keys, how.level)
        found += [Difference(m.key, layer, tested[m.key]) for m in here if m.key in tested]
    return found


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p values adjusted for multiple tests, in the order given (Holm 1979).

    The smallest of m is multiplied by m, the next by m − 1, …; none falls below the adjusted value of a
    smaller one, and none exceeds 1.
    """
    order = np.argsort(p_values, kind="stable")
    adjusted = np.empty(len(order))
    in_order = np.asarray(p_values)[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.maximum.accumulate(np.minimum(in_order, 1.0))
    return adjusted.tolist()


def with_verdicts(
    pairs: Sequence[Sequence[Difference]], alpha: float = COMPARISON_ALPHA
) -> list[list[Difference]]:
    """Return the differences with adjusted p and verdict; the tests of all pairs are one family."""
    known = [d.tested.p for pair in pairs for d in pair if d.tested.p is not None]
    adjusted = iter(holm(known))
    return [
        [d if d.tested.p is None else _judged(d, next(adjusted), alpha) for d in pair] for pair in pairs
    ]


def _judged(difference: Difference, adjusted: float, alpha: float) -> Difference:
    direction = METRICS[difference.metric].better
    verdict: ComparisonVerdict = "differs"
    if adjusted > alpha:
        verdict = "no difference shown"
    elif direction != "neither":
        is_less = difference.tested.difference.value < 0
        verdict = "better" if is_less == (direction == "lower") else "worse"
    return replace(difference, adjusted_p=adjusted, verdict=verdict)
