"""Measure how far quantization moved the residual stream, and what the SAE makes of the moved one.

The cross terms with the SAE stand here because they compare the cell with the reference position by
position, as the perturbation does.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from qsae_bench.metrics.base import Formula, Least, Limits, Sums, masked_sums, of_rows, ratio
from qsae_bench.metrics.reconstruction import fvu, total_variance

if TYPE_CHECKING:
    import torch

Reading = Literal["informative", "uninformative", "with care"]

INFORMATIVE = 1.0
"""ratios from here on: a flat FVU is a finding"""
UNINFORMATIVE = 0.1
"""ratios below: a flat FVU could not have been otherwise"""


def over_variance(column: str) -> Formula:
    """Return the formula of a mean squared distance in units of V_r = E‖x_r − μ_r‖²."""
    return lambda s: ratio(s[column], total_variance("r", s))


def resolution_ratio(s: Sums) -> Any:
    """Return the perturbation over what the SAE leaves unexplained of the reference, both squared."""
    return ratio(over_variance("moved")(s), fvu("r")(s))


OF_THE_REFERENCE = {"cross_error": "error_r"}
"""column of the pair -> the column that has its value where the cell is the reference itself"""

_pair = partial(of_rows, scope="layer", sides="pair", least_harm=Least.RELATIVE)
_distance = partial(_pair, better="lower", limits=Limits.NOT_NEGATIVE, harmless=0.0)

METRICS = (
    _distance(
        key="perturbation_nsr", unit="fraction of variance", headline_in=("comparison",),
        formula=over_variance("moved"),
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
    _distance(key="cross_fvu", unit="fraction", harmless=None, formula=over_variance("cross_error")),
    _distance(key="decoded_drift", unit="fraction", formula=over_variance("decoded_moved")),
)  # fmt: skip


def read_resolution(ratios: list[float]) -> Reading:
    """Classify resolution ratios (of layers, or of models) in the three ways of the study.

    A perturbation at or above what the SAE leaves unexplained could have shown in the FVU, so that a flat
    FVU means something; one far below it could not.
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
    valid: torch.Tensor,
) -> dict[str, torch.Tensor]:
    """Compute the columns [batch] of one batch.

    Args:
        x_r: Residual stream of the reference [batch, length, d_model].
        x_q: That of the cell.
        decoded_r: What the SAE makes of ``x_r``, of the same shape.
        decoded_q: What it makes of ``x_q``.
        valid: Which positions are no special tokens, bool [batch, length].
    """
    import torch

    moved = (x_q - x_r).square().sum(-1)
    norms = torch.linalg.vector_norm(x_q, dim=-1) * torch.linalg.vector_norm(x_r, dim=-1)
    # cos = 1 − ‖u − v‖²/2 of unit vectors would lose small angles; the dot product does not, but equal
    # vectors must give exactly 1
    cosine = (x_q * x_r).sum(-1) / norms.clamp_min(torch.finfo(norms.dtype).tiny)
    return masked_sums(
        {
            "moved": moved,
            "moved_norm": moved.sqrt(),
            "cosine": torch.where(moved == 0, 1.0, cosine),
            "cross_error": (x_r - decoded_q).square().sum(-1),
            "decoded_moved": (decoded_q - decoded_r).square().sum(-1),
        },
        valid,
    )
