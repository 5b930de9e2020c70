"""Hold a cell's outcome so far: its rows, its estimates and verdicts, and the looks that were taken."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

from qsae_bench.errors import Invalid
from qsae_bench.gate.verdict import Verdict
from qsae_bench.metrics import METRICS
from qsae_bench.metrics.measurement import Measurement, merge, reference_side
from qsae_bench.progress import progress_of
from qsae_bench.stats.bootstrap import Estimate, Estimates, estimate
from qsae_bench.stats.sequential import LookPlan, critical_value

if TYPE_CHECKING:
    from qsae_bench.models.weights.inspection import QuantizationEffect


def _estimate(measurement: Measurement) -> Estimates:
    with progress_of(f"{measurement.model}-{measurement.quantization}: intervals"):
        return estimate(measurement)


@dataclass
class CellResult:
    """Hold a cell's outcome, which changes while the cell is measured."""

    measurement: Measurement
    estimates: Estimates
    looks: tuple[int, ...]
    """tokens planned for each look taken so far"""
    planned_tokens: int
    """tokens at the last look, were it needed"""
    exhausted: bool = False
    """the corpus has no more text"""
    stop_reason: str = ""
    """why no further look could be taken"""
    noise_floor: Estimates | None = None
    """of a reference only: its estimates at another batch size"""
    quantized: QuantizationEffect | None = None
    """of a quantized cell: what its quantization did to the weights"""
    invalid_reason: str = ""
    """why the whole cell is invalid, if it is"""
    verdicts: list[Verdict] = field(default_factory=list)
    revision: str = ""
    """what identifies the model's weights"""

    @classmethod
    def begin(
        cls, part: Measurement, plan: LookPlan, gated: bool, quantized: QuantizationEffect | None
    ) -> Self:
        """Return the result after the first look. A cell without gates is looked at once."""
        whole = part.with_costs(quantized.values) if quantized is not None else part
        return cls(
            whole, _estimate(whole), plan.looks[:1], plan.looks[-1 if gated else 0], plan.is_short,
            quantized=quantized, revision=plan.revision,
        )  # fmt: skip

    def extend(self, part: Measurement, plan: LookPlan) -> None:
        """Add the tokens of one more look."""
        self.measurement = merge([self.measurement, part])
        self.estimates = _estimate(self.measurement)
        self.looks = plan.looks[: len(self.looks) + 1]

    @property
    def tokens(self) -> int:
        """Return the number of predicted tokens measured so far."""
        return self.measurement.rows.tokens

    @property
    def reference_values(self) -> Estimates:
        """Return the reference's own values on the sequences that this cell was measured on."""

        def own(estimates: Mapping[str, Estimate]) -> dict[str, Estimate]:
            return {key: value for key, value in estimates.items() if METRICS[key].harmless is None}

        every = estimate(reference_side(self.measurement), replicates=0)
        return Estimates(own(every.cell), {layer: own(found) for layer, found in every.layers.items()})

    def check_valid(self) -> None:
        """Raise :class:`Invalid` if the whole cell is invalid."""
        if self.invalid_reason:
            names = f"{self.measurement.model}-{self.measurement.quantization}"
            raise Invalid(f"{names}: INVALID: {self.invalid_reason}")

    @property
    def is_last_look(self) -> bool:
        """Return whether no look can follow."""
        return self.exhausted or self.looks[-1] >= self.planned_tokens

    @property
    def critical(self) -> float:
        """Return the standard errors that decide now, see :mod:`qsae_bench.stats.sequential`."""
        return critical_value(self.looks, self.planned_tokens, self.is_last_look)
