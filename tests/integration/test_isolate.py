"""Cells in processes of their own (``--isolate``): a crash is one cell's, and the others go on."""

from __future__ import annotations

import os
import re
import signal
import time

import pytest

import killing

CRASHES = ("--registry", str(killing.FAULTS / "crashes.toml"), "-k", "evaluation or perplexity")


def by_quantization(document):
    return {cell["quantization"]: cell for cell in document["cells"]}


def test_a_crash_is_its_cells_alone(tmp_path):
    """A segmentation fault, an exit and a hang in backends: each marks its cell, and the rest is measured."""
    qsae_dir = tmp_path / "qsae"
    names = ("reference", "rtn_int4", "segfault", "exits", "hangs", "illegal_access", "rtn_int3")
    status, output = killing.run(
        qsae_dir, *CRASHES, "--isolate", "--isolate-timeout", "100", "--quantizations", ",".join(names),
        QSAE_HANG_SECONDS="1000",
    )  # fmt: skip
    assert status == 3, output  # nothing that was measured is a regression
    fates = {
        "segfault": "crashed: killed by SIGSEGV in test_evaluation",
        "exits": "crashed: ended with exit status 41 in test_evaluation",
        "hangs": "crashed: took longer than 100 s in test_evaluation",
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
    assert len(outcomes) == 2 * len(names)
    for test, outcome in outcomes.items():
        failed = any(f"-{name}]" in test for name in fates)
        assert (outcome in ("failure", "error")) == failed, (test, outcome)
    assert output.count("Traceback (most recent call last)") == 1, "the developer's, of the exception, once"


def test_isolated_cells_are_the_same_cells(tmp_path):
    """Also where the reference was not selected: it is measured once, for the others."""
    few = ("-k", "load or perplexity or fvu", "--quantizations", "rtn_int4,rtn_int3")
    status, output = killing.run(tmp_path / "apart", *few, "--isolate")
    together, _ = killing.run(tmp_path / "together", *few)
    assert status == together, output
    apart, whole = (killing.latest(tmp_path / name) for name in ("apart", "together"))
    assert [cell["quantization"] for cell in apart["cells"]] == ["reference", "rtn_int4", "rtn_int3"]
    assert killing.measured(apart) == killing.measured(whole)
    assert killing.outcomes(tmp_path / "apart") == killing.outcomes(tmp_path / "together")
    (stored,) = (tmp_path / "apart" / "references").iterdir()
    assert not stored.name.startswith(".")
    for key in ("weight_bytes", "peak_memory_bytes"):
        assert all(cell["metrics"][key]["value"] > 0 for cell in apart["cells"])
    assert re.search(r"tiny_gemma3 on tiny: 2,032 tokens in 16 sequences", output)


def test_ctrl_c_ends_the_child_and_leaves_a_run_to_resume(tmp_path):
    qsae_dir = tmp_path / "qsae"
    few = (*CRASHES, "--isolate", "--quantizations", "reference,hangs,rtn_int4")
    process = killing.start(qsae_dir, *few)
    until = time.monotonic() + 200
    while not list(qsae_dir.glob("runs/*/journal/[!.]*")) and time.monotonic() < until:
        time.sleep(0.05)
    time.sleep(3)
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=100)
    assert process.returncode == 2, output
    assert "unfinished: 1 of 3 cells are kept in" in output
    with pytest.raises(ProcessLookupError):  # nobody is left of its group
        os.killpg(process.pid, 0)
    # the backend comes back by now
    _, output = killing.run(qsae_dir, *few, "--resume", QSAE_HANG_SECONDS="0")
    assert "1 of 3 cells are finished" in output
    assert [cell["status"] for cell in killing.latest(qsae_dir)["cells"]] == ["measured"] * 3, output


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
