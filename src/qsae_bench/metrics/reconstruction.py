"""SAE reconstruction: how well the SAE explains the residual stream it is given.

``x`` is resid_post, ``x̂`` its reconstruction, ``f`` the feature activations. ``fvu`` divides by the
variance around the per-dimension mean over valid positions (Gemma Scope's definition);
``fvu_scalar_bos`` by that around one scalar mean with BOS included (the study's), ``fvu_scalar`` the
same without BOS (the widely copied tutorial's).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qsae_bench.metrics.base import Metric, Sums, masked_sums, ratio

if TYPE_CHECKING:
    import torch


def spread(side: str, s: Sums) -> Any:
    """Σ‖x − μ‖² = Σ‖x‖² − ‖Σx‖²/N, over valid positions."""
    return s[f"energy_{side}"] - ratio(s[f"sumsq_{side}"], s["positions"])


def spread_no_sinks(side: str, s: Sums) -> Any:
    energy = s[f"energy_{side}"] - s[f"sink_energy_{side}"]
    return energy - ratio(s[f"sumsq_nosink_{side}"], s["positions"] - s["sinks"])


def spread_scalar(side: str, s: Sums, bos: str) -> Any:
    """Σ(x − m)² over elements, m the one mean of all of them."""
    elements = s[f"positions{bos}"] * s["d_model"]
    return s[f"energy{bos}_{side}"] - ratio(s[f"elements{bos}_{side}"] ** 2, elements)


def fvu(side: str) -> Any:
    return lambda s: ratio(s[f"error_{side}"], spread(side, s))


def fvu_scalar(side: str, bos: str) -> Any:
    return lambda s: ratio(s[f"error{bos}_{side}"], spread_scalar(side, s, bos))


def fvu_no_sinks(s: Sums) -> Any:
    return ratio(s["error_q"] - s["sink_error_q"], spread_no_sinks("q", s))


METRICS = (
    Metric("fvu", "fraction", "layer", "lower", fvu("q")),
    Metric("fvu_drift", "fraction", "layer", "lower", lambda s: fvu("q")(s) - fvu("r")(s)),
    Metric("fvu_fixed", "fraction", "layer", "lower", lambda s: ratio(s["error_q"], spread("r", s))),
    Metric("fvu_no_sinks", "fraction", "layer", "lower", fvu_no_sinks),
    Metric("fvu_scalar_bos", "fraction", "layer", "lower", fvu_scalar("q", "_bos"), gateable=False),
    Metric("fvu_scalar", "fraction", "layer", "lower", fvu_scalar("q", "")),
    Metric(
        "mse", "activation units²", "layer", "lower",
        lambda s: ratio(s["error_q"], s["positions"] * s["d_model"]),
    ),
    Metric("fvu_denominator", "activation units²", "layer", "neither", lambda s: spread("q", s)),
    Metric("l0", "features", "layer", "neither", lambda s: ratio(s["active_q"], s["positions"])),
    Metric("l0_ratio", "", "layer", "neither", lambda s: ratio(s["active_q"], s["active_r"])),
    Metric("l2_ratio", "", "layer", "neither", lambda s: ratio(s["norm_hat_q"], s["norm_q"])),
    Metric(
        "reconstruction_cosine", "", "layer", "higher",
        lambda s: ratio(s["cosine_hat_q"], s["positions"]),
    ),
    Metric("sink_share", "fraction", "layer", "neither", lambda s: ratio(s["sinks"], s["positions"])),
)  # fmt: skip


def side_rows(
    side: str,
    x: torch.Tensor,
    x_hat: torch.Tensor,
    active: torch.Tensor,
    valid: torch.Tensor,
    sinks: torch.Tensor,
) -> dict[str, torch.Tensor]:
    """Columns [batch], and the vector columns ``sum*`` [batch, d_model], of one side of a batch.

    ``x`` and ``x_hat`` [batch, length, d_model]; ``active`` features a position and masks
    [batch, length]; ``sinks`` is the reference's mask and lies within ``valid``.
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


def shared_rows(valid: torch.Tensor, sinks: torch.Tensor) -> dict[str, torch.Tensor]:
    """Counts [batch] that belong to neither side."""
    import torch

    length = torch.full(valid.shape[:1], valid.shape[1], dtype=torch.float64, device=valid.device)
    return {
        "positions": valid.sum(1, dtype=torch.float64),
        "positions_bos": length,
        "sinks": sinks.sum(1, dtype=torch.float64),
    }
