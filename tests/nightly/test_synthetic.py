"""A billion random parameters: what ``plan`` predicts is the memory that the run takes."""

from __future__ import annotations

from qsae_bench.measure import resources
from qsae_bench.registry.entries import load_registry
from qsae_bench.registry.specs import Selection
from synthetic_runs import latest, synthetic_run


def test_one_billion_parameters_take_the_memory_that_plan_predicts(tmp_path):
    registry = load_registry()
    asked = ("--tokens", "1000", "--sequence-length", "128")
    ran = synthetic_run(
        tmp_path, "-k", "gemma3_1b and evaluation", "--quantizations", "reference,int8,nf4", *asked
    )
    assert ran.returncode == 0, ran.stdout[-3000:]
    selection = Selection(
        models=("gemma3_1b",), quantizations=("reference", "int8", "nf4"), synthetic=True, tokens=1000,
        sequence_length=128,
    )  # fmt: skip
    measured = {
        cell["quantization"]: cell["metrics"]["peak_memory_bytes"]["value"]
        for cell in latest(tmp_path)["cells"]
    }
    for cell in registry.select(selection):
        predicted = resources.estimate_need(
            cell, registry.corpus_of(cell.model, selection), on_gpu=False
        ).memory
        ratio = measured[cell.quantization.name] / predicted
        print(f"{cell.id}: measured / predicted = {ratio:.3f}")
        assert 0.85 < ratio < 1.15
