"""Files that are replaced whole, their checksums, and one process at a time."""

from __future__ import annotations

import errno
import hashlib
import os
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from qsae_bench.files import (
    evict_least_recently_used,
    one_at_a_time,
    os_errors,
    put,
    put_file,
    remove_abandoned,
    sha256_of,
)


def test_a_file_is_replaced_and_nothing_else_is_left(tmp_path):
    path = tmp_path / "a"
    put(path, b"old")
    put(path, b"new")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a"
    put(path, b"old")

    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        put(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_content_is_on_disk_before_the_rename(tmp_path, monkeypatch):
    steps = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (steps.append("flush"), fsync(handle)))
    monkeypatch.setattr(os, "replace", lambda a, b: (steps.append("rename"), replace(a, b)))
    (tmp_path / "part").write_bytes(b"x")
    put_file(tmp_path / "part", tmp_path / "a")
    assert steps == ["flush", "rename", "flush"]


def test_a_checksum_is_that_of_the_content(tmp_path):
    (tmp_path / "a").write_bytes(b"abc" * 100_000)
    assert sha256_of(tmp_path / "a") == hashlib.sha256(b"abc" * 100_000).hexdigest()


def test_other_exceptions_are_left_alone():
    with pytest.raises(ValueError, match="mine"), os_errors():
        raise ValueError("mine")


# -- eviction


def entry(folder, name, size, ago):
    path = folder / name
    if size < 10:
        path.write_bytes(b"x" * size)
    else:  # a folder of two files
        path.mkdir()
        (path / "a").write_bytes(b"x" * (size - 5))
        (path / "b").write_bytes(b"x" * 5)
    os.utime(path, (time.time() - ago,) * 2)
    return path


def test_the_least_recently_used_are_evicted_and_the_protected_count(tmp_path):
    entries = [entry(tmp_path, name, size, ago) for name, size, ago in (("a", 8, 400), ("b", 12, 300), ("c", 9, 200), ("d", 12, 100))]  # fmt: skip
    evict_least_recently_used([*entries, tmp_path / "gone"], 29, lambda path, used: path.name == "a")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "c", "d"]
    evict_least_recently_used(entries, 0, lambda path, used: time.time() - used < 250)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c", "d"]


def test_only_what_a_killed_process_left_is_abandoned(tmp_path):
    for name, size, ago in ((".old", 1, 2e5), (".old-folder", 20, 2e5), (".new", 1, 100), ("old", 1, 2e5)):
        entry(tmp_path, name, size, ago)
    remove_abandoned(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".new", "old"]


# -- one at a time


def test_threads_wait_for_each_other():
    inside, most = [], []

    def work():
        with one_at_a_time("test threads"):
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.02)
            inside.pop()

    threads = [threading.Thread(target=work) for _ in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert most == [1, 1, 1, 1]


def test_other_names_do_not_wait():
    entered = False
    with one_at_a_time("test a"), one_at_a_time("test b"):
        entered = True
    assert entered


def test_a_process_that_is_killed_frees_the_lock():
    code = """
        import time
        from qsae_bench.files import one_at_a_time
        with one_at_a_time("test killed"):
            print("locked", flush=True)
            time.sleep(60)
    """
    other = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True
    )
    assert other.stdout.readline() == "locked\n"
    entered = threading.Event()

    def wait():
        with one_at_a_time("test killed"):
            entered.set()

    threading.Thread(target=wait, daemon=True).start()
    assert not entered.wait(0.3)
    other.kill()
    other.wait()
    assert entered.wait(5)


def test_where_no_lock_can_be_taken_the_work_is_done(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path / "nowhere"))
    with one_at_a_time("test"):
        done = True
    assert done
