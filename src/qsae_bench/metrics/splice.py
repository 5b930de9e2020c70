"""SAE spliced into the model: what its reconstruction costs in loss, in the cell and in the reference.

``spliced`` and ``ablated`` are nll sums with the residual replaced at valid positions by the SAE's
reconstruction, or by the mean vector; ``nll`` is the clean one.
"""

from __future__ import annotations

from typing import Any

from qsae_bench.metrics.base import Metric, Sums, ratio

COLUMN = "spliced_q"
"""present in a layer's rows only when the run spliced"""


def loss(side: str, s: Sums) -> Any:
    return ratio(s[f"spliced_{side}"] - s[f"nll_{side}"], s["tokens"])


METRICS = (
    Metric("splice_loss", "nats/token", "layer", "lower", lambda s: loss("q", s), needs=COLUMN),
    Metric(
        "splice_excess", "nats/token", "layer", "lower",
        lambda s: loss("q", s) - loss("r", s), needs=COLUMN,
    ),
    Metric(
        "loss_recovered", "fraction", "layer", "higher",
        lambda s: ratio(s["ablated_q"] - s["spliced_q"], s["ablated_q"] - s["nll_q"]), needs=COLUMN,
    ),
)  # fmt: skip
