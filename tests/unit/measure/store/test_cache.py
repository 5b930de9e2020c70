"""Copies of remote files: checked, bounded, and fetched by one process while the others wait."""

from __future__ import annotations

import hashlib
import os
import threading
import time

import pytest

from qsae_bench.errors import QsaeError
from qsae_bench.measure.store.cache import FETCHES, CheckedCache, ChecksumMismatch

CONTENT = {hashlib.sha256(text).hexdigest(): text for text in (b"one" * 100, b"two" * 100, b"six" * 100)}
ONE, TWO, SIX = CONTENT


class Source:
    """A remote place; ``fetched`` are the checksums that were asked of it."""

    def __init__(self):
        self.fetched = []

    def of(self, sha256, damage=lambda content: content):
        def fetch(path):
            self.fetched.append(sha256)
            path.write_bytes(damage(CONTENT[sha256]))

        return fetch


@pytest.fixture
def source():
    return Source()


@pytest.fixture
def cache(tmp_path):
    return CheckedCache(tmp_path / "cache", 1 << 20)


def test_a_file_is_fetched_once_a_machine(cache, source):
    for one in (cache, cache, CheckedCache(cache.folder, 1 << 20)):
        assert one.path(ONE, source.of(ONE)).read_bytes() == CONTENT[ONE]
    assert source.fetched == [ONE]


def test_a_damaged_copy_is_fetched_again(cache, source):
    path = cache.path(ONE, source.of(ONE))
    path.write_bytes(b"damaged")
    again = CheckedCache(cache.folder, 1 << 20).path(ONE, source.of(ONE))
    assert again.read_bytes() == CONTENT[ONE]
    assert len(source.fetched) == 2


def test_a_copy_that_another_process_removed_is_fetched_again(cache, source):
    cache.path(ONE, source.of(ONE)).unlink()
    assert cache.path(ONE, source.of(ONE)).is_file()
    assert len(source.fetched) == 2


def test_a_short_read_is_tried_again(cache, source):
    def breaks_once(content):
        return content[: -5 if len(source.fetched) == 1 else None]

    assert cache.path(ONE, source.of(ONE, breaks_once)).read_bytes() == CONTENT[ONE]
    assert len(source.fetched) == 2


def test_what_is_damaged_where_it_lies_is_refused(cache, source):
    with pytest.raises(ChecksumMismatch):
        cache.path(ONE, source.of(ONE, lambda content: content[:-1]))
    assert len(source.fetched) == FETCHES
    assert list(cache.folder.iterdir()) == []


def test_one_fetches_while_the_others_wait(cache, source):
    def slowly(content):
        time.sleep(0.2)
        return content

    caches = [CheckedCache(cache.folder, 1 << 20) for _ in range(4)]
    threads = [threading.Thread(target=one.path, args=(ONE, source.of(ONE, slowly))) for one in caches]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert source.fetched == [ONE]


def test_the_least_recently_used_are_removed(tmp_path, source):
    cache = CheckedCache(tmp_path, 700)
    for age, sha256 in ((100, ONE), (200, TWO)):
        then = time.time() - age
        os.utime(cache.path(sha256, source.of(sha256)), (then, then))
    cache.path(SIX, source.of(SIX))
    assert {path.stem for path in tmp_path.iterdir()} == {ONE, SIX}
    cache.path(TWO, source.of(TWO))
    assert {path.stem for path in tmp_path.iterdir()} == {SIX, TWO}


def test_a_file_larger_than_the_limit_can_be_used(tmp_path, source):
    assert CheckedCache(tmp_path, 10).path(ONE, source.of(ONE)).is_file()


def test_a_file_that_was_written_here_is_not_fetched(cache, source):
    with cache.scratch() as folder:
        (folder / "new").write_bytes(CONTENT[ONE])
        cache.add(folder / "new", ONE)
    assert cache.path(ONE, source.of(ONE)).read_bytes() == CONTENT[ONE]
    assert source.fetched == []


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path, source):
    (tmp_path / "file").touch()
    with pytest.raises(QsaeError, match="can't be written: .*--qsae-dir") as refused:
        CheckedCache(tmp_path / "file", 10).path(ONE, source.of(ONE))
    assert "\n" not in str(refused.value)
