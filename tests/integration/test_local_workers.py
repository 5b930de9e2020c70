"""Cells measured by worker processes: the same numbers as in one, whatever dies meanwhile. More is nightly."""

from __future__ import annotations

import os
import signal
from datetime import datetime

import pytest

import killing
from qsae_bench.registry.specs import Shard
from qsae_bench.results.document import read_run
from worker_runs import (
    BENCHMARKS,
    FAULTY,
    SEQUENCES,
    TOKENS,
    by_quantization,
    check_cells,
    check_gone,
    check_nobody_left,
    check_resumed,
    check_run,
    start_with_one_cell_left,
    undisturbed,
    warnings_of,
)  # fmt: skip

pytestmark = pytest.mark.xdist_group("local_workers")


@pytest.fixture(scope="module")
def truth(tmp_path_factory):
    """A run of the faulty quantizations in which nothing dies."""
    folder = tmp_path_factory.mktemp("undisturbed")
    return undisturbed(folder / "qsae", folder, "reference,once,waits,rtn_int4")


@pytest.fixture(scope="module")
def enough(truth):
    """Seconds in which a worker finishes any cell that does not hang: on a busy machine more than on a quiet one."""
    run = read_run(truth / "latest")
    took = datetime.fromisoformat(run.finished) - datetime.fromisoformat(run.started)
    return 30 + 2 * took.total_seconds()


def test_shards_on_two_workers_measure_what_one_process_measures(tmp_path):
    few = ("--quantizations", "reference,nf4", *TOKENS, *BENCHMARKS)
    expected = tmp_path / "one", killing.run(tmp_path / "one", *few)[0]
    status, output = killing.run(tmp_path / "qsae", *few, "--workers", "2", "--shards", "3")
    check_run(expected, tmp_path / "qsae", status, output, "local, 2 workers, threads each: 1")
    corpus = killing.latest(tmp_path / "qsae")["corpus"]["tiny_gemma3"]
    assert corpus["sequences"] == SEQUENCES
    shards = [len(Shard(k, 3).of_batches(SEQUENCES, corpus["batch_size"])) for k in range(3)]
    assert shards == [16, 16, 16], "each of three has something to do"


def test_what_kills_a_worker_is_its_cells_alone(truth, enough, tmp_path):
    """Killed once: it runs again. Dead each time, or not back in time: that cell crashed. The rest is measured."""
    process = killing.start(
        tmp_path / "qsae", *FAULTY, "--quantizations", "reference,once,segfault,waits,rtn_int4",
        "--workers", "2", "--isolate-timeout", f"{enough:.0f}", QSAE_MARKERS=str(tmp_path),
    )  # fmt: skip
    output, _ = process.communicate(timeout=500)
    cells = by_quantization(tmp_path / "qsae")
    again = "tiny_gemma3-once: ran again: its worker was lost: killed by SIGKILL"
    assert again in " ".join(output.split()) and again in warnings_of(tmp_path / "qsae")
    assert cells["segfault"]["reason"].startswith(
        "tiny_gemma3-segfault: crashed: its worker died 3 times: killed by SIGSEGV; the last that it wrote: "
        "the backend's last words"
    )
    assert cells["waits"]["reason"] == f"tiny_gemma3-waits: crashed: took longer than {enough:.0f} s"
    assert [cells[name]["status"] for name in ("segfault", "waits")] == ["crashed", "crashed"]
    check_cells(truth, tmp_path / "qsae", "reference", "once", "rtn_int4")
    # the engine is in the document, and the rest of the environment is the worker's
    one, other = (killing.latest(run)["environment"] for run in (truth, tmp_path / "qsae"))
    assert other["executor"].startswith("local, 2 workers") and "executor" not in one
    assert [other[key] for key in ("versions", "cpu", "gpus")] == [
        one[key] for key in ("versions", "cpu", "gpus")
    ]
    check_nobody_left(process.pid)


def test_ctrl_c_leaves_a_run_to_resume_and_nobody_behind(truth, tmp_path):
    few = (*FAULTY, "--workers", "2", "--quantizations", "reference,rtn_int4,waits")
    qsae_dir, environment = tmp_path / "qsae", {"QSAE_MARKERS": str(tmp_path)}
    process, worker = start_with_one_cell_left(qsae_dir, tmp_path, few, **environment)
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 2, output
    assert "unfinished: 2 of 3 cells" in output
    assert "Traceback" not in output
    check_nobody_left(process.pid)
    check_gone(worker)
    check_resumed(truth, qsae_dir, tmp_path, few, **environment)
