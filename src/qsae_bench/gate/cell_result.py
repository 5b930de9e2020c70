"""A cell's outcome so far: its rows, what follows from them, and how often they were looked at."""

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


def _of_the_reference(estimates: Mapping[str, Estimate]) -> dict[str, Estimate]:
    """Return the metrics of which the reference has a value of its own; of the others it is a constant."""
    return {key: value for key, value in estimates.items() if METRICS[key].harmless is None}


@dataclass
class CellResult:
    """Changes as the cell runs on."""

    measurement: Measurement
    estimates: Estimates
    looks: tuple[int, ...]
    """tokens planned for each look taken so far"""
    planned_tokens: int
    """tokens at the last look, were it needed"""
    exhausted: bool = False
    """the corpus has no more text"""
    stopped: str = ""
    """why it could not be looked at again"""
    floor: Estimates | None = None
    """of a reference only: itself again at another batch size"""
    quantized: QuantizationEffect | None = None
    """of a quantized cell: what its recipe did to the weights"""
    broken: str = ""
    """why the whole cell is invalid, if it is"""
    verdicts: list[Verdict] = field(default_factory=list)
    revision: str = ""
    """what identifies the model's weights"""

    @classmethod
    def begin(
        cls, part: Measurement, plan: LookPlan, gated: bool, quantized: QuantizationEffect | None
    ) -> Self:
        """After the first look. What nothing gates is looked at once."""
        whole = part.with_costs(quantized.values) if quantized is not None else part
        return cls(
            whole, _estimate(whole), plan.looks[:1], plan.looks[-1 if gated else 0], plan.is_short,
            quantized=quantized, revision=plan.revision,
        )  # fmt: skip

    def extend(self, part: Measurement, plan: LookPlan) -> None:
        """After one more look."""
        self.measurement = merge([self.measurement, part])
        self.estimates = _estimate(self.measurement)
        self.looks = plan.looks[: len(self.looks) + 1]

    @property
    def tokens(self) -> int:
        return int(self.measurement.rows.scalars["tokens"].sum())

    @property
    def beside(self) -> Estimates:
        """The reference's own values on the very sequences that this cell was measured on."""
        every = estimate(reference_side(self.measurement), replicates=0)
        layers = {layer: _of_the_reference(found) for layer, found in every.layers.items()}
        return Estimates(_of_the_reference(every.cell), layers)

    def check_valid(self) -> None:
        """Raise what makes the whole cell invalid, if anything does.

        Raises:
            Invalid: something does.
        """
        if self.broken:
            names = f"{self.measurement.model}-{self.measurement.quantization}"
            raise Invalid(f"{names}: INVALID: {self.broken}")

    @property
    def is_last_look(self) -> bool:
        return self.exhausted or self.looks[-1] >= self.planned_tokens

    @property
    def critical(self) -> float:
        """Standard errors that decide now, see :mod:`qsae_bench.stats.sequential`."""
        return critical_value(self.looks, self.planned_tokens, self.is_last_look)
