"""A store at a URL: what is fetched and when, writers that die or race, and rights that are lacking."""

from __future__ import annotations

import itertools
import json
import re
from dataclasses import replace

import pytest
import torch

import s3_server
import stand_ins
from paths import ROOT
from qsae_bench.errors import QsaeError
from qsae_bench.measure.store import open_store
from qsae_bench.measure.store.entry import DamagedEntry, Manifest
from qsae_bench.measure.store.remote_files import RemoteFiles
from store_places import fill, read_all


@pytest.fixture
def fetched(monkeypatch):
    """Names of the files that were fetched."""
    names, fetch = [], RemoteFiles.fetch

    def spy(self, name, path):
        names.append(name)
        fetch(self, name, path)

    monkeypatch.setattr(RemoteFiles, "fetch", spy)
    return names


def rows(names):
    return [name.split("-")[-1] for name in names if "-rows-" in name]


def test_only_what_is_read_is_fetched(model, remote_place, small_shards, fetched):
    fill(remote_place.store(), model)
    stored = remote_place.store(machine="worker").open("key", "cpu")
    assert rows(fetched) == []
    stored.read(0, 4)
    stored.read(1, 3)
    assert rows(fetched) == ["00000.safetensors"]
    assert not any(name.startswith("heads/") for name in fetched)
    assert len(remote_place.cached("worker")) == 2  # and the weights in short
    stored.read(3, 5)
    assert rows(fetched) == ["00000.safetensors", "00001.safetensors"]
    again = remote_place.store(machine="worker").open("key", "cpu")
    again.read(0, 8)
    assert len(rows(fetched)) == 2  # the machine has them
    assert again.read(8, 10).head_input.shape[0] == 2
    assert len(rows(fetched)) == 3


def test_who_wrote_it_fetches_nothing(model, remote_place, fetched):
    fill(remote_place.store(machine="writer"), model)
    stored = remote_place.store(machine="writer").open("key", "cpu")
    stored.read(0, 10)
    stored.head()
    assert fetched == []


def test_a_damaged_copy_is_fetched_again(model, remote_place, small_shards, fetched):
    fill(remote_place.store(machine="one"), model)
    before = remote_place.store(machine="one").open("key", "cpu").read(0, 10).head_input
    for path in remote_place.cached("one"):
        path.write_bytes(path.read_bytes()[:-3] + b"bad")
    after = remote_place.store(machine="one").open("key", "cpu").read(0, 10).head_input
    assert torch.equal(before, after)
    assert len(rows(fetched)) == 3


def test_a_copy_that_goes_while_it_is_used_is_fetched_again(model, remote_place, small_shards, fetched):
    fill(remote_place.store(), model)
    stored = remote_place.store(machine="one").open("key", "cpu")
    before = stored.read(0, 10).head_input
    [path.unlink() for path in remote_place.cached("one")]
    assert torch.equal(stored.read(0, 10).head_input, before)
    assert len(rows(fetched)) == 6


class Killed(BaseException):
    """The process is gone: nothing after it runs."""


def write(store, model, batches):
    store.write("key", replace(stand_ins.reference_pass(model), batches=batches))


def test_a_killed_writer_leaves_no_entry(model, remote_place, small_shards, monkeypatch):
    def dies():
        yield from itertools.islice(stand_ins.batches(model), 2)
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(RemoteFiles, "remove", lambda self, names: None)
        write(remote_place.store(), model, dies())
    left = {name for name in remote_place.files() if "-rows-" in name}
    assert len(left) == 2
    assert remote_place.entries() == []
    assert remote_place.store().open("key", "cpu") is None
    fill(remote_place.store(), model)
    assert left <= remote_place.files().keys(), "they may be another's that is at work"
    assert read_all(remote_place.store()) is not None


def test_two_writers_never_mix_and_the_last_wins(model, remote_place, small_shards):
    """In the order that would mix them: B begins and ends while A is between two shards."""
    other = stand_ins.gemma3(seed=1)

    def slow():
        own = stand_ins.batches(model)
        yield next(own)
        fill(remote_place.store(), other)
        yield from own

    def read(store):
        stored = store.open("key", "cpu")
        return stored.head_digest, stored.read(0, 10).head_input

    fill(remote_place.store(), other)
    theirs = read(remote_place.store())
    opened = remote_place.store().open("key", "cpu")
    write(remote_place.store(), model, slow())
    digest, values = read(remote_place.store())
    assert torch.equal(values, torch.cat([batch.head_input for batch in stand_ins.batches(model)]))
    assert digest != theirs[0]
    assert torch.equal(opened.read(0, 10).head_input, theirs[1])  # who read the older one goes on


def test_a_store_that_cannot_be_written_is_known_before_the_pass(model, tmp_path, monkeypatch):
    for name, value in s3_server.environment().items():
        monkeypatch.setenv(name, value)

    def never():
        pytest.fail("the pass has begun")
        yield

    store = open_store("s3://no-such-bucket/references", tmp_path, 1 << 40)
    assert store.open("key", "cpu") is None
    with pytest.raises(QsaeError, match="can't be written: .*bucket does not exist") as refused:
        write(store, model, never())
    assert "\n" not in str(refused.value)


def test_reading_needs_no_right_to_write(model, remote_place, monkeypatch):
    fill(remote_place.store(), model)
    forbid(monkeypatch, "put", "remove")
    assert read_all(remote_place.store()) is not None


def test_writing_needs_no_right_to_remove(model, remote_place, monkeypatch):
    forbid(monkeypatch, "remove")
    fill(remote_place.store(), model)
    assert read_all(remote_place.store()) is not None


def forbid(monkeypatch, *names):
    def forbidden(self, *arguments):
        raise QsaeError("not allowed")

    for name in names:
        monkeypatch.setattr(RemoteFiles, name, forbidden)


def test_a_write_leaves_the_entry_and_nothing_else(model, remote_place):
    others = {"notes.txt", "key/readme.md", "heads/old.safetensors"}
    for name in others:
        remote_place.put(name, b"mine")
    fill(remote_place.store(), model)
    manifest = json.loads(remote_place.files()["key/manifest.json"])
    named = {one["object"] for one in manifest["objects"].values()}
    assert remote_place.files().keys() == named | {"key/manifest.json"} | others


@pytest.mark.parametrize("gone", ["head.safetensors", "rows-00000.safetensors"])
def test_what_a_lifecycle_rule_removed_is_built_again(model, remote_place, gone):
    """It knows the age of an object, not who needs it: a head may go before an entry that names it."""
    fill(remote_place.store(), model)
    name = remote_place.named("key", gone)
    remote_place.put(name, None)
    with pytest.raises(DamagedEntry, match=f"{name}: missing"):
        remote_place.store().open("key", "cpu")
    fill(remote_place.store(), model)
    assert read_all(remote_place.store()) is not None


def test_the_documented_lifecycle_rule_is_one(make_place):
    import boto3

    bucket = make_place("s3").url.split("/")[2]
    (rule,) = re.findall(r"```json\n(.*?)```", (ROOT / "docs" / "scale.md").read_text(), flags=re.DOTALL)
    client = boto3.client("s3")
    client.put_bucket_lifecycle_configuration(Bucket=bucket, LifecycleConfiguration=json.loads(rule))
    (stored,) = client.get_bucket_lifecycle_configuration(Bucket=bucket)["Rules"]
    assert stored["Expiration"]["Days"] == 30 and stored["Filter"]["Prefix"] == "FOLDER/"


def test_what_goes_while_it_is_open_is_damage(model, remote_place):
    """As a cell sees it: the store is asked again, and builds the entry."""
    fill(remote_place.store(), model)
    stored = remote_place.store().open("key", "cpu")
    remote_place.put(remote_place.named("key", "rows-00000.safetensors"), None)
    with pytest.raises(DamagedEntry, match="missing"):
        stored.read(0, 4)


def test_marks_of_use_from_before_the_lifecycle_rule_are_ignored(model, remote_place):
    fill(remote_place.store(), model)
    head = remote_place.named("key", "head.safetensors").removesuffix("safetensors")
    for mark in ("key/used-1790000000", f"{head}used-1790000000"):
        remote_place.put(mark, b"used\n")
    assert read_all(remote_place.store()) is not None
    fill(remote_place.store(), model, "other")
    assert remote_place.named("other", "head.safetensors") == f"{head}safetensors"


def test_a_manifest_of_a_folders_store_is_no_entry_here(model, remote_place, tmp_path):
    fill(open_store(str(tmp_path / "local"), tmp_path, 1 << 40), model)
    remote_place.put("key/manifest.json", (tmp_path / "local" / "key" / "manifest.json").read_bytes())
    with pytest.raises(DamagedEntry, match=r"key/manifest.json is damaged"):
        remote_place.store().open("key", "cpu")


def test_a_checksum_is_no_path(model, remote_place):
    """A file's name in the cache comes from the manifest, which somebody else may have written."""
    fill(remote_place.store(), model)
    values = json.loads(remote_place.files()["key/manifest.json"])
    values["weights_sha256"] = "../../../escaped"
    remote_place.put("key/manifest.json", Manifest.sealed(values).content())
    with pytest.raises(DamagedEntry, match="not a manifest"):
        remote_place.store().open("key", "cpu")
