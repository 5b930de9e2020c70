"""Measure how well the SAE reconstructs the residual stream that it is given.

``x`` is resid_post, ``x̂`` its reconstruction, ``f`` the feature activations. ``fvu`` divides by the
variance around the per-dimension mean over valid positions (Gemma Scope's definition);
``fvu_scalar_bos`` by that around one scalar mean with BOS included (the study's), ``fvu_scalar`` the
same without BOS (the widely copied tutorial's).
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

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


def total_variance(side: str, s: Sums) -> Any:
    """Return Σ‖x − μ‖² = Σ‖x‖² − ‖Σx‖²/N over valid positions."""
    return s[f"energy_{side}"] - ratio(s[f"sumsq_{side}"], s["positions"])


def variance_no_sinks(side: str, s: Sums) -> Any:
    """Return Σ‖x − μ‖² over valid positions that are no sinks, with their own mean."""
    energy = s[f"energy_{side}"] - s[f"sink_energy_{side}"]
    return energy - ratio(s[f"sumsq_nosink_{side}"], s["positions"] - s["sinks"])


def variance_scalar(side: str, s: Sums, bos: str) -> Any:
    """Return Σ(x − m)² over elements, m the one mean of all of them; ``bos`` '_bos' includes BOS."""
    elements = s[f"positions{bos}"] * s["d_model"]
    return s[f"energy{bos}_{side}"] - ratio(s[f"elements{bos}_{side}"] ** 2, elements)


def fvu(side: str) -> Formula:
    """Return the formula of one side's fraction of variance unexplained."""
    return lambda s: ratio(s[f"error_{side}"], total_variance(side, s))


def fvu_scalar(side: str, bos: str) -> Formula:
    """Return the formula of FVU around one scalar mean; ``bos`` '_bos' includes BOS."""
    return lambda s: ratio(s[f"error{bos}_{side}"], variance_scalar(side, s, bos))


def fvu_no_sinks(s: Sums) -> Any:
    """Return the cell's FVU over valid positions that are no sinks."""
    return ratio(s["error_q"] - s["sink_error_q"], variance_no_sinks("q", s))


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
    _error(key="fvu_no_sinks", formula=fvu_no_sinks),
    _error(
        key="fvu_scalar_bos", least_harm=None, headline_in=("study",), formula=fvu_scalar("q", "_bos")
    ),
    _error(key="fvu_scalar", formula=fvu_scalar("q", "")),
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
    _description(
        key="sink_share", unit="fraction", sides="reference", limits=Limits.FRACTION,
        formula=lambda s: ratio(s["sinks"], s["positions"]),
    ),
)  # fmt: skip


def side_columns(
    side: str,
    x: torch.Tensor,
    x_hat: torch.Tensor,
    active: torch.Tensor,
    valid: torch.Tensor,
    sinks: torch.Tensor,
) -> dict[str, torch.Tensor]:
    """Compute one side's columns [batch] and vector columns ``sum*`` [batch, d_model] of a batch.

    Args:
        side: ``r`` for the reference, ``q`` for the cell.
        x: Residual stream [batch, length, d_model].
        x_hat: Its reconstruction, of the same shape.
        active: Number of active features [batch, length].
        valid: Which positions are no special tokens, bool [batch, length].
        sinks: Which of the valid positions are sinks of the reference, bool [batch, length].
    """
    import torch

    energy = x.square().sum(-1)
    error = (x - x_hat).square().sum(-1)
    norm, norm_hat = energy.sqrt(), torch.linalg.vector_norm(x_hat, dim=-1)
    tiny = torch.finfo(x.dtype).tiny
    cosine = (x * x_hat).sum(-1) / (norm * norm_hat).clamp_min(tiny)
    elements = x.sum(-1)
    columns = masked_sums(
        {
            "energy": energy, "error": error, "elements": elements, "norm": norm,
            "norm_hat": norm_hat, "cosine_hat": cosine,
            "active": active,
        },
        valid,
    )  # fmt: skip
    columns |= masked_sums({"sink_energy": energy, "sink_error": error}, sinks)
    columns |= masked_sums(
        {"energy_bos": energy, "error_bos": error, "elements_bos": elements}, torch.ones_like(valid)
    )
    columns["sum"] = torch.where(valid.unsqueeze(-1), x, 0.0).sum(1, dtype=torch.float64)
    columns["sum_sink"] = torch.where(sinks.unsqueeze(-1), x, 0.0).sum(1, dtype=torch.float64)
    return {f"{key}_{side}": value for key, value in columns.items()}


def shared_columns(valid: torch.Tensor, sinks: torch.Tensor) -> dict[str, torch.Tensor]:
    """Count the positions [batch] that both sides have in common."""
    import torch

    length = torch.full(valid.shape[:1], valid.shape[1], dtype=torch.float64, device=valid.device)
    return {
        "positions": valid.sum(1, dtype=torch.float64),
        "positions_bos": length,
        "sinks": sinks.sum(1, dtype=torch.float64),
    }
