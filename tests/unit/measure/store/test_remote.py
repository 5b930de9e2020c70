"""A store at a URL: what is fetched and when, writers that die or race, what is removed, what is said."""

from __future__ import annotations

import itertools
import json
import threading
import time

import pytest
import torch

import s3_server
import stand_ins
from qsae_bench.errors import QsaeError
from qsae_bench.measure.evaluation import forward_batches
from qsae_bench.measure.store import entry_writing as reference_writing
from qsae_bench.measure.store import places as stores
from qsae_bench.measure.store import remote as remote_store
from qsae_bench.measure.store.entry import DamagedEntry
from qsae_bench.measure.store.remote_files import RemoteFiles
from qsae_bench.models.taps import Head, Subject
from qsae_bench.redaction import masked_command
from store_places import Place

SECRET = "pa/ss@w:rd"


@pytest.fixture(scope="module")
def model():
    return stand_ins.gemma3()


@pytest.fixture(params=["memory", "s3"])
def place(request, tmp_path, monkeypatch):
    if request.param == "s3":
        for name, value in s3_server.environment().items():
            monkeypatch.setenv(name, value)
    return Place(request.param, tmp_path)


@pytest.fixture
def small_shards(monkeypatch):
    """One a batch: of ten sequences three."""
    monkeypatch.setattr(reference_writing, "SHARD_BYTES", 1)


@pytest.fixture
def fetched(monkeypatch):
    """Names of the files that were fetched."""
    names, fetch = [], RemoteFiles.fetch

    def spy(self, name, path):
        names.append(name)
        fetch(self, name, path)

    monkeypatch.setattr(RemoteFiles, "fetch", spy)
    return names


def batches_of(model):
    with torch.inference_mode():
        yield from forward_batches(
            Subject(model, torch.device("cpu")), stand_ins.corpus(), stand_ins.LAYERS
        )


def fill(store, model, key="key", batches=None):
    valid = torch.from_numpy(stand_ins.corpus().valid)
    store.write(key, batches or batches_of(model), valid, Head.of(model), {})


def rows(names):
    return [name.split("-")[-1] for name in names if "-rows-" in name]


def test_only_what_is_read_is_fetched(model, place, small_shards, fetched):
    fill(place.store(), model)
    stored = place.store(machine="worker").open("key", "cpu")
    assert rows(fetched) == []
    stored.read(0, 4)
    stored.read(1, 3)
    assert rows(fetched) == ["00000.safetensors"]
    assert not any(name.startswith("heads/") for name in fetched)
    assert len(place.cached("worker")) == 2  # and the weights in short
    stored.read(3, 5)
    assert rows(fetched) == ["00000.safetensors", "00001.safetensors"]
    again = place.store(machine="worker").open("key", "cpu")
    again.read(0, 8)
    assert len(rows(fetched)) == 2  # the machine has them
    assert again.read(8, 10).head_input.shape[0] == 2
    assert len(rows(fetched)) == 3


def test_who_wrote_it_fetches_nothing(model, place, fetched):
    fill(place.store(machine="writer"), model)
    stored = place.store(machine="writer").open("key", "cpu")
    stored.read(0, 10)
    stored.head()
    assert fetched == []


def test_a_damaged_copy_is_fetched_again(model, place, small_shards, fetched):
    fill(place.store(machine="one"), model)
    before = place.store(machine="one").open("key", "cpu").read(0, 10).head_input
    for path in place.cached("one"):
        path.write_bytes(path.read_bytes()[:-3] + b"bad")
    after = place.store(machine="one").open("key", "cpu").read(0, 10).head_input
    assert torch.equal(before, after)
    assert len(rows(fetched)) == 3


def test_a_copy_that_goes_while_it_is_used_is_fetched_again(model, place, small_shards, fetched):
    fill(place.store(), model)
    stored = place.store(machine="one").open("key", "cpu")
    before = stored.read(0, 10).head_input
    [path.unlink() for path in place.cached("one")]
    assert torch.equal(stored.read(0, 10).head_input, before)
    assert len(rows(fetched)) == 6


def test_a_short_read_is_tried_again(model, place, monkeypatch):
    fill(place.store(), model)
    broken, fetch = [], RemoteFiles.fetch

    def breaks_once(self, name, path):
        fetch(self, name, path)
        if name not in broken:
            broken.append(name)
            path.write_bytes(path.read_bytes()[:-5])

    monkeypatch.setattr(RemoteFiles, "fetch", breaks_once)
    assert place.store().open("key", "cpu").read(0, 10) is not None
    assert rows(broken)


def test_workers_of_one_machine_fetch_a_file_once(model, place, monkeypatch):
    """While one is at it the others wait for it."""
    fill(place.store(), model)
    stored = [place.store(machine="one").open("key", "cpu") for _ in range(4)]
    begun, fetch = [], RemoteFiles.fetch

    def slowly(self, name, path):
        begun.append(name)
        time.sleep(0.5)
        fetch(self, name, path)

    monkeypatch.setattr(RemoteFiles, "fetch", slowly)
    threads = [threading.Thread(target=one.fetch, args=(0, 10)) for one in stored]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert sorted(name.split("/")[0] for name in begun) == ["heads", "key"]


def test_the_cache_is_bounded(model, place, small_shards):
    fill(place.store(), model)
    files = place.files()
    shard = len(files[place.named("key", "rows-00000.safetensors")])
    stored = place.store(int(1.5 * shard), machine="small").open("key", "cpu")
    whole = stored.read(0, 10).head_input
    assert sum(path.stat().st_size for path in place.cached("small")) <= 1.5 * shard
    assert torch.equal(torch.cat([stored.read(0, 4).head_input, stored.read(4, 10).head_input]), whole)


# -- writers ----------------------------------------------------------------------------------------------


class Killed(BaseException):
    """The process is gone: nothing after it runs."""


def test_a_killed_writer_leaves_no_entry(model, place, small_shards, monkeypatch):
    def dies():
        yield from itertools.islice(batches_of(model), 2)
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(RemoteFiles, "remove", lambda self, names: None)
        fill(place.store(), model, batches=dies())
    left = {name for name in place.files() if "-rows-" in name}
    assert len(left) == 2
    assert place.entries() == []
    assert place.store().open("key", "cpu") is None
    fill(place.store(), model, "other")
    assert left <= place.files().keys()  # it may be another's that is at work
    monkeypatch.setattr(remote_store, "ABANDONED_SECONDS", -10)
    fill(place.store(), model, "other")
    assert left.isdisjoint(place.files())
    assert not any(name.startswith("key/") for name in place.files())
    assert place.store().open("other", "cpu").read(0, 10) is not None


def test_two_writers_never_mix_and_the_last_wins(model, place, small_shards, monkeypatch):
    """In the order that would mix them: B begins and ends while A is between two shards."""
    other = stand_ins.gemma3(seed=1)

    def slow():
        own = batches_of(model)
        yield next(own)
        fill(place.store(), other)
        yield from own

    def read(store):
        stored = store.open("key", "cpu")
        return stored.head_digest, stored.read(0, 10).head_input

    fill(place.store(), other)
    theirs = read(place.store())
    opened = place.store().open("key", "cpu")
    fill(place.store(), model, batches=slow())
    digest, values = read(place.store())
    assert torch.equal(values, torch.cat([batch.head_input for batch in batches_of(model)]))
    assert digest != theirs[0]
    assert torch.equal(opened.read(0, 10).head_input, theirs[1])  # who read the older one goes on
    losers = {name for name in place.files() if "-rows-" in name} - {
        place.named("key", f"rows-0000{i}.safetensors") for i in range(3)
    }
    assert len(losers) == 6
    monkeypatch.setattr(remote_store, "ABANDONED_SECONDS", -10)
    fill(place.store(), model, "another")
    assert losers.isdisjoint(place.files())
    assert torch.equal(read(place.store())[1], values)


def test_a_store_that_cannot_be_written_is_known_before_the_pass(model, tmp_path, monkeypatch):
    for name, value in s3_server.environment().items():
        monkeypatch.setenv(name, value)

    def never():
        pytest.fail("the pass has begun")
        yield

    store = stores.store_at("s3://no-such-bucket/references", tmp_path, 1 << 40)
    assert store.open("key", "cpu") is None
    with pytest.raises(QsaeError, match="can't be written: .*bucket does not exist") as refused:
        fill(store, model, batches=never())
    assert "\n" not in str(refused.value)


def test_who_may_only_read_can_use_it(model, place, monkeypatch):
    fill(place.store(), model)
    place.used("key", 10**6)

    def forbidden(self, *arguments):
        raise QsaeError("not allowed")

    monkeypatch.setattr(RemoteFiles, "put", forbidden)
    monkeypatch.setattr(RemoteFiles, "remove", forbidden)
    assert place.store().open("key", "cpu").read(0, 10) is not None


# -- what is kept -----------------------------------------------------------------------------------------


def marks(place, key="key"):
    return [name for name in place.files() if name.startswith(f"{key}/used-")]


def test_use_is_noted_once_an_hour(model, place):
    fill(place.store(), model)
    first = marks(place)
    assert len(first) == 1
    place.store().open("key", "cpu")
    assert marks(place) == first
    place.used("key", 2 * remote_store.USED_SECONDS)
    place.store().open("key", "cpu")
    (mark,) = marks(place)
    assert time.time() - int(mark.rpartition("-")[2]) < 600


def test_what_another_worker_may_be_at_is_not_evicted(model, place):
    fill(place.store(), model, "a")
    fill(place.store(1), model, "b")
    assert place.entries() == ["a", "b"]
    place.used("a", remote_store.IN_USE_SECONDS + 10)
    fill(place.store(1), model, "c")
    assert place.entries() == ["b", "c"]


def test_what_is_not_the_stores_is_never_removed(model, place, monkeypatch):
    others = ["notes.txt", "key/readme.md", "heads/old.safetensors", "deep/er/rows-00000.safetensors"]
    for name in others:
        place.put(name, b"mine")
    monkeypatch.setattr(remote_store, "ABANDONED_SECONDS", -10)
    for key in ("key", "other"):
        fill(place.store(1), model, key)
    place.store().discard("key")
    place.store().discard("other")
    assert set(others) <= place.files().keys()
    assert place.entries() == []


def test_a_head_that_no_entry_needs_goes_when_it_is_old(model, place, monkeypatch):
    fill(place.store(), model, "a")
    place.store().discard("a")
    fill(place.store(), stand_ins.gemma3(seed=1), "b")
    heads = [name for name in place.files() if name.startswith("heads/") and name.endswith(".safetensors")]
    assert len(heads) == 2  # somebody may be about to name it
    monkeypatch.setattr(remote_store, "ABANDONED_SECONDS", -10)
    fill(place.store(), stand_ins.gemma3(seed=1), "b")
    left = {name for name in place.files() if name.startswith("heads/") and name.endswith(".safetensors")}
    assert left == {place.named("b", "head.safetensors")}


def test_a_manifest_of_a_folders_store_is_no_entry_here(model, place, tmp_path):
    fill(stores.store_at(str(tmp_path / "local"), tmp_path, 1 << 40), model)
    place.put("key/manifest.json", (tmp_path / "local" / "key" / "manifest.json").read_bytes())
    with pytest.raises(DamagedEntry, match=r"key/manifest.json is damaged"):
        place.store().open("key", "cpu")


def test_a_checksum_is_no_path(model, place):
    """A file's name in the cache comes from the manifest, which somebody else may have written."""
    fill(place.store(), model)
    values = json.loads(place.files()["key/manifest.json"])
    values["weights_sha256"] = "../../../escaped"
    place.put("key/manifest.json", remote_store.Manifest.sealed(values).content())
    with pytest.raises(DamagedEntry, match="not a manifest"):
        place.store().open("key", "cpu")


# -- what is said -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("url", [f"s3://KEY:{SECRET}@bucket/x", f"ftp://user:{SECRET}@127.0.0.1:1/x"])
def test_a_password_is_never_shown(url, tmp_path, monkeypatch):
    for name, value in s3_server.environment().items():
        monkeypatch.setenv(name, value)
    store = stores.store_at(url, tmp_path, 1 << 40)
    for work in (lambda: store.open("key", "cpu"), lambda: store.discard("key")):
        with pytest.raises(QsaeError) as refused:
            work()
        message = str(refused.value)
        assert "\n" not in message
        assert "***" in message
        assert not any(part in message for part in (SECRET, "ss@w", "w:rd", "pa/s"))
    shown = masked_command(["pytest", f"--reference-store={url}"])
    assert "***" in shown
    assert "w:rd" not in shown


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("s4://bucket/x", r"unknown scheme 's4' \(did you mean 's3'\?\)"),
        ("zzzz://x", r"unknown scheme 'zzzz'; s3://BUCKET/FOLDER"),
        (f"s3://bucket/x?token={SECRET}", r"without '\?'"),
        (f"simplecache::s3://u:{SECRET}@bucket/x", r"without '\?' and '::'"),
    ],
)
def test_a_url_that_cannot_be_one(url, said):
    with pytest.raises(QsaeError, match=said) as refused:
        stores.chosen_place(url, off=False)
    assert str(refused.value).startswith("--reference-store: ")
    assert SECRET not in str(refused.value)


def test_a_missing_package_is_named(monkeypatch):
    from fsspec.registry import known_implementations

    monkeypatch.setitem(
        known_implementations, "s5", {"class": "no_such_s5fs.FileSystem", "err": "Install s5fs"}
    )
    with pytest.raises(QsaeError, match=r"s5:// needs a package .*: pip install no_such_s5fs") as refused:
        stores.chosen_place("s5://bucket/x", off=False)
    assert "\n" not in str(refused.value)


def test_places():
    assert stores.chosen_place("", off=False) == ""
    assert stores.chosen_place("", off=True) is None
    assert stores.chosen_place("memory://x", off=False) == "memory://x"
    with pytest.raises(QsaeError, match="give one of them"):
        stores.chosen_place("memory://x", off=True)


def test_a_server_that_is_not_there_is_one_line(tmp_path, monkeypatch):
    s3fs = pytest.importorskip("s3fs")
    for name, value in (s3_server.environment() | {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}).items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    try:
        with pytest.raises(QsaeError, match="can't be read: .*127.0.0.1:9") as refused:
            stores.store_at("s3://bucket/x", tmp_path, 1).open("key", "cpu")
        assert "\n" not in str(refused.value)
    finally:
        s3fs.S3FileSystem.clear_instance_cache()
