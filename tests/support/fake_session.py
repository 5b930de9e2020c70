"""A pytest plugin: the benchmarks' session returns prepared results, and no model is loaded.

Loaded after ``qsae_bench.app.plugin``. What it imports here, a run in this process need not import again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.fft
import pyarrow.parquet  # noqa: F401
import pytest
import scipy.stats  # noqa: F401

import qsae_bench.app.fixtures
import qsae_bench.app.plugin
import qsae_bench.report.job_summary
import qsae_bench.report.terminal
import qsae_bench.results.run_files  # noqa: F401
from builders import Side, measurement, self_measurement, synthetic
from qsae_bench.app.invocation import INVOCATION_KEY
from qsae_bench.errors import OutOfMemory, QsaeError
from qsae_bench.gate.cell_result import CellResult
from qsae_bench.gate.judge import mark_invalid
from qsae_bench.gate.verdict import GatedMetric
from qsae_bench.metrics.measurement import Measurement, Rows
from qsae_bench.registry.specs import Cell
from qsae_bench.run.session import Session
from qsae_bench.run.stopwatch import TimeSpent
from qsae_bench.run.timed_workloads import TimedResult
from qsae_bench.stats.bootstrap import estimate

REFUSED: dict[str, QsaeError] = {}
"""cell id -> what it raises instead of a result; tests set it with ``monkeypatch.setitem``"""
NONFINITE: dict[str, bool] = {}
"""ids of cells whose losses are NaN"""
DAMAGED: dict[str, bool] = {}
"""ids of cells whose divergence and perturbation are twice what they were"""
RUINED: dict[str, bool] = {}
"""ids of cells with the KL divergence and the agreement of 2 bits a weight"""
CPU = "Fake CPU"


def _explained(side: Side, share: float) -> Side:
    """A side whose SAE explains most of the residual: beyond an FVU of 1 every gate of an SAE is invalid."""
    return replace(side, x_hat=share * side.x + (1 - share) * side.x_hat)


_DATA = synthetic()
_ROWS = replace(_DATA, r=_explained(_DATA.r, 0.7), q=_explained(_DATA.q, 0.68))


class FakeSession(Session):
    """Every quantized cell has the same rows, every reference those of the unquantized side."""

    @property
    def environment(self) -> dict[str, Any]:
        return {"python": "3", "cpu": CPU, "gpus": [], "device": "cpu", "versions": {}}

    def require(self, cell: Cell) -> None:
        if cell not in self.requested:
            self.requested.append(cell)
        if cell.id in REFUSED:
            self.refused[cell] = REFUSED[cell.id]
            raise REFUSED[cell.id]

    def time_workload(self, cell: Cell, name: str) -> TimedResult:
        self.require(cell)
        if name == "load":
            self.record(cell, "load_seconds", 0.5)
        return TimedResult((0.1,))

    def measure(self, cell: Cell) -> CellResult:
        if cell not in self.measured:
            reference = None if cell.is_reference else self.measure(self.registry.reference_of(cell))
            rows = _rows(cell)
            self.measured[cell] = CellResult(rows, estimate(rows, replicates=50), (1,), 1)
            mark_invalid(cell, self.measured[cell], reference)
        return self.measured[cell]

    def run_on(self, cell: Cell, gates: Iterable[GatedMetric]) -> None:
        pass

    def refuse_out_of_memory(self, cell: Cell) -> OutOfMemory:
        self.refused[cell] = OutOfMemory(f"{cell.id}: out of memory")
        return self.refused[cell]

    def free(self, cell: Cell) -> None:
        pass

    def close(self) -> None:
        pass

    def shares_device(self, cell: Cell) -> bool:
        return False

    def hardware_of(self, cell: Cell) -> str:
        return CPU

    def spent(self, cell: Cell) -> TimeSpent:
        return TimeSpent()


def _rows(cell: Cell) -> Measurement:
    own = self_measurement(_ROWS) if cell.is_reference else measurement(_ROWS)
    layers = dict.fromkeys(cell.model.layers, next(iter(own.layers.values())))
    if cell.id in NONFINITE:
        scalars = own.rows.scalars | {"nll_q": np.full(len(own.rows), np.nan)}
        own = dataclasses.replace(own, rows=dataclasses.replace(own.rows, scalars=scalars))
    if cell.id in DAMAGED:
        own = dataclasses.replace(own, rows=_doubled(own.rows, "kl"))
        layers = {layer: _doubled(rows, "moved") for layer, rows in layers.items()}
    if cell.id in RUINED:
        tokens = own.rows.scalars["tokens"]
        scalars = own.rows.scalars | {"kl": 1.38 * tokens, "top1_same": 0.1 * tokens}
        own = dataclasses.replace(own, rows=dataclasses.replace(own.rows, scalars=scalars))
    names = {"model": cell.model.name, "quantization": cell.quantization.name}
    return dataclasses.replace(own, layers=layers, **names)


def _doubled(rows: Rows, key: str) -> Rows:
    return dataclasses.replace(rows, scalars={**rows.scalars, key: 2 * rows.scalars[key]})


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    config.stash[INVOCATION_KEY].make_session = FakeSession
