"""Measure loss and output distribution: apply the heads of reference and cell to chunks of positions.

All quantities are over predicted positions whose target is valid. ``_r`` is the reference,
``_q`` the cell.
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from qsae_bench.metrics.base import (
    RESOLUTION,
    ColumnBuffer,
    Formula,
    Least,
    Limits,
    LogitHead,
    Sums,
    Tolerance,
    masked_sums,
    of_rows,
    ratio,
)  # fmt: skip

if TYPE_CHECKING:
    import torch


LOGIT_BYTES_SMALL = 4 << 20
"""size of a chunk of logits that stays in a CPU's last-level cache"""
LOGIT_BYTES_LARGE = 64 << 20
"""largest chunk on a CPU; five such temporaries are alive at the same time"""
LOGIT_BYTES_GPU = 256 << 20
"""chunk on a GPU: with fewer than about 250 positions, the product waits for the head's weights (Gemma 3
has 262 144 rows of 3 840 bf16 numbers) and not for arithmetic"""
FEWEST_POSITIONS = 64
"""with fewer positions, the head's product is bound by reading its weights"""

KL_OVERFLOW = 60.0
"""change of a logit beyond which exp() in the form without cancellation nears the range of float32"""

SERIES_BELOW = 0.05
"""changes of a logit below this take e^δ − 1 − δ from its series"""

KL_COLUMN = "kl_at"
"""column with the KL of every position of a sequence: quantiles are no function of sums"""

BYTES_COLUMN = "bytes"
"""column with the bytes of the text that a sequence predicts; rows stored by earlier versions lack it, and
random ids have none"""

KL_QUANTILES = {
    "kl_divergence_p50": 0.5,
    "kl_divergence_p90": 0.9,
    "kl_divergence_p99": 0.99,
    "kl_divergence_p999": 0.999,
    "kl_divergence_max": 1.0,
}


def mean_nll(side: str) -> Formula:
    """Return the formula of one side's cross-entropy."""
    return lambda s: ratio(s[f"nll_{side}"], s["tokens"])


def nll_change(s: Sums) -> Any:
    """Return CE_q − CE_r, from one subtraction of sums so that equal columns give exactly 0."""
    return ratio(s["nll_q"] - s["nll_r"], s["tokens"])


def per_token(column: str) -> Formula:
    """Return the formula of a column's mean over scored positions."""
    return lambda s: ratio(s[column], s["tokens"])


_own = partial(of_rows, scope="cell", sides="model", better="lower", harmless=None)
_distance = partial(
    of_rows, scope="cell", sides="pair", better="lower", limits=Limits.FRACTION, harmless=0.0,
    least_harm=Least.RELATIVE,
)  # fmt: skip
_divergence = partial(_distance, unit="nats", limits=Limits.NOT_NEGATIVE, least_harm=Least.NATS)
_change = partial(_distance, limits=Limits.ANY_NUMBER)
_percent = partial(_change, unit="%", least_harm=Least.PERCENT, suspicious=Tolerance(100 * RESOLUTION))

METRICS = (
    _own(
        key="cross_entropy", unit="nats/token", limits=Limits.NOT_NEGATIVE, least_harm=Least.NATS_PER_TOKEN,
        headline_in=("failure",), formula=mean_nll("q"),
    ),
    _own(
        key="perplexity", unit="", limits=(1.0, math.inf), least_harm=Least.RELATIVE,
        formula=lambda s: np.exp(mean_nll("q")(s)),
    ),
    _own(
        key="bits_per_byte", unit="bits/byte", limits=Limits.NOT_NEGATIVE, least_harm=Least.NATS_PER_TOKEN,
        needs=BYTES_COLUMN, formula=lambda s: ratio(s["nll_q"], math.log(2) * s[BYTES_COLUMN]),
    ),
    _change(
        key="cross_entropy_delta", unit="nats/token", least_harm=Least.NATS_PER_TOKEN,
        suspicious=Tolerance(RESOLUTION), formula=nll_change,
    ),
    _percent(
        key="cross_entropy_delta_pct",
        formula=lambda s: 100 * ratio(s["nll_q"] - s["nll_r"], s["nll_r"]),
    ),
    _percent(
        key="perplexity_increase_pct", headline_in=("comparison", "stability", "study", "history"),
        formula=lambda s: 100 * np.expm1(nll_change(s)),
    ),
    _divergence(
        key="kl_divergence", headline_in=("comparison", "pareto", "stability", "study", "history"),
        formula=per_token("kl"),
    ),
    *(_divergence(key=key, interval="percentile", formula=None) for key in KL_QUANTILES),
    _distance(
        key="top1_agreement", unit="fraction", better="higher", harmless=1.0, least_harm=Least.SHARE,
        headline_in=("comparison",), formula=per_token("top1_same"),
    ),
    _distance(key="flips_to_wrong", unit="fraction", formula=per_token("flip_wrong")),
    _distance(key="flips_to_right", unit="fraction", better="neither", formula=per_token("flip_right")),
    _distance(
        key="flips_mcnemar_p", unit="probability", better="neither", harmless=1.0, least_harm=None,
        interval="none", formula=None,
    ),
    _distance(
        key="delta_p_mean", unit="probability", better="neither", limits=Limits.CORRELATION,
        formula=per_token("delta_p"),
    ),
    _distance(
        key="delta_p_rms", unit="probability", formula=lambda s: np.sqrt(per_token("delta_p_squared")(s))
    ),
    _own(
        key="nonfinite_share", unit="fraction", limits=Limits.FRACTION, least_harm=Least.RELATIVE,
        formula=lambda s: ratio(s["nonfinite"], s["predicted"]),
    ),
)  # fmt: skip


def chunk_positions(vocabulary: int, on_gpu: bool = False, bytes_per_logit: int = 4) -> int:
    """Return the number of positions whose logits are computed at once."""
    row = vocabulary * bytes_per_logit
    if on_gpu:
        return max(1, LOGIT_BYTES_GPU // row)
    return max(1, min(LOGIT_BYTES_LARGE // row, max(LOGIT_BYTES_SMALL // row, FEWEST_POSITIONS)))


def columns(
    hidden_r: torch.Tensor,
    hidden_q: torch.Tensor,
    head_r: LogitHead,
    head_q: LogitHead,
    ids: torch.Tensor,
    valid: torch.Tensor,
    chunk: int | None = None,
) -> dict[str, torch.Tensor]:
    """Compute the columns [batch] of one batch.

    If both sides are the same tensor, the head is applied once.

    Args:
        hidden_r: Head inputs of the reference [batch, length, d_model].
        hidden_q: Head inputs of the cell, of the same shape.
        head_r: The reference's head.
        head_q: The cell's head.
        ids: Token ids [batch, length].
        valid: Which positions are no special tokens, bool [batch, length].
        chunk: Positions whose logits are computed at once; None for :func:`chunk_positions`.
    """
    import torch

    same = hidden_q is hidden_r
    batch, length = ids.shape
    targets = ids[:, 1:].reshape(-1)
    flat_r = hidden_r[:, :-1].reshape(batch * (length - 1), -1)
    flat_q = flat_r if same else hidden_q[:, :-1].reshape(batch * (length - 1), -1)
    step = chunk or chunk_positions(head_q.vocabulary, hidden_q.is_cuda)
    gathered = ColumnBuffer(len(targets))
    for start in range(0, len(targets), step):
        piece = slice(start, start + step)
        logits_r = head_r.logits(flat_r[piece])
        logits_q = logits_r if same else head_q.logits(flat_q[piece])
        gathered.add(start, compare_logits(logits_r, logits_q, targets[piece]))
    values = {key: column.view(batch, length - 1) for key, column in gathered.columns.items()}
    scored = valid[:, 1:]
    ones = torch.ones_like(values["nll_q"])
    found = masked_sums({**values, "tokens": ones}, scored)
    everywhere = torch.ones_like(scored)
    found |= masked_sums({"nonfinite": values["nonfinite"], "predicted": ones}, everywhere)
    # stored whole for quantiles; NaN marks a position that is not scored
    found[KL_COLUMN] = torch.where(scored, values["kl"].double(), torch.nan)
    return found


def exp_excess(delta: torch.Tensor) -> torch.Tensor:
    """Return e^δ − 1 − δ, from its series where δ is small and the difference would cancel.

    The series has six terms: where it meets the difference its error is below float32's resolution, and
    about nine digits of float64 are right.
    """
    import torch

    series = delta.mul(1 / 720).add_(1 / 120).mul_(delta).add_(1 / 24).mul_(delta).add_(1 / 6)
    series = series.mul_(delta).add_(0.5).mul_(delta).mul_(delta)
    return torch.where(delta.abs() < SERIES_BELOW, series, delta.expm1().sub_(delta))


def compare_logits(
    logits_r: torch.Tensor, logits_q: torch.Tensor, targets: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Compare the logits [positions, vocabulary] of both sides, position by position; they are overwritten.

    KL(p_r ‖ p_q) is formed without cancellation: with δ = z_q − z_r less its mean under p_r,
    KL = log1p(Σ p_r (e^δ − 1 − δ)), a sum of non-negative terms, exactly 0 for equal logits. The
    textbook difference of log-softmaxes loses int8's KL (about 1e-5 nats) in float32's rounding.
    """
    import torch

    picked = targets.unsqueeze(1)
    top_r, argmax_r = logits_r.max(1)
    target_r = logits_r.gather(1, picked).squeeze(1)
    if logits_q is logits_r:
        zero, nll = torch.zeros_like(top_r), logits_r.logsumexp(1) - target_r
        return {
            "nll_r": nll, "nll_q": nll, "kl": zero, "top1_same": torch.ones_like(zero),
            "flip_wrong": zero, "flip_right": zero, "delta_p": zero, "delta_p_squared": zero,
            "nonfinite": (~logits_r.sum(1).isfinite()).to(zero.dtype),
        }  # fmt: skip
    argmax_q = logits_q.argmax(1)
    target_q = logits_q.gather(1, picked).squeeze(1)
    # a sum is non-finite if any term is, and needs no second tensor of the logits' size
    nonfinite = ~logits_q.sum(1).isfinite()
    lse_q = logits_q.logsumexp(1)
    delta = logits_q.sub_(logits_r)  # exact where the two are close
    weights = logits_r.sub_(top_r.unsqueeze(1)).exp_()
    total = weights.sum(1)
    lse_r = top_r + total.log()
    drift = (weights * delta).sum(1) / total
    delta -= drift.unsqueeze(1)
    widest = delta.max(1).values
    excess = weights.mul_(exp_excess(delta)).sum(1) / total
    kl = torch.where(widest < KL_OVERFLOW, excess.log1p(), lse_q - lse_r - drift)
    nll_r, nll_q = lse_r - target_r, lse_q - target_q
    delta_p = (-nll_q).exp() - (-nll_r).exp()
    right_r, right_q = argmax_r == targets, argmax_q == targets
    return {
        "nll_r": nll_r, "nll_q": nll_q, "kl": kl,
        "top1_same": argmax_r == argmax_q,
        "flip_wrong": right_r & ~right_q, "flip_right": right_q & ~right_r,
        "delta_p": delta_p, "delta_p_squared": delta_p.square(), "nonfinite": nonfinite,
    }  # fmt: skip
