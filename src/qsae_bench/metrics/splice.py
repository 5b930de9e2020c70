"""Declares what splicing the SAE into the model costs in loss, in the cell and in the reference.

The columns ``spliced_*`` and ``ablated_*`` are nll sums with the residual replaced at valid positions by
the SAE's reconstruction, or by the mean vector; ``nll_*`` are those without.
:mod:`qsae_bench.measure.splice` measures them.
"""

from __future__ import annotations

from typing import Any

from qsae_bench.metrics.base import (
    ANY_NUMBER,
    LEAST_NATS_PER_TOKEN,
    LEAST_SHARE,
    RESOLUTION,
    Metric,
    Sums,
    Tolerance,
    ratio,
)

COLUMN = "spliced_q"
"""column of a layer that only a run with ``--splice`` has"""


def splice_loss(side: str, s: Sums) -> Any:
    """Return what replacing the residual by its reconstruction costs one side, in nats per token."""
    return ratio(s[f"spliced_{side}"] - s[f"nll_{side}"], s["tokens"])


METRICS = (
    Metric(
        key="splice_loss", unit="nats/token", scope="layer", sides="model", better="lower",
        limits=ANY_NUMBER, harmless=None, least_harm=LEAST_NATS_PER_TOKEN, suspicious=None, headline_in=(),
        interval="bootstrap", not_own_when=(), formula=lambda s: splice_loss("q", s), needs=COLUMN,
    ),
    Metric(
        key="splice_excess", unit="nats/token", scope="layer", sides="pair", better="lower",
        limits=ANY_NUMBER, harmless=0.0, least_harm=LEAST_NATS_PER_TOKEN, suspicious=Tolerance(RESOLUTION),
        headline_in=(), interval="bootstrap", not_own_when=(),
        formula=lambda s: splice_loss("q", s) - splice_loss("r", s), needs=COLUMN,
    ),
    Metric(
        key="loss_recovered", unit="fraction", scope="layer", sides="model", better="higher",
        limits=ANY_NUMBER, harmless=None, least_harm=LEAST_SHARE, suspicious=None, headline_in=(),
        interval="bootstrap", not_own_when=(),
        formula=lambda s: ratio(s["ablated_q"] - s["spliced_q"], s["ablated_q"] - s["nll_q"]), needs=COLUMN,
    ),
)  # fmt: skip
