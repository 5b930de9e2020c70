"""Cells in processes of their own (``--isolate``) are the same cells; Ctrl-C ends them."""

from __future__ import annotations

import os
import re
import signal
import time

import pytest

import killing

CRASHES = ("--registry", str(killing.FAULTS / "crashes.toml"), "-k", "evaluation or perplexity")


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
    assert "unfinished: 1 of 3 cells are stored in" in output
    with pytest.raises(ProcessLookupError):  # nobody is left of its group
        os.killpg(process.pid, 0)
    # the backend comes back by now
    _, output = killing.run(qsae_dir, *few, "--resume", QSAE_HANG_SECONDS="0")
    assert "1 of 3 cells are finished" in output
    assert [cell["status"] for cell in killing.latest(qsae_dir)["cells"]] == ["measured"] * 3, output
