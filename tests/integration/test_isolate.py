"""Cells in processes of their own: how a child ends, what it leaves, and that the others go on."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time

import pytest

import killing
from qsae_bench.run import child_process as isolation
from qsae_bench.run.child_process import in_child

CRASHES = ("--registry", str(killing.FAULTS / "crashes.toml"), "-k", "evaluation or perplexity")

# -- a child ------------------------------------------------------------------------------------------


def test_a_child_tells_and_ends():
    def work(tell):
        tell("one")
        tell("two: ü \udc80")
        os.environ["QSAE_CHILD"] = "changes nothing here"

    ended = in_child(work)
    assert (ended.fate, ended.told) == ("", ("one", "two: ü ?"))
    assert "QSAE_CHILD" not in os.environ


@pytest.mark.parametrize(
    ("work", "fate"),
    [
        (lambda tell: os.kill(os.getpid(), signal.SIGSEGV), "killed by SIGSEGV"),
        (lambda tell: os.kill(os.getpid(), signal.SIGKILL), "killed by SIGKILL: by hand, or"),
        (lambda tell: os.kill(os.getpid(), signal.SIGRTMIN + 1), "killed by signal 35"),
        (lambda tell: os._exit(41), "ended with exit status 41"),
        (lambda tell: sys.exit(3), "ended with exit status 70"),
        (lambda tell: 1 / 0, "ended with exit status 70"),
        (lambda tell: os.kill(os.getpid(), signal.SIGINT) or time.sleep(5), "interrupted"),
    ],
)
def test_how_a_child_ended(work, fate, capfd):
    def after_a_word(tell):
        tell("begun")
        work(tell)

    ended = in_child(after_a_word)
    assert ended.fate.startswith(fate)
    assert ended.told == ("begun",)


def test_a_child_that_tells_much_is_read_while_it_runs():
    """More than a pipe holds: a parent that only waited would wait for ever."""
    ended = in_child(lambda tell: [tell("x" * 1000) for _ in range(1000)], timeout_seconds=60)
    assert ended.fate == ""
    assert len(ended.told) == 1000


def test_a_child_that_takes_too_long_is_killed():
    started = time.monotonic()
    ended = in_child(lambda tell: time.sleep(600), timeout_seconds=0.3)
    assert ended.fate == "took longer than 0.3 s"
    assert time.monotonic() - started < 60


def test_a_child_that_does_not_die_is_left_and_said(monkeypatch):
    """SIGKILL waits for a driver's call to end; here it is not sent at all."""
    children, real = [], os.kill
    monkeypatch.setattr(os, "kill", lambda pid, number: children.append(pid))
    monkeypatch.setattr(isolation, "DYING_SECONDS", 0.3)
    started = time.monotonic()
    ended = in_child(lambda tell: tell("begun") or time.sleep(600), timeout_seconds=0.2)
    (child,) = children
    real(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert time.monotonic() - started < 60
    assert ended.told == ("begun",)
    assert ended.fate == (
        f"took longer than 0.2 s, and its process {child} did not die within 0.3 s of being killed"
    )


@pytest.mark.alone
def test_a_process_that_the_child_leaves_behind_is_not_waited_for():
    def work(tell):
        if os.fork() == 0:
            time.sleep(3)
            os._exit(0)

    started = time.monotonic()
    assert in_child(work).fate == ""
    assert time.monotonic() - started < 2.5


def test_what_ends_the_wait_ends_the_child(monkeypatch):
    import select

    children = []

    def interrupted(*args):
        raise KeyboardInterrupt

    real = os.fork
    monkeypatch.setattr(os, "fork", lambda: children.append(real()) or children[-1])
    monkeypatch.setattr(select, "select", interrupted)
    with pytest.raises(KeyboardInterrupt):
        in_child(lambda tell: time.sleep(600))
    with pytest.raises(ChildProcessError):  # it is gone, and was waited for
        os.waitpid(children[0], 0)


@pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="what ties a child to its parent is Linux's"
)
def test_a_child_dies_with_its_parent(tmp_path):
    code = (
        "import os, sys, time\n"
        "from qsae_bench.run.child_process import in_child\n"
        "def work(tell):\n"
        "    open(sys.argv[1], 'w').write(str(os.getpid()))\n"
        "    time.sleep(600)\n"
        "in_child(work)\n"
    )
    path = tmp_path / "pid"
    parent = subprocess.Popen([sys.executable, "-c", code, str(path)])
    until = time.monotonic() + 60
    while not (path.exists() and path.read_text()) and time.monotonic() < until:
        time.sleep(0.01)
    child = int(path.read_text())
    parent.kill()
    parent.wait()
    while time.monotonic() < until:
        try:
            with open(f"/proc/{child}/stat") as file:
                if file.read().rpartition(")")[2].split()[0] == "Z":
                    return
        except OSError:
            return
        time.sleep(0.02)
    os.kill(child, signal.SIGKILL)
    pytest.fail("the child lives on")


# -- cells ----------------------------------------------------------------------------------------------


def by_quantization(document):
    return {cell["quantization"]: cell for cell in document["cells"]}


@pytest.mark.large
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


@pytest.mark.large
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


@pytest.mark.large
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


@pytest.mark.large
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
        SessionOptions(registry, Thresholds({}), tmp_path, "test", few, say=lambda line: None)
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
