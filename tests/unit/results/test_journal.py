"""The journal of a run: exact, whole at any moment at which its process may die, and one process's at a time."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import re
import signal
import tempfile
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from builders import measurement, one_line, synthetic
from killing import check_readable
from qsae_bench import files as disk
from qsae_bench.app.replay import Keeper
from qsae_bench.errors import QsaeError
from qsae_bench.gate.cell_result import CellResult
from qsae_bench.results import document as results
from qsae_bench.results import journal, run_folder
from qsae_bench.results.document import CellRecord, RunDocument, read_run
from qsae_bench.results.journal import Entry, Kept, Sane
from qsae_bench.results.rows import read_rows
from qsae_bench.results.run_folder import RunFolder, Started, resumed, tidy, unfinished
from qsae_bench.run import child_process as isolation
from qsae_bench.stats.bootstrap import Estimate, Estimates, estimate

CELLS = ("tiny-reference", "tiny-int8", "tiny-nf4")
ROWS = {
    cell: measurement(
        synthetic(seed, n=6), quantization=cell.partition("-")[2], costs={"load_seconds": 0.1}
    )
    for seed, cell in enumerate(CELLS)
}
CONDITIONS = {"--tokens": "2032", "thresholds": "abc"}


def entry(cell: str, **changes) -> Entry:
    model, _, quantization = cell.partition("-")
    record = CellRecord(model=model, quantization=quantization, status="measured", tokens=len(cell))
    return Entry(
        **({"cell": cell, "record": record, "tests": {f"t[{cell}]": [{"when": "call"}]}} | changes)
    )


def document(run_id: str, cells=CELLS) -> RunDocument:
    return RunDocument(
        schema_version=1, run_id=run_id, started="s", finished="f", command="pytest", environment={},
        corpus={}, cells=[entry(cell).record for cell in cells],
    )  # fmt: skip


def check_rows(folder: Path, cell: str) -> None:
    found, true = read_rows(folder / "rows" / f"{cell}.parquet"), ROWS[cell]
    for mine, other in (
        (found.rows, true.rows),
        *zip(found.layers.values(), true.layers.values(), strict=True),
    ):
        for columns, others in ((mine.scalars, other.scalars), (mine.vectors, other.vectors)):
            assert columns.keys() == others.keys()
            assert all(columns[key].tobytes() == others[key].tobytes() for key in columns)


# -- one entry --------------------------------------------------------------------------------------

numbers = st.floats() | st.none()
estimates = st.dictionaries(
    st.sampled_from(["fvu", "l0", "x"]), st.builds(Estimate, st.floats(), numbers, numbers), min_size=1
)


@given(estimates, st.dictionaries(st.integers(0, 40), estimates, max_size=3))
def test_estimates_come_back_to_the_last_bit(cell, layers):
    one = Estimates(cell, layers)
    back = journal.unpack(json.loads(json.dumps(journal.pack(one), allow_nan=False)))
    # repr: NaN is not equal to itself, and −0.0 equals 0.0
    assert repr(back) == repr(one)


def test_a_reference_comes_back_as_it_was(tmp_path):
    rows = ROWS["tiny-reference"]
    whole = estimate(rows)
    measured = CellResult(rows, whole, (127, 254), 508, exhausted=True, floor=whole, broken="why")
    kept = journal.write(tmp_path, entry("tiny-reference", reference=Sane.of(measured)), rows)
    back = journal.read(tmp_path, "tiny-reference")
    assert back == kept
    again = back.entry.reference.measured(back.measurement())
    assert repr(again.estimates) == repr(measured.estimates) == repr(again.floor)
    assert (again.looks, again.planned_tokens, again.exhausted, again.broken) == (
        (127, 254),
        508,
        True,
        "why",
    )
    assert again.is_last_look
    assert again.critical == measured.critical
    assert repr(estimate(again.measurement)) == repr(whole)


@settings(max_examples=50)
@given(st.text(), st.binary(max_size=20))
def test_any_output_of_a_test_can_be_kept(tmp_path_factory, text, output):
    folder = tmp_path_factory.mktemp("run")
    said = {
        "sections": [("out", text), ("err", output.decode("utf-8", "surrogateescape"))],
        "duration": 0.1,
    }
    tests = {"t": [json.loads(json.dumps(said))]}
    journal.write(folder, entry("a-b", tests=tests), None)
    assert journal.read(folder, "a-b").entry.tests == tests


def test_a_number_that_is_not_finite_is_no_entry(tmp_path):
    with pytest.raises(ValueError, match="JSON compliant"):
        journal.write(tmp_path, entry("a-b", costs={"load_seconds": math.nan}), None)
    assert journal.cells(tmp_path) == []
    assert [path.name for path in (tmp_path / "journal").iterdir()] == []


def test_what_is_not_there_is_none(tmp_path):
    assert journal.read(tmp_path, "a-b") is None
    assert journal.cells(tmp_path) == []


@pytest.mark.parametrize("damage", ["json", "rows", "features", "gone", "foreign", "deep"])
def test_a_damaged_entry_takes_one_line(tmp_path, damage):
    journal.write(tmp_path, entry("tiny-nf4"), ROWS["tiny-nf4"])
    path = tmp_path / "journal" / "tiny-nf4.json"
    rows = tmp_path / "rows" / "tiny-nf4.parquet"
    features = tmp_path / "rows" / "tiny-nf4.features.safetensors"
    if damage == "json":
        path.write_bytes(path.read_bytes()[:-9])
    elif damage == "foreign":
        path.write_text('{"format": 2}')
    elif damage == "deep":
        path.write_bytes(b"[" * 100_000)
    elif damage == "gone":
        rows.unlink()
    else:
        which = rows if damage == "rows" else features
        content = bytearray(which.read_bytes())
        content[len(content) // 2] ^= 1
        which.write_bytes(bytes(content))
    with pytest.raises(QsaeError) as caught:
        journal.read(tmp_path, "tiny-nf4")
    assert str(tmp_path) in one_line(caught.value)


# -- one holder ---------------------------------------------------------------------------------------


def test_a_run_is_held_until_its_process_ends(tmp_path):
    folder = RunFolder.create(tmp_path, "pytest", CONDITIONS)
    assert RunFolder.take(folder.path) is None
    with pytest.raises(QsaeError, match="still runs"):
        resumed(tmp_path, "", CONDITIONS)
    folder.close()
    again = resumed(tmp_path, "", CONDITIONS)
    assert (again.path, again.about) == (folder.path, folder.about)
    again.close()


def test_a_killed_process_lets_its_run_go(tmp_path):
    def die(tell):
        tell(str(RunFolder.create(tmp_path, "pytest", CONDITIONS).path))
        os.kill(os.getpid(), signal.SIGKILL)

    ended = isolation.in_child(die)
    assert "SIGKILL" in ended.fate
    taken = RunFolder.take(Path(ended.told[0]))
    assert taken is not None
    taken.close()


def test_the_newest_that_was_started_alike_is_resumed(tmp_path):
    paths = []
    for tokens in ("2032", "2032", "4064"):
        folder = RunFolder.create(tmp_path, f"pytest --tokens {tokens}", CONDITIONS | {"--tokens": tokens})
        folder.close()
        os.rename(folder.path, folder.path.with_name(f"{len(paths)}"))  # their ids are of one second
        paths.append(folder.path.with_name(f"{len(paths)}"))
    taken = resumed(tmp_path, "", CONDITIONS)
    assert taken.path == paths[1]
    taken.close()
    taken = resumed(tmp_path, str(paths[0]), CONDITIONS)
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
    results.write_run(tmp_path, document("done"), {})
    with pytest.raises(QsaeError) as caught:
        resumed(tmp_path, which, conditions)
    message = one_line(caught.value)
    assert [part for part in parts if part not in message] == [], message


def test_nothing_to_resume_takes_one_line(tmp_path):
    with pytest.raises(QsaeError, match="no unfinished run in"):
        resumed(tmp_path, "", CONDITIONS)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b"[" * 100_000, b"\xff"])
def test_a_folder_that_is_no_run_is_let_alone(tmp_path, content):
    folder = tmp_path / "runs" / "mine"
    folder.mkdir(parents=True)
    (folder / "started.json").write_bytes(content)
    assert list(unfinished(tmp_path)) == []
    assert tidy(tmp_path, CONDITIONS) == []
    assert (folder / "started.json").read_bytes() == content


def test_what_killed_runs_left_is_tidied(tmp_path):
    empty, useful, old, running, other, done = (
        RunFolder.create(tmp_path, "p", CONDITIONS) for _ in range(6)
    )
    for folder in (useful, old, running, other):
        journal.write(folder.path, entry("tiny-nf4"), ROWS["tiny-nf4"])
    done.finish(document(done.about.run_id), {}, {})
    for folder in (empty, useful, old, other, done):
        folder.close()
    text = (other.path / "started.json").read_text().replace("2032", "1016")
    (other.path / "started.json").write_text(text)
    long_ago = time.time() - 15 * 86_400
    half = tmp_path / "runs" / ".part-abc"
    half.mkdir()
    for path in (old.path, half):
        os.utime(path, (long_ago, long_ago))
    assert tidy(tmp_path, CONDITIONS) == [useful.path.name]
    left = set((tmp_path / "runs").iterdir())
    assert left == {useful.path, running.path, other.path, done.path}
    assert sorted(path.name for path in done.path.iterdir()) == ["rows", "run.json"]
    running.close()


def test_what_another_process_finished_meanwhile_is_not_removed(tmp_path, monkeypatch):
    """It is told to be of no use, then gets its document, and only then is its lock free."""
    folder = RunFolder.create(tmp_path, "c", CONDITIONS)
    folder.close()
    hold = run_folder._hold

    def late(path):
        (path / "run.json").write_text("{}")
        return hold(path)

    monkeypatch.setattr(run_folder, "_hold", late)
    tidy(tmp_path, CONDITIONS)
    assert (folder.path / "run.json").read_text() == "{}"
    monkeypatch.undo()
    (folder.path / "run.json").unlink()
    tidy(tmp_path, CONDITIONS)
    assert not folder.path.exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
@pytest.mark.parametrize("which", ["", "20260101T000000Z-0000"])
def test_a_directory_that_cant_be_read_takes_one_line(tmp_path, which):
    runs = tmp_path / "runs"
    runs.mkdir()
    runs.chmod(0)
    try:
        with pytest.raises(QsaeError) as caught:
            resumed(tmp_path, which, CONDITIONS)
    finally:
        runs.chmod(0o755)
    assert one_line(caught.value) == f"{runs}: can't be read: Permission denied"


def test_a_directory_that_the_system_wont_list_takes_one_line(tmp_path, monkeypatch):
    def fails(path):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    (tmp_path / "runs").mkdir()
    monkeypatch.setattr(Path, "iterdir", fails)
    with pytest.raises(QsaeError) as caught:
        resumed(tmp_path, "", CONDITIONS)
    assert one_line(caught.value) == f"{tmp_path / 'runs'}: can't be read: Input/output error"


def test_started_names_what_differs():
    started = Started(run_id="r", started="s", command="c", conditions={"a": "1", "b": "2"})
    assert started.difference({"b": "2", "a": "1"}) == ""
    assert started.difference({"a": "1"}) == "b: 2 then, absent now"
    assert started.difference({"a": "1", "b": "2", "c": "3"}) == "c: absent then, 3 now"


# -- the end --------------------------------------------------------------------------------------------


def kept_in(folder: RunFolder, *cells: str) -> dict[str, Kept]:
    return {cell: journal.write(folder.path, entry(cell), ROWS[cell]) for cell in cells}


def test_a_finished_run_holds_its_document_and_rows_and_nothing_else(tmp_path):
    folder = RunFolder.create(tmp_path, "pytest", CONDITIONS)
    kept = kept_in(folder, *CELLS[:2])
    stray = folder.path / "rows" / "tiny-skipped.parquet"
    stray.write_bytes(b"of a cell that was measured before the kill, and is skipped after it")
    before = (folder.path / "rows" / "tiny-int8.parquet").stat().st_ino
    done = folder.finish(document(folder.about.run_id), kept, {CELLS[2]: ROWS[CELLS[2]]})
    assert read_run(tmp_path / "latest") == document(folder.about.run_id)
    assert RunFolder.take(done) is None, "pytest still writes files of its own"
    folder.seal()
    assert sorted(path.name for path in done.iterdir()) == ["rows", "run.json"]
    assert {path.stem for path in (done / "rows").glob("*.parquet")} == set(CELLS)
    assert (done / "rows" / "tiny-int8.parquet").stat().st_ino == before, "rows are not stored twice"
    assert read_run(tmp_path / "latest") == document(folder.about.run_id)
    assert list(unfinished(tmp_path)) == []
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
    kept = kept_in(folder, *CELLS)

    def full(*args, **more):
        raise OSError(28, "No space left on device")

    target = {"replace": (os, "replace"), "fsync": (os, "fsync"), "open": (Path, "open")}[call]
    with monkeypatch.context() as patched:
        patched.setattr(*target, full)
        with pytest.raises(QsaeError, match="No space left on device") as caught:
            folder.finish(document(folder.about.run_id), kept, {})
    one_line(caught.value)
    folder.close()
    again = resumed(tmp_path, "", CONDITIONS)
    again.finish(document(again.about.run_id), {cell: journal.read(again.path, cell) for cell in CELLS}, {})
    assert read_run(tmp_path / "latest").run_id == folder.about.run_id


def test_one_cells_lost_rows_do_not_lose_the_others(tmp_path, monkeypatch):
    """Where the run can't be written, what is kept of it goes elsewhere: all of it that can be read."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    folder = RunFolder.create(tmp_path, "c", CONDITIONS)
    keeper, said = Keeper.__new__(Keeper), []
    keeper.kept, keeper.say = kept_in(folder, *CELLS), said.append
    (folder.path / "rows" / "tiny-int8.parquet").write_bytes(b"damaged")
    error = keeper._elsewhere(document("20260101T000000Z-0000"), {}, QsaeError("no room"))
    place = Path(re.fullmatch(r"no room; it is kept in (\S+)", one_line(error))[1])
    assert [cell.quantization for cell in read_run(place).cells] == ["reference", "int8", "nf4"]
    for cell in ("tiny-reference", "tiny-nf4"):
        check_rows(place, cell)
    assert not (place / "rows" / "tiny-int8.parquet").exists()
    (line,) = said
    assert "tiny-int8.parquet" in line and line.endswith("the rows of tiny-int8 are lost")
    folder.close()


def test_latest_that_is_in_the_way_is_said_and_the_run_is_there(tmp_path):
    (tmp_path / "latest").mkdir()
    folder = RunFolder.create(tmp_path, "pytest", CONDITIONS)
    with pytest.raises(QsaeError, match="is written, but"):
        folder.finish(document(folder.about.run_id), kept_in(folder, *CELLS), {})
    folder.seal()
    assert read_run(folder.path).run_id == folder.about.run_id
    assert list(unfinished(tmp_path)) == []


# -- killed at every step ---------------------------------------------------------------------------------

STEPS = (
    (os, "replace"), (os, "fsync"), (os, "unlink"), (os, "mkdir"), (os, "rmdir"), (os, "symlink"),
    (os, "open"), (journal, "write_rows"), (disk, "_flush_to_disk"),
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
        folder = resumed(qsae_dir, "", CONDITIONS)
    except QsaeError:
        folder = RunFolder.create(qsae_dir, "pytest", CONDITIONS)
    kept = {}
    for cell in CELLS:
        kept[cell] = journal.read(folder.path, cell)
        if kept[cell] is None:
            with (qsae_dir / "measured").open("a") as file:
                file.write(f"{cell}\n")
            kept[cell] = journal.write(folder.path, entry(cell), ROWS[cell])
    folder.finish(document(folder.about.run_id), kept, {})
    folder.seal()


@pytest.mark.large
def test_killed_at_any_step_a_run_loses_nothing_and_no_reader_sees_half(tmp_path, monkeypatch):
    """Every step of a whole night is the last one once; then the night goes on, and ends."""
    monkeypatch.setattr(isolation, "POLL_SECONDS", 0.002)  # there are hundreds of children to wait for
    for step in range(1, 10_000):
        qsae_dir = tmp_path / str(step)
        qsae_dir.mkdir()
        ended = isolation.in_child(lambda tell, at=(qsae_dir, step): night(*at))
        check_readable(qsae_dir)
        finished = list(qsae_dir.glob("runs/*/run.json"))
        before = {
            path: (path.stat().st_ino, path.stat().st_mtime_ns)
            for path in qsae_dir.glob("runs/*/journal/[!.]*")
        }
        if not ended.fate:
            break
        assert "SIGKILL" in ended.fate, ended
        if list(unfinished(qsae_dir)) or not finished:
            again = isolation.in_child(lambda tell, at=(qsae_dir, 0): night(*at))
            assert not again.fate, (step, again)
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
            taken = resumed(tmp_path, "", CONDITIONS)
        with tried.open("a") as file:
            file.write("x")
        if taken is None:
            return tell("refused")
        assert RunFolder.take(taken.path) is None
        tell("taken")
        # held until all have tried: a process that ends lets go of its run
        until = time.monotonic() + 60
        while tried.stat().st_size < 6 and time.monotonic() < until:
            time.sleep(0.01)

    told = []
    threads = [
        threading.Thread(target=lambda: told.extend(isolation.in_child(attempt).told)) for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(told) == ["refused"] * 5 + ["taken"]


def test_put_leaves_the_old_file_when_the_disk_is_full(tmp_path, monkeypatch):
    path = tmp_path / "file"
    disk.put(path, b"old")

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        disk.put(path, b"new")
    assert path.read_bytes() == b"old"
    assert [one.name for one in tmp_path.iterdir()] == ["file"]
