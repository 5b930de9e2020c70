"""Runs that are cut off and resumed, end where nothing could be written, or share a directory: as users see it."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import time
from pathlib import Path

import pytest

import killing
from qsae_bench.results.document import read_run
from qsae_bench.results.rows import read_rows

FEW = (
    "-k",
    "load or evaluation or perplexity or fvu",
    "--quantizations",
    "reference,rtn_int4,rtn_int3",
    "-v",
)


def wait_for(condition, process, seconds=200):
    until = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < until, "nothing happened"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """(directory, exit status, output) of a run that nothing happened to."""
    qsae_dir = tmp_path_factory.mktemp("undisturbed") / "qsae"
    return qsae_dir, *killing.run(qsae_dir, *FEW)


@pytest.fixture(scope="module")
def cut_off(tmp_path_factory):
    """A directory with a run that was killed when its first cell was finished, and the entry's state."""
    qsae_dir = tmp_path_factory.mktemp("cut_off") / "qsae"
    process = killing.start(qsae_dir, *FEW)
    wait_for(lambda: killing.entries(qsae_dir), process)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    return qsae_dir, killing.journal_of(qsae_dir)


def test_a_run_that_was_started_otherwise_ends_before_anything_runs(cut_off):
    """One of the reasons, in a process; tests/unit has the others."""
    qsae_dir, before = cut_off
    status, output = killing.run(qsae_dir, *FEW, "--resume", "--splice")
    assert status == 2, output
    (line,) = [line for line in output.splitlines() if line.startswith("ERROR")]
    assert "--resume: " in line and "was started otherwise (--splice: default then, True now)" in line
    assert "Traceback" not in output
    assert killing.journal_of(qsae_dir) == before


def test_a_resumed_run_is_the_run(cut_off, undisturbed):
    """It repeats nothing, and its document, JUnit and terminal are those of a run that went through."""
    qsae_dir, before = cut_off
    assert killing.entries(qsae_dir) == ["tiny_gemma3-reference"]
    killing.check_readable(qsae_dir)
    status, output = killing.run(qsae_dir, *FEW, "--resume")
    whole, status_then, output_then = undisturbed
    assert status == status_then, output
    assert "of 3 cells are finished" in output
    assert killing.measured(killing.latest(qsae_dir)) == killing.measured(killing.latest(whole))
    assert killing.outcomes(qsae_dir) == killing.outcomes(whole)
    verbose = re.compile(r"^benchmarks/\S+ [A-Z]+", re.M)
    assert verbose.findall(output) == verbose.findall(output_then)
    timings = re.compile(r"^test_evaluation\[\S+\]", re.M)
    assert timings.findall(output) == timings.findall(output_then) != [], "pytest-benchmark's table"
    document = killing.latest(qsae_dir)
    (run,) = (qsae_dir / "runs").iterdir()
    assert document["run_id"] == run.name
    assert "--resume" not in document["command"]
    for path, (inode, _, content) in before.items():
        if "/rows/" in path:
            assert (os.stat(path).st_ino, Path(path).read_bytes()) == (inode, content), "measured again"
    reference = next(cell for cell in document["cells"] if cell["quantization"] == "reference")
    stored = next(json.loads(content) for path, (*_, content) in before.items() if path.endswith(".json"))
    assert stored["record"]["metrics"] == reference["metrics"], "timings too are those of the first process"
    assert sorted(path.name for path in run.iterdir()) == ["rows", "run.json", "summary.md"]


def test_after_ctrl_c_it_goes_on_and_a_damaged_entry_is_measured_again(tmp_path, undisturbed):
    qsae_dir = tmp_path / "qsae"
    status, output = killing.run(qsae_dir, *FEW, "-p", "interrupted")
    assert status == 2, output
    assert "unfinished: 2 of 3 cells are stored in" in output
    assert "--resume goes on with it" in output
    (rows,) = qsae_dir.glob("runs/*/rows/tiny_gemma3-reference.parquet")
    rows.write_bytes(rows.read_bytes()[:-1])
    status, output = killing.run(qsae_dir, *FEW, "--resume", "--isolate")
    assert status == undisturbed[1], output
    assert "tiny_gemma3-reference.parquet: damaged" in output
    assert "tiny_gemma3-reference is measured again" in output
    assert killing.measured(killing.latest(qsae_dir)) == killing.measured(killing.latest(undisturbed[0]))


def test_two_runs_at_once_in_one_directory(tmp_path, undisturbed):
    qsae_dir = tmp_path / "qsae"
    both = [killing.start(qsae_dir, *FEW, "--junit-xml", str(tmp_path / f"{n}.xml")) for n in range(2)]
    outputs = [process.communicate(timeout=400)[0] for process in both]
    assert [process.returncode for process in both] == [undisturbed[1]] * 2, outputs
    runs = [read_run(path) for path in sorted((qsae_dir / "runs").iterdir())]
    assert len({run.run_id for run in runs}) == 2
    assert killing.latest(qsae_dir)["run_id"] in {run.run_id for run in runs}
    truth = killing.measured(killing.latest(undisturbed[0]))
    for run in runs:
        assert killing.measured(json.loads(run.model_dump_json())) == truth
    killing.check_readable(qsae_dir)


# -- places that can't be written -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A directory with references and text: only the run itself is still to be written."""
    qsae_dir = tmp_path_factory.mktemp("prepared") / "qsae"
    status, output = killing.run(qsae_dir, "-k", "perplexity", "--quantizations", "rtn_int4")
    assert status == 0, output
    return qsae_dir


@pytest.mark.parametrize("when", ["from the start", "at the second cell", "at the end"])
def test_a_full_disk_keeps_what_was_measured(prepared, tmp_path, when):
    """Planted where the kernel would say it: at the writes of a run's folder, from some moment on."""
    qsae_dir, elsewhere = tmp_path / "qsae", tmp_path / "tmp"
    elsewhere.mkdir()
    shutil.copytree(prepared, qsae_dir, symlinks=True)
    status, output = killing.run(
        qsae_dir, "-k", "perplexity", "--quantizations", "rtn_int4,rtn_int3", "-p", "full_disk",
        QSAE_FULL_DISK=f"{qsae_dir}/runs", QSAE_FULL_FROM=when, TMPDIR=str(elsewhere),
    )  # fmt: skip
    assert status == 3, output  # all gates pass, and the run is not where it belongs
    assert "Traceback" not in output
    (line,) = [line for line in output.splitlines() if line.startswith("ERROR")]
    assert "No space left on device" in line
    folder = Path(re.search(r"it is stored in (\S+)", line)[1])
    assert folder.is_relative_to(elsewhere)
    document = read_run(folder)
    assert [cell.quantization for cell in document.cells] == ["reference", "rtn_int4", "rtn_int3"]
    for cell in document.cells:
        assert len(read_rows(folder / "rows" / f"{cell.model}-{cell.quantization}.parquet").rows) == 16
    warnings = [line for line in output.splitlines() if "finished cells can't be stored" in line]
    assert len(warnings) == (0 if when == "at the end" else 1), output
    killing.check_readable(qsae_dir)


def test_a_place_that_is_no_folder_keeps_what_was_measured(tmp_path):
    (tmp_path / "qsae").mkdir()
    (tmp_path / "qsae" / "runs").write_text("in the way")
    status, output = killing.run(
        tmp_path / "qsae", "-k", "perplexity", "--quantizations", "rtn_int4", "--isolate",
        TMPDIR=str(tmp_path),
    )  # fmt: skip
    assert status == 3, output
    (line,) = [line for line in output.splitlines() if line.startswith("ERROR")]
    folder = Path(re.search(r"it is stored in (\S+)", line)[1])
    assert [cell.status for cell in read_run(folder).cells] == ["measured", "measured"]
