"""Tell sinks from ordinary positions, by the gap between the norms of the two.

A few positions (a first token, a newline, an apostrophe) have residuals many times as long as all others.
SAEs are not trained on them, and one in thousands can be most of a variance or of a perturbation. They are
the same positions at every layer but stand apart more at some, so they are told at one layer, and left out
at all of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np

from qsae_bench.metrics.base import Limits, Sums, Tolerance, of_rows, ratio

if TYPE_CHECKING:
    import torch

LEAST_GAP = 2.0
"""norm of the smallest sink over that of the largest ordinary position, at least. On a real Gemma 3 270M it
is 2.7 and more where sinks stand apart; the largest norm of a tail without sinks rarely has so much room
below it"""
LARGEST_SHARE = 0.1
"""of valid positions that sinks can be: a larger group of long residuals is ordinary text"""

WITH_SINKS = "positions_all"
"""column that rows have since sinks are left out: the number of all valid positions"""


@dataclass(frozen=True)
class SinkRule:
    """Hold which positions of a model are sinks: those whose residual at one layer exceeds a norm."""

    layer: int
    """the tapped layer at which sinks stand apart most"""
    multiple: float
    """of the reference's median norm over valid positions there: the middle of the gap, in logarithms"""
    norm: float
    """the same in activation units"""


class Gap(NamedTuple):
    """Hold the norms on either side of a gap, and the median of all."""

    below: float
    above: float
    median: float

    @property
    def ratio(self) -> float:
        """How far the two sides are apart."""
        return self.above / self.below


def lowest_gap(norms: np.ndarray) -> Gap | None:
    """Return the lowest gap of at least ``LEAST_GAP`` among the longest ``LARGEST_SHARE`` of norms.

    The lowest, not the widest: where sinks are of several kinds, such as a first token far above the
    others, there are gaps among the sinks too.
    """
    known = np.sort(norms[np.isfinite(norms)].astype(np.float64))
    longest = known[len(known) - 1 - int(LARGEST_SHARE * len(known)) :] if len(known) else known
    if len(longest) < 2 or longest[0] <= 0:
        return None
    wide = np.flatnonzero(longest[1:] >= LEAST_GAP * longest[:-1])
    if not len(wide):
        return None
    median = float(known[(len(known) - 1) // 2])
    return Gap(float(longest[wide[0]]), float(longest[wide[0] + 1]), median) if median > 0 else None


def find_sinks(norms: Mapping[int, np.ndarray]) -> SinkRule | None:
    """Return the rule for a model, or None if no layer has a gap.

    Args:
        norms: layer -> norms of the reference's residual at valid positions.
    """
    gaps = {layer: gap for layer in sorted(norms) if (gap := lowest_gap(norms[layer])) is not None}
    if not gaps:
        return None
    layer = max(gaps, key=lambda one: gaps[one].ratio)
    gap = gaps[layer]
    norm = float(np.sqrt(gap.below * gap.above))
    return SinkRule(layer, norm / gap.median, norm)


class Positions(NamedTuple):
    """Hold which positions of a batch are of which kind, each bool [batch, length]."""

    valid: torch.Tensor
    """no special tokens"""
    ordinary: torch.Tensor
    """valid and a sink in neither cell; the very tensor ``valid`` where a model has no sinks"""
    sinks: torch.Tensor
    """sinks of the reference"""
    gained: torch.Tensor
    """sinks of the cell alone"""
    lost: torch.Tensor
    """sinks of the reference alone"""

    @classmethod
    def without_sinks(cls, valid: torch.Tensor) -> Self:
        """Take every valid position for ordinary."""
        import torch

        none = torch.zeros_like(valid)
        return cls(valid, valid, none, none, none)

    @classmethod
    def by_norm(cls, valid: torch.Tensor, x_r: torch.Tensor, x_q: torch.Tensor, norm: float) -> Self:
        """Tell the sinks by the residuals of both sides [batch, length, d_model] at the rule's layer."""
        sinks = valid & (_norms(x_r) > norm)
        of_cell = sinks if x_q is x_r else valid & (_norms(x_q) > norm)
        return cls(valid, valid & ~sinks & ~of_cell, sinks, of_cell & ~sinks, sinks & ~of_cell)

    @property
    def have_sinks(self) -> bool:
        """Whether some valid positions may not be ordinary."""
        return self.ordinary is not self.valid

    def columns(self) -> dict[str, torch.Tensor]:
        """Count the positions of each kind, to columns [batch]."""
        import torch

        kinds = {
            "positions": self.ordinary, WITH_SINKS: self.valid,
            "positions_bos": torch.ones_like(self.valid), "sinks": self.sinks,
            "sinks_gained": self.gained, "sinks_lost": self.lost,
        }  # fmt: skip
        counts = torch.stack(list(kinds.values())).sum(2, dtype=torch.float64)
        return dict(zip(kinds, counts, strict=True))


def _norms(x: torch.Tensor) -> torch.Tensor:
    import torch

    return torch.linalg.vector_norm(x, dim=-1)


def _of_valid(column: str, s: Sums, of: float = 1.0) -> Any:
    """Return a count of positions over that of all valid ones, times ``of``."""
    return ratio(of * s[column], s[WITH_SINKS])


_changed = partial(
    of_rows, scope="layer", unit="‰", sides="pair", better="lower", limits=(0.0, 1000.0), harmless=0.0,
    least_harm=Tolerance(0.1), needs=WITH_SINKS,
)  # fmt: skip

METRICS = (
    of_rows(
        key="sink_share", scope="layer", unit="fraction", sides="reference", better="neither",
        limits=Limits.FRACTION, harmless=None, least_harm=Tolerance(1e-4), needs=WITH_SINKS,
        formula=lambda s: _of_valid("sinks", s),
    ),
    _changed(key="sinks_gained", formula=lambda s: _of_valid("sinks_gained", s, 1000.0)),
    _changed(key="sinks_lost", formula=lambda s: _of_valid("sinks_lost", s, 1000.0)),
)  # fmt: skip
