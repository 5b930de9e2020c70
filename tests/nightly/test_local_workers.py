"""Cells measured by worker processes: every option with workers as without, kills of a worker and of the driver."""

from __future__ import annotations

import os
import signal
from datetime import datetime

import pytest

import killing
from qsae_bench.results.document import read_run
from worker_runs import (
    EVERYTHING,
    FAULTY,
    at_work,
    by_quantization,
    check_cells,
    check_gone,
    check_nobody_left,
    check_resumed,
    check_run,
    check_runs,
    start_with_one_cell_left,
    undisturbed,
    wait_for,
    warnings_of,
)  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """(directory, exit status) of a run in one process."""
    qsae_dir = tmp_path_factory.mktemp("whole") / "qsae"
    return qsae_dir, killing.run(qsae_dir, *EVERYTHING)[0]


@pytest.fixture(scope="module")
def truth(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    return undisturbed(folder / "qsae", folder, "reference,once,waits,waits_too,rtn_int4")


@pytest.mark.parametrize("arguments", [("--workers", "2"), ("--workers", "2", "--shards", "3")])
def test_workers_measure_what_one_process_measures(whole, tmp_path, arguments):
    status, output = killing.run(tmp_path / "qsae", *EVERYTHING, *arguments)
    check_run(whole, tmp_path / "qsae", status, output, "local, 2 workers, threads each: 1")


def test_what_is_timed_beside_others_says_so(tmp_path):
    few = ("-k", "load or prefill or sae", "--quantizations", "reference,int8", "--workers", "2")
    _, output = killing.run(tmp_path / "qsae", *few)
    cells = killing.latest(tmp_path / "qsae")["cells"]
    assert [cell["shared_device"] for cell in cells] == [True, True]
    assert "† reference, int8: load and speeds: its device was shared" in " ".join(output.split())
    flags = [timing["flags"] for cell in cells for timing in cell["timings"].values()]
    assert flags
    assert all("its device was shared with other workers of this run" in one for one in flags), output


@pytest.mark.parametrize(
    "arguments",
    [
        ("--splice", "--noise-floor"),
        ("--no-reference-store", "--strict"),
        ("--benchmark-disable",),
        ("--benchmark-skip",),
        ("-x",),
    ],
    ids=" ".join,
)
def test_other_options_do_with_workers_what_they_do_without(tmp_path, arguments):
    """The reference is not selected: it is measured because the others need it."""
    few = (
        "-k", "load or perplexity or fvu", "--quantizations", "rtn_int4,rtn_int3", "--max-tokens", "4064", *arguments,
    )  # fmt: skip
    expected, expected_output = killing.run(tmp_path / "one", *few)
    status, output = killing.run(tmp_path / "workers", *few, "--workers", "2")
    assert status == expected, expected_output + output
    check_runs(tmp_path / "one", tmp_path / "workers")


SAME_MODEL = """
[models.other]
source = "package:tiny/data/model"
n_layers = 6
d_model = 192
layers = [1, 3, 4]
corpus = "tiny"
architecture = { model_type = "gemma3_text", vocab_size = 2560, intermediate_size = 768, num_attention_heads = 4, num_key_value_heads = 2, head_dim = 48, tie_word_embeddings = true }
sae = { folder = "%s", d_in = 192, d_sae = 2048 }
[models.other.reference_bounds]
cross_entropy = [%s]
"""


@pytest.mark.parametrize(
    ("saes", "bounds"), [("/nowhere", "0.5, 3.5"), ("package:tiny/data/saes", "0.1, 0.2")], ids=["no SAEs", "insane"]
)  # fmt: skip
def test_a_reference_that_is_refused_is_refused_the_same(tmp_path, saes, bounds):
    (tmp_path / "own.toml").write_text(SAME_MODEL % (saes, bounds), encoding="utf-8")
    few = (
        "--registry", str(tmp_path / "own.toml"), "--models", "other", "--quantizations", "reference,rtn_int4",
        "-k", "load or evaluation or perplexity",
    )  # fmt: skip
    expected, expected_output = killing.run(tmp_path / "one", *few)
    status, output = killing.run(tmp_path / "workers", *few, "--workers", "2")
    assert status == expected != 0, expected_output + output
    check_runs(tmp_path / "one", tmp_path / "workers")


def test_a_worker_that_somebody_kills(truth, tmp_path):
    """From outside, in the middle of a cell, while the other worker has another."""
    process = killing.start(
        tmp_path / "qsae", *FAULTY, "--workers", "2", "--quantizations", "reference,waits,waits_too",
        QSAE_MARKERS=str(tmp_path),
    )  # fmt: skip
    both = wait_for(lambda: len(found := at_work(tmp_path)) == 2 and found, process)
    os.kill(both[0], signal.SIGKILL)
    (tmp_path / "go on").touch()
    output, _ = process.communicate(timeout=400)
    assert list(by_quantization(tmp_path / "qsae")) == ["reference", "waits", "waits_too"]
    check_cells(truth, tmp_path / "qsae", "reference", "waits", "waits_too")
    assert output.count("ran again") >= 1
    check_nobody_left(process.pid)


def test_a_killed_driver_is_resumed(truth, tmp_path):
    few = (*FAULTY, "--workers", "2", "--quantizations", "reference,rtn_int4,waits")
    qsae_dir, environment = tmp_path / "qsae", {"QSAE_MARKERS": str(tmp_path)}
    process, worker = start_with_one_cell_left(qsae_dir, tmp_path, few, **environment)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    check_nobody_left(process.pid)
    check_gone(worker)
    check_resumed(truth, qsae_dir, tmp_path, few, **environment)


@pytest.fixture(scope="module")
def enough(truth):
    """Seconds in which a worker finishes any cell that does not hang: on a busy machine more than on a quiet one."""
    run = read_run(truth / "latest")
    took = datetime.fromisoformat(run.finished) - datetime.fromisoformat(run.started)
    return 30 + 2 * took.total_seconds()


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
