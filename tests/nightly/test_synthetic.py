"""``--synthetic`` as users run it: real timings, and the memory that ``plan`` predicts for a billion parameters."""

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


def test_quality_is_not_applicable_and_timings_are_real(tmp_path):
    ran = synthetic_run(
        tmp_path, "-k", "tiny_gemma3", "--tokens", "2000", "--quantizations", "reference,nf4", "-rs"
    )
    assert ran.returncode == 0, ran.stdout[-3000:]
    assert "not applicable: --synthetic has random weights" in ran.stdout
    found = latest(tmp_path)
    assert found["synthetic"] and not any(cell["verdicts"] for cell in found["cells"])
    for cell in found["cells"]:
        assert cell["status"] == "measured"
        assert cell["metrics"]["prefill_tokens_per_second"]["value"] > 0
    rows = [line.split() for line in ran.stdout.splitlines() if line.startswith(("reference ", "nf4 "))]
    # a table wider than the terminal's 100 columns is split; the verdict is the last column of its last part
    assert [row[0] for row in rows if row[-1] == "n/a"] == ["reference", "nf4"]
