"""No cell's numbers depend on which cells ran before it, whatever libraries those brought along."""

from __future__ import annotations

import random

from builders import needs
from qsae_bench.gate.thresholds import Thresholds
from qsae_bench.registry.entries import Selection, load_registry
from qsae_bench.run.local_session import LocalSession
from qsae_bench.run.session import SessionOptions

QUANTIZATIONS = ("reference", "int8", "nf4", "torchao_int8", "quanto_int8", "hqq_int4", "rtn_int4")


def values(measured):
    found = {key: e.value for key, e in measured.estimates.cell.items()}
    for layer, estimates in measured.estimates.layers.items():
        found |= {f"layer{layer} {key}": e.value for key, e in estimates.items()}
    return found


@needs("torchao", "optimum.quanto", "hqq")
def test_shuffled_cells_measure_the_same(tmp_path):
    registry = load_registry()
    selection = Selection(models=("tiny_gemma3",), quantizations=QUANTIZATIONS, tokens=2032)
    cells = list(registry.select(selection))
    found = []
    for seed in (None, 1):
        order = list(cells)
        if seed is not None:
            random.Random(seed).shuffle(order)
        session = LocalSession(
            SessionOptions(registry, Thresholds({}), tmp_path, "test", selection=selection)
        )
        # bits too: they are taken from what is stored
        found.append(
            {cell.id: values(session.measure(cell)) | {"bits": session.costs(cell).get("bits_per_weight")}
             for cell in order if cell.quantization.name != "reference"}
        )  # fmt: skip
        session.close()
    assert len(found[0]) == len(QUANTIZATIONS) - 1
    assert found[0] == found[1]
