"""Measure which SAE features still fire where they did, feature by feature.

Eight vectors of length d_sae are summed over positions (``VECTORS``), so that memory does not grow with the
tokens. They are stored for each of ``BLOCKS`` interleaved blocks of documents, because survival is no
function of row sums: leaving out one block at a time gives its interval (delete-a-group jackknife). These
are 64 numbers per feature; the SAE itself holds 2·d_model of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from qsae_bench.metrics.base import Least, Limits, Metric, finite, masked_sums, of_rows, ratio

if TYPE_CHECKING:
    import torch

VECTORS = ("sum_r", "sum_q", "square_r", "square_q", "product", "both", "only_r", "only_q")
BLOCKS = 8

ELIGIBLE_POSITIONS = 20
"""ordinary positions on which an eligible feature is active in the reference, at least"""
FEWEST_ELIGIBLE = 20
"""eligible features below which nothing is said of them: that all of 20 survive excludes, at 95%, only that
more than 14% are lost (1 − 0.05^(1/20)), and of fewer even less"""
SURVIVES = 0.9
"""correlation of a feature that survives; this cut-off and the next are the suite's own, because those of
arXiv 2606.03002 are not known"""
DAMAGED = 0.5
"""correlation below which a feature is damaged"""
WORST = 20
"""number of features that a run document lists"""
CURVE = (
    0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.92, 0.94, 0.96, 0.97, 0.98, 0.99,
    0.995, 0.999, 1.0,
)  # fmt: skip
"""correlations at which a survival curve is stored, dense where quantized models lie"""

_of_vectors = partial(
    Metric, scope="layer", sides="pair", suspicious=None, headline_in=(), interval="jackknife",
    not_own_when=(), over_shards="rows", formula=None,
)  # fmt: skip
_survives = partial(
    _of_vectors, unit="fraction", better="higher", limits=Limits.FRACTION, harmless=1.0,
    least_harm=Least.SHARE,
)  # fmt: skip
_correlation = partial(_survives, unit="", limits=Limits.CORRELATION)
_share_lost = partial(_survives, better="lower", harmless=0.0, least_harm=Least.RELATIVE)
# counts grow with the positions, so that leaving out a block shifts them: no jackknife
_count = partial(
    _of_vectors, unit="count", better="lower", limits=Limits.NOT_NEGATIVE, harmless=0.0,
    least_harm=Least.COUNT, interval="none",
)  # fmt: skip
_overlap = partial(
    of_rows, scope="layer", unit="fraction", sides="pair", better="higher", limits=Limits.FRACTION,
    harmless=1.0, least_harm=Least.SHARE,
)  # fmt: skip

METRICS = (
    _count(key="features_eligible", sides="reference", better="neither", harmless=None),
    _correlation(key="feature_correlation_p10"),
    _correlation(key="feature_correlation_p50"),
    _correlation(key="feature_correlation_p90"),
    _survives(key="feature_survival", headline_in=("comparison", "pareto")),
    _share_lost(key="feature_blurred"),
    _share_lost(key="feature_damaged"),
    _survives(key="feature_survival_weighted"),
    _of_vectors(
        key="feature_slope_p50", unit="", better="neither", limits=Limits.ANY_NUMBER, harmless=1.0,
        least_harm=Least.RELATIVE,
    ),
    _overlap(
        key="feature_jaccard",
        formula=lambda s: ratio(s["both"], s["both"] + s["only_r"] + s["only_q"]),
    ),
    _overlap(
        key="feature_f1",
        formula=lambda s: ratio(2 * s["both"], 2 * s["both"] + s["only_r"] + s["only_q"]),
    ),
    _count(key="features_newly_dead"),
    _count(key="features_newly_alive"),
)  # fmt: skip

OF_ELIGIBLE = frozenset(metric.key for metric in METRICS) - {
    "features_eligible", "feature_jaccard", "feature_f1", "features_newly_dead", "features_newly_alive",
}  # fmt: skip
"""metrics over the eligible features"""


@dataclass(frozen=True)
class FeatureSums:
    """Hold the eight vectors of one layer for each block of documents."""

    vectors: Mapping[str, np.ndarray]
    """name of ``VECTORS`` -> float64 [blocks, d_sae]"""
    positions: np.ndarray
    """ordinary positions of each block [blocks]"""
    decoder_square: np.ndarray
    """‖d_j‖² of each feature's decoder direction [d_sae]"""

    def total(self, leave_out: int | None = None) -> tuple[dict[str, np.ndarray], float]:
        """Sum vectors and positions over all blocks, or over all but one."""
        keep = np.arange(len(self.positions)) != (-1 if leave_out is None else leave_out)
        vectors = {name: vector[keep].sum(axis=0) for name, vector in self.vectors.items()}
        return vectors, float(self.positions[keep].sum())

    def plus(self, other: FeatureSums) -> FeatureSums:
        """Add the sums of other sequences, such as those of another shard of the cell."""
        vectors = {name: self.vectors[name] + other.vectors[name] for name in VECTORS}
        return FeatureSums(vectors, self.positions + other.positions, self.decoder_square)


class Activity(NamedTuple):
    """Hold the numbers of active features per position [batch, length]: on either side, and on both."""

    r: torch.Tensor
    q: torch.Tensor
    both: torch.Tensor

    def columns(self, ordinary: torch.Tensor) -> dict[str, torch.Tensor]:
        """Sum them over ordinary positions, to columns [batch]."""
        both = self.both
        return masked_sums({"both": both, "only_r": self.r - both, "only_q": self.q - both}, ordinary)


class FeatureAccumulator:
    """Add up the vectors of one layer on the device, batch by batch, without waiting for it.

    On a CPU it goes sequence by sequence, so that a sequence's activations and what is computed from them
    stay in the cache: the arithmetic costs nothing, reading d_sae numbers per position again and again
    costs everything. On a GPU it takes eight sequences at once, because launching the few kernels of one
    takes longer than running them.
    """

    def __init__(self, decoder: torch.Tensor, documents: torch.Tensor) -> None:
        """Prepare for an SAE with the decoder ``decoder`` (W_dec) [d_sae, d_model].

        ``documents`` has the number of each sequence's document, int64, of the whole corpus.
        """
        import torch

        shape = (BLOCKS, len(VECTORS), decoder.shape[0])
        self._sums = torch.zeros(shape, dtype=torch.float64, device=decoder.device)
        self._positions = torch.zeros(BLOCKS, dtype=torch.float64, device=decoder.device)
        self._decoder_square = decoder.double().square().sum(1)
        self._at_once = BLOCKS if decoder.is_cuda else 1
        # by the number of the document: its sequences are in one block, and every batching gives the same
        self._blocks = documents.to(decoder.device) % BLOCKS

    def add(
        self, features_r: torch.Tensor, features_q: torch.Tensor, ordinary: torch.Tensor, start: int
    ) -> Activity:
        """Count one batch.

        Args:
            features_r: Activations in the reference [batch, length, d_sae], not negative.
            features_q: Those in the cell.
            ordinary: Which positions count, bool [batch, length]: no special tokens, and no sinks.
            start: Index of the batch's first sequence.

        Returns:
            The numbers of active features per position.
        """
        import torch

        weights = ordinary.to(features_r.dtype)
        same = features_q is features_r
        counts = []
        for first in range(0, len(weights), self._at_once):
            some = slice(first, first + self._at_once)
            r, weight = features_r[some], weights[some]
            sums, active = _sums_by_sequence(r, r if same else features_q[some], weight)
            blocks = self._blocks[start + first : start + first + len(sums)]
            self._sums.index_add_(0, blocks, sums.double())
            self._positions.index_add_(0, blocks, weight.sum(1).double())
            counts.append(active)
        return Activity(*(torch.cat(sequences) for sequences in zip(*counts, strict=True)))

    def sums(self) -> FeatureSums:
        """Return what was added, on the host."""
        vectors = dict(zip(VECTORS, self._sums.transpose(0, 1).cpu().numpy(), strict=True))
        both = vectors["both"]  # until here the counts of either side include both
        vectors |= {"only_r": vectors["only_r"] - both, "only_q": vectors["only_q"] - both}
        return FeatureSums(vectors, self._positions.cpu().numpy(), self._decoder_square.cpu().numpy())


def _sums_by_sequence(
    r: torch.Tensor, q: torch.Tensor, weight: torch.Tensor
) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Compute the eight vectors [sequences, 8, d_sae] and the active counts per position [sequences,
    length].

    ``r`` and ``q`` are [sequences, length, d_sae]. ``weight`` [sequences, length] is 1 at ordinary
    positions, so that a product with it sums and masks while reading once.
    """
    import torch

    scratch, active_r = torch.empty_like(r), torch.empty_like(r)
    sums = torch.empty(len(r), len(VECTORS), r.shape[2], dtype=r.dtype, device=r.device)
    row = weight.unsqueeze(1)

    def put(place: int, values: torch.Tensor) -> None:
        torch.bmm(row, values, out=sums[:, place : place + 1])

    torch.gt(r, 0, out=active_r)
    put(0, r)
    put(2, torch.mul(r, r, out=scratch))
    put(6, active_r)
    count_r = active_r.sum(2)
    if q is r:
        sums[:, 1], sums[:, 3], sums[:, 4] = sums[:, 0], sums[:, 2], sums[:, 2]
        sums[:, 5], sums[:, 7] = sums[:, 6], sums[:, 6]
        return sums, (count_r, count_r, count_r)
    put(1, q)
    put(3, torch.mul(q, q, out=scratch))
    put(4, torch.mul(r, q, out=scratch))
    active_q = torch.gt(q, 0, out=scratch)
    put(7, active_q)
    count_q = active_q.sum(2)
    both = active_r.mul_(active_q)
    put(5, both)
    return sums, (count_r, count_q, both.sum(2))


@dataclass(frozen=True)
class FeatureTable:
    """Hold the values of each feature [d_sae], from summed vectors."""

    eligible: np.ndarray
    correlation: np.ndarray
    slope: np.ndarray
    weight: np.ndarray
    """E[f_r²]·‖d_j‖²: the feature's share of the reconstruction's energy"""
    active_r: np.ndarray
    active_q: np.ndarray


def feature_table(sums: FeatureSums, leave_out: int | None = None) -> FeatureTable:
    """Compute Pearson's r_j and the regression slope of f_q on f_r over ordinary positions.

    A feature that is silent in q counts as 0; a NaN stays one.

    Args:
        leave_out: A block of documents that is left out.
    """
    vectors, positions = sums.total(leave_out)
    mean_r, mean_q = vectors["sum_r"] / positions, vectors["sum_q"] / positions
    var_r = vectors["square_r"] / positions - mean_r**2
    var_q = vectors["square_q"] / positions - mean_q**2
    cov = vectors["product"] / positions - mean_r * mean_q
    active_r, active_q = vectors["both"] + vectors["only_r"], vectors["both"] + vectors["only_q"]
    scale = np.sqrt(np.clip(var_r, 0, None) * np.clip(var_q, 0, None))
    varies = ~((scale == 0) | (active_q == 0))
    correlation = np.divide(cov, scale, out=np.zeros_like(cov), where=varies)
    slope = np.divide(cov, var_r, out=np.zeros_like(cov), where=var_r > 0)
    return FeatureTable(
        eligible=active_r >= ELIGIBLE_POSITIONS,
        correlation=np.clip(correlation, -1, 1),
        slope=slope,
        weight=vectors["square_r"] / positions * sums.decoder_square,
        active_r=active_r,
        active_q=active_q,
    )


def feature_values(sums: FeatureSums, leave_out: int | None = None) -> dict[str, float]:
    """Compute the metrics that need the vectors; NaN if too few features are eligible."""
    table = feature_table(sums, leave_out)
    r, weight = table.correlation[table.eligible], table.weight[table.eligible]
    too_few = len(r) < FEWEST_ELIGIBLE

    def share(mask: np.ndarray) -> float:
        return float("nan") if too_few else float(mask.mean())

    def quantile(values: np.ndarray, q: float) -> float:
        return float("nan") if too_few else float(np.quantile(values, q))

    return {
        "features_eligible": float(len(r)),
        "feature_correlation_p10": quantile(r, 0.1),
        "feature_correlation_p50": quantile(r, 0.5),
        "feature_correlation_p90": quantile(r, 0.9),
        "feature_survival": share(r >= SURVIVES),
        "feature_blurred": share((r >= DAMAGED) & (r < SURVIVES)),
        "feature_damaged": share(r < DAMAGED),
        "feature_survival_weighted": (
            float("nan") if too_few else float(ratio(weight[r >= SURVIVES].sum(), weight.sum()))
        ),
        "feature_slope_p50": quantile(table.slope[table.eligible], 0.5),
        "features_newly_dead": float(((table.active_r > 0) & (table.active_q == 0)).sum()),
        "features_newly_alive": float(((table.active_r == 0) & (table.active_q > 0)).sum()),
    }


def survival_curve(sums: FeatureSums) -> dict[str, list[float]] | None:
    """Compute the share of eligible features with r_j ≥ t at each t of ``CURVE``; None of too few features.

    ``weighted`` is weighted as ``feature_survival_weighted`` is.
    """
    table = feature_table(sums)
    r, weight = table.correlation[table.eligible], table.weight[table.eligible]
    if len(r) < FEWEST_ELIGIBLE or not np.isfinite(r).all() or not weight.sum() > 0:
        return None
    above = [r >= t for t in CURVE]
    return {
        "correlation": list(CURVE),
        "share": [float(mask.mean()) for mask in above],
        "weighted": [float(weight[mask].sum() / weight.sum()) for mask in above],
    }


def worst_features(sums: FeatureSums, count: int = WORST) -> list[dict[str, Any]]:
    """List the eligible features that lost most, by weight × (1 − r): the weight that no longer follows."""
    table = feature_table(sums)
    index = np.flatnonzero(table.eligible)
    lost = table.weight[index] * (1 - table.correlation[index])
    return [
        {
            "index": int(j),
            "active_reference": int(table.active_r[j]),
            "active_quantized": int(table.active_q[j]),
            "correlation": finite(float(table.correlation[j])),
            "slope": finite(float(table.slope[j])),
            "weight": finite(float(table.weight[j])),
        }
        for j in index[np.argsort(-lost, kind="stable")[:count]]
    ]
