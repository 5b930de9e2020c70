"""Measure how far quantization moved the residual stream, and what the SAE makes of the moved one.

The cross terms with the SAE stand here because they compare the cell with the reference position by
position, as the perturbation does.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from qsae_bench.metrics import sinks
from qsae_bench.metrics.base import Formula, Least, Limits, Metric, Sums, masked_sums, of_rows, ratio
from qsae_bench.metrics.reconstruction import fvu, total_variance

if TYPE_CHECKING:
    import torch

    from qsae_bench.metrics.sinks import Positions

Reading = Literal["informative", "uninformative", "with care"]

INFORMATIVE = 1.0
"""the study's ratios from here on: it calls a flat FVU informative"""
UNINFORMATIVE = 0.1
"""the study's ratios below: it calls a flat FVU uninformative"""


def over_variance(column: str, over: str = "") -> Formula:
    """Return the formula of a mean squared distance in units of V_r = E‖x_r − μ_r‖²."""
    return lambda s: ratio(s[f"{column}{over}"], total_variance("r", s, over))


def resolution_ratio(s: Sums) -> Any:
    """Return the perturbation over what the SAE leaves unexplained of the reference, both squared."""
    return ratio(over_variance("moved")(s), fvu("r")(s))


OF_THE_REFERENCE = {"cross_error": "error_r", "cross_error_all": "error_all_r"}
"""column of the pair -> the column that has its value where the cell is the reference itself"""

_pair = partial(of_rows, scope="layer", sides="pair", least_harm=Least.RELATIVE)
_distance = partial(_pair, better="lower", limits=Limits.NOT_NEGATIVE, harmless=0.0)

METRICS = (
    _distance(
        key="perturbation_nsr", unit="fraction of variance", headline_in=("comparison",),
        formula=over_variance("moved"),
    ),
    _distance(
        key="perturbation_nsr_all", unit="fraction of variance", least_harm=None, needs=sinks.WITH_SINKS,
        formula=over_variance("moved", "_all"),
    ),
    _distance(
        key="perturbation_rel_l2", unit="", formula=lambda s: np.sqrt(ratio(s["moved"], s["energy_r"]))
    ),
    _distance(
        key="perturbation_token_l2", unit="activation units",
        formula=lambda s: ratio(s["moved_norm"], s["positions"]),
    ),
    _distance(
        key="mean_shift", unit="fraction of variance",
        formula=lambda s: ratio(ratio(s["sumsq_shift"], s["positions"]), total_variance("r", s)),
    ),
    _pair(
        key="residual_cosine", unit="", better="higher", limits=Limits.CORRELATION, harmless=1.0,
        least_harm=Least.SHARE, formula=lambda s: ratio(s["cosine"], s["positions"]),
    ),
    _pair(
        key="resolution_ratio", unit="", better="neither", limits=Limits.NOT_NEGATIVE, harmless=0.0,
        formula=resolution_ratio,
    ),
    Metric(
        key="drift_resolution", unit="", scope="layer", sides="pair", better="lower",
        limits=Limits.NOT_NEGATIVE, harmless=None, least_harm=None, suspicious=None, headline_in=(),
        interval="none", not_own_when=(), over_shards="rows", formula=None,
    ),
    _distance(key="cross_fvu", unit="fraction", harmless=None, formula=over_variance("cross_error")),
    _distance(
        key="cross_fvu_all", unit="fraction", harmless=None, least_harm=None, needs=sinks.WITH_SINKS,
        formula=over_variance("cross_error", "_all"),
    ),
    _distance(key="decoded_drift", unit="fraction", formula=over_variance("decoded_moved")),
)  # fmt: skip


def read_resolution(ratios: list[float]) -> Reading:
    """Classify resolution ratios (of layers, or of models) in the three ways of the study.

    It is the study's own reading, for its own tables. The suite's is
    :func:`qsae_bench.stats.flat_fvu.read_flat_fvu`.
    """
    if all(value >= INFORMATIVE for value in ratios):
        return "informative"
    if all(value < UNINFORMATIVE for value in ratios):
        return "uninformative"
    return "with care"


def columns(
    x_r: torch.Tensor,
    x_q: torch.Tensor,
    decoded_r: torch.Tensor,
    decoded_q: torch.Tensor,
    positions: Positions,
) -> dict[str, torch.Tensor]:
    """Compute the columns [batch] of one batch.

    Args:
        x_r: Residual stream of the reference [batch, length, d_model].
        x_q: That of the cell.
        decoded_r: What the SAE makes of ``x_r``, of the same shape.
        decoded_q: What it makes of ``x_q``.
        positions: Which positions are ordinary.
    """
    import torch

    moved = (x_q - x_r).square().sum(-1)
    norms = torch.linalg.vector_norm(x_q, dim=-1) * torch.linalg.vector_norm(x_r, dim=-1)
    # cos = 1 − ‖u − v‖²/2 of unit vectors would lose small angles; the dot product does not, but equal
    # vectors must give exactly 1
    cosine = (x_q * x_r).sum(-1) / norms.clamp_min(torch.finfo(norms.dtype).tiny)
    cross_error = (x_r - decoded_q).square().sum(-1)
    found = masked_sums(
        {
            "moved": moved,
            "moved_norm": moved.sqrt(),
            "cosine": torch.where(moved == 0, 1.0, cosine),
            "cross_error": cross_error,
            "decoded_moved": (decoded_q - decoded_r).square().sum(-1),
        },
        positions.ordinary,
    )
    if not positions.have_sinks:
        return found | {f"{key}_all": found[key] for key in ("moved", "cross_error")}
    return found | masked_sums({"moved_all": moved, "cross_error_all": cross_error}, positions.valid)
