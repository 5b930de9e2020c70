"""Cells in processes of their own (``--isolate``): a crash is one cell's, and the others go on. More is nightly."""

from __future__ import annotations

import pytest

import killing

CRASHES = ("--registry", str(killing.FAULTS / "crashes.toml"), "-k", "evaluation or perplexity")


def by_quantization(document):
    return {cell["quantization"]: cell for cell in document["cells"]}


def test_a_crash_is_its_cells_alone(tmp_path):
    """A segmentation fault, an exit and a hang in backends: each marks its cell, and the rest is measured."""
    qsae_dir = tmp_path / "qsae"
    names = ("reference", "segfault", "exits", "hangs", "illegal_access", "rtn_int4")
    status, output = killing.run(
        qsae_dir, *CRASHES, "--max-tokens", "2032", "--isolate", "--isolate-timeout", "60", "--quantizations", ",".join(names),
        QSAE_HANG_SECONDS="1000",
    )  # fmt: skip
    assert status == 3, output  # nothing that was measured is a regression
    fates = {
        "segfault": "crashed: killed by SIGSEGV in test_evaluation",
        "exits": "crashed: ended with exit status 41 in test_evaluation",
        "hangs": "crashed: took longer than 60 s in test_evaluation",
        "illegal_access": "crashed: RuntimeError: CUDA error: an illegal memory access was encountered",
    }
    cells = by_quantization(killing.latest(qsae_dir))
    assert list(cells) == list(names)
    for name, cell in cells.items():
        if name in fates:
            assert (cell["status"], cell["reason"]) == ("crashed", f"tiny_gemma3-{name}: {fates[name]}")
        else:
            assert cell["status"] == "measured"
    said = " ".join(output.split())
    for name, fate in fates.items():
        assert f"tiny_gemma3: crashed ({name}): tiny_gemma3-{name}: {fate}" in said
    assert "the backend's last words" in output
    outcomes = killing.outcomes(qsae_dir)
    assert {name.rpartition("[")[2].split("-")[1].rstrip("]") for name in outcomes} == set(names)
    for test, outcome in outcomes.items():
        failed = any(f"-{name}" in test for name in fates)
        assert (outcome in ("failure", "error")) == failed, (test, outcome)
    assert output.count("Traceback (most recent call last)") == 1, "the developer's, of the exception, once"


def test_an_exception_marks_its_cell_once_and_holds_no_memory(tmp_path):
    """Without a process of its own, too: the traceback is told to the first test only, and frees its frames."""
    import gc

    from builders import one_line
    from qsae_bench.errors import Crashed
    from qsae_bench.gate.thresholds import Thresholds
    from qsae_bench.models.backends.python import module_named
    from qsae_bench.registry.entries import load_registry
    from qsae_bench.registry.specs import Selection
    from qsae_bench.run.document import run_document
    from qsae_bench.run.local_session import LocalSession
    from qsae_bench.run.session import SessionOptions

    module = module_named("crashes", killing.FAULTS)
    module.HELD.clear()
    registry = load_registry([killing.FAULTS / "crashes.toml"])
    few = Selection(models=("tiny_gemma3",), quantizations=("illegal_access", "rtn_int4"), tokens=2032)
    session = LocalSession(
        SessionOptions(registry, Thresholds({}), tmp_path, "test", few, on_warning=lambda line: None)
    )
    broken, fine = registry.select(few)
    session.require(broken)
    with pytest.raises(Crashed) as first:
        session.measure(broken)
    message, details = one_line(first.value), first.value.details
    del first
    assert message == (
        "tiny_gemma3-illegal_access: crashed: RuntimeError: CUDA error: an illegal memory access was encountered"
    )
    assert "crashes.py" in details
    assert details.splitlines()[0] == "Traceback (most recent call last):"
    gc.collect()
    assert len(module.HELD) == 2
    assert [held() for held in module.HELD] == [None, None], "the memory is not freed"
    with pytest.raises(Crashed) as later:
        session.measure(broken)
    assert (str(later.value), later.value.details) == (message, "")
    assert len(module.HELD) == 2, "it was tried again"
    session.require(fine)
    assert session.measure(fine).tokens > 0
    records = {cell.quantization: cell for cell in run_document(session).cells}
    session.close()
    assert (records["illegal_access"].status, records["illegal_access"].reason) == ("crashed", message)
    assert records["rtn_int4"].status == "measured"
