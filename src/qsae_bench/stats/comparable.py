"""Whether two measurements may be paired: the same sequences, the same reference, the same SAEs.

Pure. The rows themselves tell: they hold the reference's sums of every sequence beside the cell's.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qsae_bench.errors import QsaeError
from qsae_bench.metrics.base import Metric
from qsae_bench.metrics.measurement import Measurement, Rows
from qsae_bench.stats.bootstrap import prefix

SAME_REFERENCE = 1e-6
"""relative agreement of the references' sums of a sequence: what is computed anew on the same machine"""


def check_comparable(a: Measurement, b: Measurement, metrics: Sequence[Metric]) -> None:
    """Both saw the same sequences, beside the same reference, through the same SAEs.

    Layers, and with them the SAEs, are looked at only where a metric is taken there.

    Raises:
        QsaeError: they did not, or a number is not finite; says which and what to do.
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
    advice = "measure both with the same library versions, device and --batch-size, or in one run"
    for key in ("nll_r", "tokens"):
        if (gap := _gap(a.rows, b.rows, key)) > SAME_REFERENCE:
            raise QsaeError(f"another reference: {key} differs by up to {gap:.2g} (relative); {advice}")
    if not any(metric.scope == "layer" for metric in metrics):
        return
    for layer in common_layers(a, b):
        for key in ("energy_r", "positions"):
            if (gap := _gap(a.layers[layer], b.layers[layer], key)) > SAME_REFERENCE:
                raise QsaeError(
                    f"another reference: {key} of layer {layer} differs by up to {gap:.2g} (relative); "
                    f"{advice}"
                )
        if (gap := _gap(a.layers[layer], b.layers[layer], "error_r")) > SAME_REFERENCE:
            raise QsaeError(
                f"another SAE at layer {layer}: on the same residual stream error_r differs by up to "
                f"{gap:.2g} (relative); measure both with the same SAE, or choose --metrics of the cell"
            )


def on_common_sequences(a: Measurement, b: Measurement) -> tuple[Measurement, Measurement]:
    """Both on the sequences that both saw: a cell that was undecided ran on beyond the other.

    Both began with the same corpus, or they are not comparable. Feature sums can't be cut: they stay
    only where nothing has to be.
    """
    common = min(len(a.rows), len(b.rows))
    if len(a.rows) == len(b.rows):
        return a, b
    return prefix(a, common), prefix(b, common)


def _gap(a: Rows, b: Rows, key: str) -> float:
    """The largest relative difference of one column, over sequences."""
    one, other = a.scalars[key], b.scalars[key]
    size = np.maximum(np.abs(one), np.abs(other))
    return float(np.divide(np.abs(one - other), size, out=np.zeros(len(size)), where=size > 0).max())


def common_layers(a: Measurement, b: Measurement) -> list[int]:
    return [layer for layer in a.layers if layer in b.layers]
