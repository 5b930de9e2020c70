"""A store in a folder: what is checked and when, what is evicted, and what other processes may do meanwhile."""

from __future__ import annotations

import os
import shutil

import pytest

from qsae_bench.files import sha256_of
from qsae_bench.measure.store.entry import DamagedEntry
from qsae_bench.measure.store.local import LocalStore, TemporaryStore
from store_places import fill, read_all


@pytest.fixture
def checked(monkeypatch):
    """Names of a folder's files that were read whole for their checksum."""
    names = []

    def spy(path):
        names.append(path.name)
        return sha256_of(path)

    monkeypatch.setattr("qsae_bench.measure.store.local.sha256_of", spy)
    return names


def test_files_are_checked_once_and_when_they_are_needed(model, tmp_path, small_shards, checked):
    """Of ten sequences three files: a worker that has a shard reads no other, nor one that it wrote."""
    writer = LocalStore(tmp_path, 1 << 40)
    fill(writer, model)
    checked.clear()
    read_all(writer)
    assert checked == []
    worker = LocalStore(tmp_path, 1 << 40)
    stored = worker.open("key", "cpu")
    stored.fetch(4, 6)
    assert checked == ["weights.safetensors", "rows-00001.safetensors", "head.safetensors"]
    stored.read(4, 6)
    worker.open("key", "cpu").fetch(4, 8)
    assert len(checked) == 3
    harmed = tmp_path / "key" / "rows-00002.safetensors"
    harmed.write_bytes(harmed.read_bytes()[:-1] + b"!")
    stored.read(4, 6)
    with pytest.raises(DamagedEntry, match="rows-00002.safetensors is damaged"):
        stored.fetch(7, 9)


def test_a_file_that_is_replaced_is_checked_again(model, tmp_path):
    fill(LocalStore(tmp_path, 1 << 40), model)
    stored = LocalStore(tmp_path, 1 << 40).open("key", "cpu")
    stored.read(0, 4)
    rows = tmp_path / "key" / "rows-00000.safetensors"
    other = tmp_path / "other"
    other.write_bytes(rows.read_bytes()[:-1] + b"!")
    other.replace(rows)
    with pytest.raises(DamagedEntry, match="checksum differs"):
        stored.read(0, 4)


def test_what_is_being_read_is_not_evicted_and_what_is_gone_is_an_error(model, tmp_path):
    """Many workers have many models open at once."""
    store = LocalStore(tmp_path, 1)
    fill(store, model, "a")
    stored = store.open("a", "cpu")
    fill(store, model, "b")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]
    assert stored.read(0, 4) is not None
    shutil.rmtree(store.folder / "a")
    for work in (lambda: stored.read(0, 4), stored.head, stored.weights):
        with pytest.raises(DamagedEntry, match="is gone: evicted, or replaced by another run"):
            work()


def test_a_sound_entry_is_not_replaced_under_who_reads_it(model, tmp_path):
    """Two machines that share a folder build the same entry."""
    store = LocalStore(tmp_path, 1 << 40)
    fill(store, model)
    before = (tmp_path / "key" / "manifest.json").stat().st_ino
    fill(store, model)
    assert (tmp_path / "key" / "manifest.json").stat().st_ino == before
    assert [path.name for path in tmp_path.iterdir()] == ["key"]


def test_what_a_killed_run_left_is_removed(model, tmp_path):
    left, fresh = tmp_path / ".old-x", tmp_path / ".new-x"
    left.mkdir()
    fresh.mkdir()
    os.utime(left, (1000, 1000))
    fill(LocalStore(tmp_path, 1 << 40), model)
    assert not left.exists()
    assert fresh.exists()


def test_eviction_removes_the_least_recently_used(model, make_place):
    place = make_place("folder")
    for index, key in enumerate(["a", "b", "c"]):
        fill(place.store(), model, key)
        place.used(key, 10**6 - index)
    size = sum(path.stat().st_size for path in (place.folder / "store" / "a").iterdir())
    assert place.store().open("a", "cpu") is not None  # used again: now the newest
    fill(place.store(int(2.5 * size)), model, "d")
    assert place.entries() == ["a", "d"]
    place.used("a", 10**5)
    fill(place.store(1), model, "d")
    assert place.entries() == ["d"]
    assert read_all(place.store(), "d") is not None


def test_a_temporary_store_goes_when_it_is_closed(model):
    store = TemporaryStore(1 << 40)
    fill(store, model)
    assert store.folder.is_dir()
    store.close()
    assert not store.folder.exists()
