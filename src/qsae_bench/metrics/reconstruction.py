"""Measure how well the SAE reconstructs the residual stream that it is given.

``x`` is resid_post, ``x̂`` its reconstruction, ``f`` the feature activations. ``fvu`` divides by the
variance around the per-dimension mean (Gemma Scope's definition), over ordinary positions;
``fvu_scalar_bos`` by that around one scalar mean with BOS included (the study's), ``fvu_scalar`` the
same without BOS (the widely copied tutorial's).

Columns are over ordinary positions (:mod:`qsae_bench.metrics.sinks`); those with ``_all`` in their name are
over all valid positions, those with ``_bos`` over special tokens too.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from qsae_bench.metrics import sinks
from qsae_bench.metrics.base import (
    RESOLUTION,
    Formula,
    Least,
    Limits,
    Sums,
    Tolerance,
    masked_sums,
    of_rows,
    ratio,
)

if TYPE_CHECKING:
    import torch

    from qsae_bench.metrics.sinks import Positions


def total_variance(side: str, s: Sums, over: str = "") -> Any:
    """Return Σ‖x − μ‖² = Σ‖x‖² − ‖Σx‖²/N over the positions that ``over`` names.

    A difference that is not positive is all rounding, and NaN: a ratio to it would be a number.
    """
    variance = s[f"energy{over}_{side}"] - ratio(s[f"sumsq{over}_{side}"], s[f"positions{over}"])
    return np.where(np.less_equal(variance, 0), np.nan, variance)


def variance_scalar(side: str, s: Sums, over: str) -> Any:
    """Return Σ(x − m)² over elements, m the one mean of all of them."""
    elements = s[f"positions{over}"] * s["d_model"]
    return s[f"energy{over}_{side}"] - ratio(s[f"elements{over}_{side}"] ** 2, elements)


def fvu(side: str, over: str = "") -> Formula:
    """Return the formula of one side's fraction of variance unexplained."""
    return lambda s: ratio(s[f"error{over}_{side}"], total_variance(side, s, over))


def fvu_scalar(side: str, over: str) -> Formula:
    """Return the formula of FVU around one scalar mean."""
    return lambda s: ratio(s[f"error{over}_{side}"], variance_scalar(side, s, over))


_own = partial(
    of_rows, scope="layer", sides="model", limits=Limits.NOT_NEGATIVE, harmless=None,
    least_harm=Least.RELATIVE,
)  # fmt: skip
_error = partial(_own, unit="fraction", better="lower")
_description = partial(_own, better="neither")
_pair = partial(_own, sides="pair")

METRICS = (
    _error(key="fvu", headline_in=("stability", "study", "failure"), formula=fvu("q")),
    _pair(
        key="fvu_drift", unit="fraction", better="lower", limits=Limits.ANY_NUMBER, harmless=0.0,
        least_harm=Tolerance(2e-5), suspicious=Tolerance(relative=RESOLUTION, of="fvu"),
        headline_in=("comparison", "stability", "study", "history"),
        formula=lambda s: fvu("q")(s) - fvu("r")(s),
    ),
    _pair(
        key="fvu_fixed", unit="fraction", better="lower",
        formula=lambda s: ratio(s["error_q"], total_variance("r", s)),
    ),
    _error(key="fvu_all", least_harm=None, needs=sinks.WITH_SINKS, formula=fvu("q", "_all")),
    _pair(
        key="fvu_drift_all", unit="fraction", better="lower", limits=Limits.ANY_NUMBER, harmless=0.0,
        least_harm=None, needs=sinks.WITH_SINKS,
        formula=lambda s: fvu("q", "_all")(s) - fvu("r", "_all")(s),
    ),
    _error(
        key="fvu_scalar_bos", least_harm=None, headline_in=("study",), formula=fvu_scalar("q", "_bos")
    ),
    _error(key="fvu_scalar", least_harm=None, needs=sinks.WITH_SINKS, formula=fvu_scalar("q", "_all")),
    _error(
        key="mse", unit="activation units²",
        formula=lambda s: ratio(s["error_q"], s["positions"] * s["d_model"]),
    ),
    _description(
        key="fvu_denominator", unit="activation units²", formula=lambda s: total_variance("q", s)
    ),
    _description(
        key="l0", unit="features", headline_in=("study", "failure"),
        formula=lambda s: ratio(s["active_q"], s["positions"]),
    ),
    _pair(
        key="l0_ratio", unit="", better="neither", harmless=1.0,
        formula=lambda s: ratio(s["active_q"], s["active_r"]),
    ),
    _description(key="l2_ratio", unit="", formula=lambda s: ratio(s["norm_hat_q"], s["norm_q"])),
    _own(
        key="reconstruction_cosine", unit="", better="higher", limits=Limits.CORRELATION,
        least_harm=Least.SHARE, formula=lambda s: ratio(s["cosine_hat_q"], s["positions"]),
    ),
)  # fmt: skip


def side_columns(
    side: str, x: torch.Tensor, x_hat: torch.Tensor, active: torch.Tensor, positions: Positions
) -> dict[str, torch.Tensor]:
    """Compute one side's columns [batch] and vector columns ``sum*`` [batch, d_model] of a batch.

    Args:
        side: ``r`` for the reference, ``q`` for the cell.
        x: Residual stream [batch, length, d_model].
        x_hat: Its reconstruction, of the same shape.
        active: Number of active features [batch, length].
        positions: Which positions are ordinary.
    """
    import torch

    squares = x.square().sum(-1)
    error = (x - x_hat).square().sum(-1)
    norm, norm_hat = squares.sqrt(), torch.linalg.vector_norm(x_hat, dim=-1)
    cosine = (x * x_hat).sum(-1) / (norm * norm_hat).clamp_min(torch.finfo(x.dtype).tiny)
    valid, ordinary = positions.valid, positions.ordinary
    total = _vector_sum(x, ordinary)
    # the sum over positions that are left out, which is 0 where none is
    left_out = _vector_sum(x, valid & ~ordinary) if positions.have_sinks else torch.zeros_like(total)
    centre = (total / ordinary.sum(1, keepdim=True).clamp_min(1)).to(x.dtype)
    spread = (x - centre.unsqueeze(1)).square().sum(-1)
    every = torch.ones_like(valid)
    columns = masked_sums(
        {
            "energy": spread, "error": error, "norm": norm, "norm_hat": norm_hat, "cosine_hat": cosine,
            "active": active,
        },
        ordinary,
    )  # fmt: skip
    elements = x.sum(-1)
    columns |= masked_sums({"energy_all": spread, "error_all": error, "elements_all": elements}, valid)
    columns |= masked_sums({"energy_bos": squares, "error_bos": error, "elements_bos": elements}, every)
    columns["energy"] += _taken_off(centre, total, ordinary)
    columns["energy_all"] += _taken_off(centre, total + left_out, valid)
    columns |= {"sum": total, "sum_sinks": left_out}
    return {f"{key}_{side}": value for key, value in columns.items()}


def _taken_off(centre: torch.Tensor, total: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return Σ‖x‖² − Σ‖x − c‖² [batch] in float64, from the centre c and the sum Σx [batch, d_model].

    Squares of float32 residuals whose mean is a thousand times their standard deviation hold nothing of the
    variance but rounding. About a sequence's own mean they do, and what that took off is known exactly.
    """
    c = centre.double()
    return (c * (2 * total - mask.sum(1, keepdim=True) * c)).sum(1)


def _vector_sum(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    import torch

    return torch.where(mask.unsqueeze(-1), x, 0.0).sum(1, dtype=torch.float64)
