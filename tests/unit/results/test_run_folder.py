"""The folder of a run: whole at any moment at which its process may die, and one process's at a time."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from builders import one_line
from killing import check_readable
from qsae_bench import files
from qsae_bench.errors import QsaeError
from qsae_bench.results import journal, run_folder
from qsae_bench.results.document import read_run
from qsae_bench.results.run_files import write_run
from qsae_bench.results.run_folder import RunFolder, RunStart, clean_up, resume_run, unfinished_runs
from qsae_bench.run import child_process
from small_run import CELLS, CONDITIONS, ROWS, check_rows, document, entry, store_cells

# -- locking and resuming ---------------------------------------------------------------------------


def test_a_run_is_held_until_its_process_ends(tmp_path):
    folder = RunFolder.create(tmp_path, "pytest", CONDITIONS)
    assert RunFolder.acquire(folder.path) is None
    with pytest.raises(QsaeError, match="still runs"):
        resume_run(tmp_path, "", CONDITIONS)
    folder.close()
    again = resume_run(tmp_path, "", CONDITIONS)
    assert (again.path, again.start) == (folder.path, folder.start)
    again.close()


def test_a_killed_process_lets_its_run_go(tmp_path):
    def die(tell):
        folder = RunFolder.create(tmp_path, "pytest", CONDITIONS)
        tell(str(folder.path))
        os.kill(os.getpid(), signal.SIGKILL)

    ended = child_process.run_in_child(die)
    assert "SIGKILL" in ended.failure
    taken = RunFolder.acquire(Path(ended.lines[0]))
    assert taken is not None
    taken.close()


def test_the_newest_that_was_started_alike_is_resumed(tmp_path):
    paths = []
    for tokens in ("2032", "2032", "4064"):
        folder = RunFolder.create(tmp_path, f"pytest --tokens {tokens}", CONDITIONS | {"--tokens": tokens})
        folder.close()
        os.rename(folder.path, folder.path.with_name(f"{len(paths)}"))  # their ids are of one second
        paths.append(folder.path.with_name(f"{len(paths)}"))
    taken = resume_run(tmp_path, "", CONDITIONS)
    assert taken.path == paths[1]
    taken.close()
    taken = resume_run(tmp_path, str(paths[0]), CONDITIONS)
    assert taken.path == paths[0]
    taken.close()


@pytest.mark.parametrize(
    ("which", "conditions", "parts"),
    [
        ("", CONDITIONS | {"--tokens": "4064"}, ["--tokens: 2032 then, 4064 now", "by: pytest -k x"]),
        ("", CONDITIONS | {"torch's version": "3"}, ["torch's version: absent then, 3 now"]),
        ("nothing", CONDITIONS, ["no unfinished run 'nothing'", "runs"]),
        ("done", CONDITIONS, ["done is finished", "qsae-bench show"]),
    ],
)
def test_what_cant_be_resumed_takes_one_line(tmp_path, which, conditions, parts):
    RunFolder.create(tmp_path, "pytest -k x", CONDITIONS).close()
    write_run(tmp_path, document("done"), {})
    with pytest.raises(QsaeError) as caught:
        resume_run(tmp_path, which, conditions)
    message = one_line(caught.value)
    assert [part for part in parts if part not in message] == [], message


def test_nothing_to_resume_takes_one_line(tmp_path):
    with pytest.raises(QsaeError, match="no unfinished run in"):
        resume_run(tmp_path, "", CONDITIONS)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b"[" * 100_000, b"\xff"])
def test_a_folder_that_is_no_run_is_let_alone(tmp_path, content):
    folder = tmp_path / "runs" / "mine"
    folder.mkdir(parents=True)
    (folder / "started.json").write_bytes(content)
    assert list(unfinished_runs(tmp_path)) == []
    assert clean_up(tmp_path, CONDITIONS) == []
    assert (folder / "started.json").read_bytes() == content


def test_what_killed_runs_left_is_tidied(tmp_path):
    empty, useful, old, running, other, done = (
        RunFolder.create(tmp_path, "p", CONDITIONS) for _ in range(6)
    )
    for folder in (useful, old, running, other):
        journal.write(folder.path, entry("tiny-nf4"), ROWS["tiny-nf4"])
    done.finish(document(done.start.run_id), {}, {})
    for folder in (empty, useful, old, other, done):
        folder.close()
    text = (other.path / "started.json").read_text().replace("2032", "1016")
    (other.path / "started.json").write_text(text)
    long_ago = time.time() - 15 * 86_400
    half = tmp_path / "runs" / ".part-abc"
    half.mkdir()
    for path in (old.path, half):
        os.utime(path, (long_ago, long_ago))
    assert clean_up(tmp_path, CONDITIONS) == [useful.path.name]
    left = set((tmp_path / "runs").iterdir())
    assert left == {useful.path, running.path, other.path, done.path}
    assert sorted(path.name for path in done.path.iterdir()) == ["rows", "run.json"]
    running.close()


def test_what_another_process_finished_meanwhile_is_not_removed(tmp_path, monkeypatch):
    """It is told to be of no use, then gets its document, and only then is its lock free."""
    folder = RunFolder.create(tmp_path, "c", CONDITIONS)
    folder.close()
    locked = run_folder._locked

    def late(path):
        (path / "run.json").write_text("{}")
        return locked(path)

    monkeypatch.setattr(run_folder, "_locked", late)
    clean_up(tmp_path, CONDITIONS)
    assert (folder.path / "run.json").read_text() == "{}"
    monkeypatch.undo()
    (folder.path / "run.json").unlink()
    clean_up(tmp_path, CONDITIONS)
    assert not folder.path.exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
@pytest.mark.parametrize("which", ["", "20260101T000000Z-0000"])
def test_a_directory_that_cant_be_read_takes_one_line(tmp_path, which):
    runs = tmp_path / "runs"
    runs.mkdir()
    runs.chmod(0)
    try:
        with pytest.raises(QsaeError) as caught:
            resume_run(tmp_path, which, CONDITIONS)
    finally:
        runs.chmod(0o755)
    assert one_line(caught.value) == f"{runs}: can't be read: Permission denied"


def test_a_directory_that_the_system_wont_list_takes_one_line(tmp_path, monkeypatch):
    def fails(path):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    (tmp_path / "runs").mkdir()
    monkeypatch.setattr(Path, "iterdir", fails)
    with pytest.raises(QsaeError) as caught:
        resume_run(tmp_path, "", CONDITIONS)
    assert one_line(caught.value) == f"{tmp_path / 'runs'}: can't be read: Input/output error"


def test_started_names_what_differs():
    started = RunStart(run_id="r", started="s", command="c", conditions={"a": "1", "b": "2"})
    assert started.difference({"b": "2", "a": "1"}) == ""
    assert started.difference({"a": "1"}) == "b: 2 then, absent now"
    assert started.difference({"a": "1", "b": "2", "c": "3"}) == "c: absent then, 3 now"


# -- the end --------------------------------------------------------------------------------------------


def test_a_finished_run_holds_its_document_and_rows_and_nothing_else(tmp_path):
    folder = RunFolder.create(tmp_path, "pytest", CONDITIONS)
    kept = store_cells(folder, *CELLS[:2])
    stray = folder.path / "rows" / "tiny-skipped.parquet"
    stray.write_bytes(b"of a cell that was measured before the kill, and is skipped after it")
    before = (folder.path / "rows" / "tiny-int8.parquet").stat().st_ino
    done = folder.finish(document(folder.start.run_id), kept, {CELLS[2]: ROWS[CELLS[2]]})
    assert read_run(tmp_path / "latest") == document(folder.start.run_id)
    assert RunFolder.acquire(done) is None, "pytest still writes files of its own"
    folder.finalize()
    assert sorted(path.name for path in done.iterdir()) == ["rows", "run.json"]
    assert {path.stem for path in (done / "rows").glob("*.parquet")} == set(CELLS)
    assert (done / "rows" / "tiny-int8.parquet").stat().st_ino == before, "rows are not stored twice"
    assert read_run(tmp_path / "latest") == document(folder.start.run_id)
    assert list(unfinished_runs(tmp_path)) == []
    for cell in CELLS:
        check_rows(done, cell)


def test_an_unfinished_run_is_named_as_such(tmp_path):
    folder = RunFolder.create(tmp_path, "pytest", CONDITIONS)
    with pytest.raises(QsaeError, match="unfinished: it still runs, or goes on with --resume") as caught:
        read_run(folder.path)
    one_line(caught.value)
    folder.close()


@pytest.mark.parametrize("call", ["replace", "fsync", "open"])
def test_a_full_disk_at_the_end_leaves_the_run_to_be_resumed(tmp_path, monkeypatch, call):
    folder = RunFolder.create(tmp_path, "pytest", CONDITIONS)
    kept = store_cells(folder, *CELLS)

    def full(*args, **more):
        raise OSError(28, "No space left on device")

    target = {"replace": (os, "replace"), "fsync": (os, "fsync"), "open": (Path, "open")}[call]
    with monkeypatch.context() as patched:
        patched.setattr(*target, full)
        with pytest.raises(QsaeError, match="No space left on device") as caught:
            folder.finish(document(folder.start.run_id), kept, {})
    one_line(caught.value)
    folder.close()
    again = resume_run(tmp_path, "", CONDITIONS)
    again.finish(document(again.start.run_id), {cell: journal.read(again.path, cell) for cell in CELLS}, {})
    assert read_run(tmp_path / "latest").run_id == folder.start.run_id


def test_latest_that_is_in_the_way_is_said_and_the_run_is_there(tmp_path):
    (tmp_path / "latest").mkdir()
    folder = RunFolder.create(tmp_path, "pytest", CONDITIONS)
    with pytest.raises(QsaeError, match="is written, but"):
        folder.finish(document(folder.start.run_id), store_cells(folder, *CELLS), {})
    folder.finalize()
    assert read_run(folder.path).run_id == folder.start.run_id
    assert list(unfinished_runs(tmp_path)) == []


# -- killed at every step ---------------------------------------------------------------------------------

STEPS = (
    (os, "replace"), (os, "fsync"), (os, "unlink"), (os, "mkdir"), (os, "rmdir"), (os, "symlink"),
    (os, "open"), (journal, "write_rows"), (files, "_flush_to_disk"),
)  # fmt: skip
"""calls that change a folder, or come just before one that does"""


def night(qsae_dir: Path, deadline: int) -> None:
    """A run, or the rest of it: of a cell that is not in the journal yet, rows are written and kept.

    The process kills itself at the ``deadline``-th of the calls in STEPS.
    """
    count = 0

    def counted(original):
        def call(*args, **more):
            nonlocal count
            count += 1
            if count == deadline:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*args, **more)

        return call

    for module, name in STEPS:
        setattr(module, name, counted(getattr(module, name)))
    try:
        folder = resume_run(qsae_dir, "", CONDITIONS)
    except QsaeError:
        folder = RunFolder.create(qsae_dir, "pytest", CONDITIONS)
    kept = {}
    for cell in CELLS:
        kept[cell] = journal.read(folder.path, cell)
        if kept[cell] is None:
            with (qsae_dir / "measured").open("a") as file:
                file.write(f"{cell}\n")
            kept[cell] = journal.write(folder.path, entry(cell), ROWS[cell])
    folder.finish(document(folder.start.run_id), kept, {})
    folder.finalize()


@pytest.mark.slow
def test_killed_at_any_step_a_run_loses_nothing_and_no_reader_sees_half(tmp_path):
    """Every fifth step of a whole night is the last one once; then the night goes on, and ends."""
    for step in range(1, 10_000, 5):
        qsae_dir = tmp_path / str(step)
        qsae_dir.mkdir()
        ended = child_process.run_in_child(lambda tell, at=(qsae_dir, step): night(*at))
        check_readable(qsae_dir)
        finished = list(qsae_dir.glob("runs/*/run.json"))
        before = {
            path: (path.stat().st_ino, path.stat().st_mtime_ns)
            for path in qsae_dir.glob("runs/*/journal/[!.]*")
        }
        if not ended.failure:
            break
        assert "SIGKILL" in ended.failure, ended
        if list(unfinished_runs(qsae_dir)) or not finished:
            again = child_process.run_in_child(lambda tell, at=(qsae_dir, 0): night(*at))
            assert not again.failure, (step, again)
        run = read_run(qsae_dir / "latest")
        assert run == document(run.run_id), step
        (folder,) = (path for path in (qsae_dir / "runs").iterdir() if not path.name.startswith("."))
        for cell in CELLS:
            check_rows(folder, cell)
        measured = (qsae_dir / "measured").read_text().split()
        done = {path.stem for path in before}
        assert {cell: measured.count(cell) for cell in done} == dict.fromkeys(done, 1), step
        assert len(measured) <= len(CELLS) + 1, "the one that was being kept, at most"
    assert step > 50, "a night has more steps than that"


def test_two_processes_never_take_one_run(tmp_path):
    """Of several that try at once to resume it, one gets it."""
    RunFolder.create(tmp_path, "pytest", CONDITIONS).close()

    tried = tmp_path / "tried"
    tried.touch()

    def attempt(tell):
        taken = None
        with contextlib.suppress(QsaeError):
            taken = resume_run(tmp_path, "", CONDITIONS)
        with tried.open("a") as file:
            file.write("x")
        if taken is None:
            return tell("refused")
        assert RunFolder.acquire(taken.path) is None
        tell("taken")
        # held until all have tried: a process that ends lets go of its run
        until = time.monotonic() + 60
        while tried.stat().st_size < 6 and time.monotonic() < until:
            time.sleep(0.01)

    told = []
    threads = [
        threading.Thread(target=lambda: told.extend(child_process.run_in_child(attempt).lines))
        for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(told) == ["refused"] * 5 + ["taken"]
