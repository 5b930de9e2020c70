"""Declare what splicing the SAE into the model costs in loss, in the cell and in the reference.

The columns ``spliced_*`` and ``ablated_*`` are nll sums with the residual replaced at valid positions by
the SAE's reconstruction, or by the mean vector; ``nll_*`` are those without.
:mod:`qsae_bench.measure.splice` measures them.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from qsae_bench.metrics.base import RESOLUTION, Least, Limits, Sums, Tolerance, of_rows, ratio

COLUMN = "spliced_q"
"""column of a layer that only a run with ``--splice`` has"""


def splice_loss(side: str, s: Sums) -> Any:
    """Return what replacing the residual by its reconstruction costs one side, in nats per token."""
    return ratio(s[f"spliced_{side}"] - s[f"nll_{side}"], s["tokens"])


_splice = partial(of_rows, scope="layer", limits=Limits.ANY_NUMBER, needs=COLUMN)

METRICS = (
    _splice(
        key="splice_loss", unit="nats/token", sides="model", better="lower", harmless=None,
        least_harm=Least.NATS_PER_TOKEN, formula=lambda s: splice_loss("q", s),
    ),
    _splice(
        key="splice_excess", unit="nats/token", sides="pair", better="lower", harmless=0.0,
        least_harm=Least.NATS_PER_TOKEN, suspicious=Tolerance(RESOLUTION),
        formula=lambda s: splice_loss("q", s) - splice_loss("r", s),
    ),
    _splice(
        key="loss_recovered", unit="fraction", sides="model", better="higher", harmless=None,
        least_harm=Least.SHARE,
        formula=lambda s: ratio(s["ablated_q"] - s["spliced_q"], s["ablated_q"] - s["nll_q"]),
    ),
)  # fmt: skip
