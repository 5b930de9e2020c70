"""What a metric is, and the sums over positions that every group's columns are made with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

if TYPE_CHECKING:
    import torch

Sums = Mapping[str, Any]
"""column -> its sum over sequences: a float, or an array of bootstrap replicates"""

Formula = Callable[[Sums], Any]


class LogitHead(Protocol):
    """Maps head inputs to logits; :class:`qsae_bench.models.taps.Head` is the one in use."""

    @property
    def vocabulary(self) -> int: ...

    def logits(self, hidden: torch.Tensor) -> torch.Tensor: ...

    def product(self, hidden: torch.Tensor) -> torch.Tensor: ...


@dataclass(frozen=True)
class Metric:
    """One key of metrics.md.

    ``formula`` maps column sums to the value and is None where the value needs more than sums
    (quantiles over positions, feature vectors, timings).
    """

    key: str
    unit: str
    scope: Literal["cell", "layer"]
    better: Literal["lower", "higher", "neither"]
    formula: Formula | None = None
    gateable: bool = True
    """False for diagnostics that must never decide a verdict"""
    needs: str = ""
    """a column that only some runs have; without it the metric is left out"""


def ratio(numerator: Any, denominator: Any) -> Any:
    """``numerator / denominator``; 0/0 and x/0 give NaN and inf without a warning."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.true_divide(numerator, denominator)


class Gathered:
    """Columns of ``length`` rows that come piece by piece, each on its device.

    One tensor for all columns of a kind, from the first piece on. Small tensors that stay, made between
    large ones that go, keep a heap from closing its gaps, and the process would grow with the corpus; and a
    copy a column is as many kernels to launch on a GPU.
    """

    def __init__(self, length: int) -> None:
        self._length = length
        self._kinds: dict[Any, tuple[list[str], torch.Tensor]] = {}
        """(dtype, shape of a row) -> columns, and their values [columns, length, *row]"""

    def add(self, start: int, piece: Mapping[str, torch.Tensor]) -> None:
        """Rows from ``start`` on; every piece has the same columns and dtypes."""
        import torch

        kinds: dict[Any, list[str]] = {}
        for key, rows in piece.items():
            kinds.setdefault((rows.dtype, rows.shape[1:]), []).append(key)
        for kind, keys in kinds.items():
            rows = torch.stack([piece[key] for key in keys])
            if kind not in self._kinds:
                self._kinds[kind] = (keys, rows.new_empty((len(keys), self._length, *kind[1])))
            known, values = self._kinds[kind]
            assert known == keys
            values[:, start : start + rows.shape[1]] = rows

    @property
    def columns(self) -> dict[str, torch.Tensor]:
        """By name [length, *row]."""
        return {
            key: column
            for keys, values in self._kinds.values()
            for key, column in zip(keys, values, strict=True)
        }


def masked_sums(values: dict[str, torch.Tensor], mask: torch.Tensor) -> dict[str, torch.Tensor]:
    """Per-sequence float64 sums [batch] of per-position values [batch, length] where mask holds."""
    import torch

    stacked = torch.stack(list(values.values())).double()
    sums = torch.where(mask, stacked, 0.0).sum(dim=2)
    return dict(zip(values, sums, strict=True))


def at_least_float32(tensor: torch.Tensor) -> torch.Tensor:
    """bf16 and fp16 become float32; float32 and float64 stay as they are."""
    return tensor.float() if tensor.dtype.itemsize < 4 else tensor
