"""Compute how headline metrics settle as more sequences are measured. Pure: numpy and scipy only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from qsae_bench.metrics import headline
from qsae_bench.metrics.measurement import Measurement, first_sequences
from qsae_bench.stats.bootstrap import FEWEST_ROWS, REPLICATES, Estimate, Estimates, estimate
from qsae_bench.stats.documents import document_count

STABILITY_PARTS = (8, 4, 2, 1)
STUDY_TOKENS = (5_000, 20_000, 50_000, 100_000, 200_000, 500_000)
"""tokens at which the study took snapshots of its FVU"""


def stability(
    measurement: Measurement, snapshots: Sequence[int] = (), replicates: int = REPLICATES // 4
) -> dict[int, Estimates]:
    """Return headline estimates on an eighth, a quarter, a half and all of the rows, by number of tokens.

    Args:
        measurement: rows of one cell; feature metrics are left out, because their sums can't be cut.
        snapshots: numbers of tokens. If given, the estimates are on the fewest rows that hold each of
            these, and on all rows.
        replicates: bootstrap replicates.
    """
    rows, keys = len(measurement.rows), headline("study" if snapshots else "stability")
    pieces = [rows // part for part in STABILITY_PARTS]
    if snapshots:
        tokens = np.cumsum(measurement.rows.scalars["tokens"])
        pieces = [int(np.searchsorted(tokens, at)) + 1 for at in snapshots if at <= tokens[-1]] + [rows]
    found = {}
    for sequences in sorted(set(pieces)):
        piece = first_sequences(measurement, sequences)
        if document_count(piece.rows) >= FEWEST_ROWS:
            every = estimate(piece, replicates)
            found[piece.rows.tokens] = Estimates(
                _headline(every.cell, keys), {k: _headline(e, keys) for k, e in every.layers.items()}
            )
    return found


def _headline(estimates: Mapping[str, Estimate], keys: Sequence[str]) -> dict[str, Estimate]:
    return {key: estimates[key] for key in keys if key in estimates}


def still_moving(history: Mapping[int, Estimates]) -> list[str]:
    """Return the headline metrics that moved by more than their interval from half the tokens to all.

    The change between nested halves has the standard error of the whole, so a stable metric does this about
    once in ten thousand times. ``history`` is what :func:`stability` returns.
    """
    if len(history) < 2:
        return []
    half, whole = (history[tokens] for tokens in sorted(history)[-2:])

    return [
        key if layer is None else f"{key} (layer {layer})"
        for layer in (None, *whole.layers)
        for key, e in whole.at(layer).items()
        if e.half_width > 0 and abs(e.value - half.at(layer)[key].value) > 2 * e.half_width
    ]
