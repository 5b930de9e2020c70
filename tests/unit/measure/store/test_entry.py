"""The reference store: exact round trip, damage noticed and named, eviction, keys, bytes a position."""

from __future__ import annotations

import json
import os
import threading

import pytest
import torch

import s3_server
import stand_ins
from qsae_bench.errors import QsaeError
from qsae_bench.files import sha256_of
from qsae_bench.measure.evaluation import forward_batches
from qsae_bench.measure.store.entry import DamagedEntry, head_digest, key_of
from qsae_bench.measure.store.local import ReferenceStore
from qsae_bench.measure.store.places import store_at
from qsae_bench.models.taps import Activations, Head, Subject
from store_places import KINDS, Place


@pytest.fixture(scope="module")
def model():
    return stand_ins.gemma3()


@pytest.fixture(params=KINDS)
def place(request, tmp_path, monkeypatch):
    if request.param == "s3":
        for name, value in s3_server.environment().items():
            monkeypatch.setenv(name, value)
    return Place(request.param, tmp_path)


def fill(store, model, key="key", corpus=None):
    corpus = corpus or stand_ins.corpus()
    with torch.inference_mode():
        batches = forward_batches(Subject(model, torch.device("cpu")), corpus, stand_ins.LAYERS)
        store.write(key, batches, torch.from_numpy(corpus.valid), Head.of(model), {"why": "test"})
    return corpus


def test_what_is_read_is_what_the_model_gave(model, place):
    store = place.store()
    corpus = fill(place.store(), model)
    ids = torch.from_numpy(corpus.ids)
    with torch.no_grad():
        out = model(input_ids=ids, output_hidden_states=True)
    stored = store.open("key", "cpu")
    assert stored is not None
    assert stored.sequences == len(ids)
    for start, stop in [(0, 4), (4, 8), (8, 10)]:
        read = stored.read(start, stop)
        assert isinstance(read, Activations)
        torch.testing.assert_close(read.head_input, out.hidden_states[-1][start:stop])
        for layer in stand_ins.LAYERS:
            torch.testing.assert_close(read.taps[layer], out.hidden_states[layer + 1][start:stop])
    logits = stored.head().logits(stored.read(0, 4).head_input)
    torch.testing.assert_close(logits, out.logits[:4])
    valid = torch.from_numpy(corpus.valid)
    for layer in stand_ins.LAYERS:
        norms = out.hidden_states[layer + 1].norm(dim=-1)[valid]
        assert stored.median_norms[layer] == pytest.approx(norms.median().item(), rel=1e-6)


def test_soft_capped_logits_are_the_models_own(place):
    model = stand_ins.gemma3(final_logit_softcapping=2.0)
    corpus = fill(place.store(), model)
    stored = place.store().open("key", "cpu")
    with torch.no_grad():
        own = model(input_ids=torch.from_numpy(corpus.ids[:4])).logits
    ours = stored.head().logits(stored.read(0, 4).head_input)
    assert own.abs().max() <= 2.0
    torch.testing.assert_close(ours, own)


def test_no_entry_is_none(place):
    assert place.store().open("key", "cpu") is None


def test_a_folder_can_be_given_as_a_url(model, tmp_path):
    fill(store_at(f"file://{tmp_path}/store", tmp_path, 1 << 40), model)
    assert store_at(str(tmp_path / "store"), tmp_path, 1 << 40).open("key", "cpu") is not None
    assert store_at("", tmp_path, 1).folder == tmp_path / "references"


@pytest.mark.parametrize("file", ["rows-00000.safetensors", "head.safetensors", "manifest.json"])
@pytest.mark.parametrize("harm", ["flip", "truncate", "remove"])
def test_damage_is_noticed_and_named(model, place, file, harm):
    fill(place.store(), model)
    name = place.named("key", file)
    content = bytearray(place.files()[name])
    at = content.index(b'"median_norms"') + 30 if file == "manifest.json" else len(content) - 9
    content[at] ^= 1
    harmed = {"flip": bytes(content), "truncate": bytes(content[: len(content) // 2]), "remove": None}
    if place.remote and file == "manifest.json" and harm == "remove":
        pytest.skip("without a manifest there is no entry")
    place.put(name, harmed[harm])
    store = place.store()
    with pytest.raises(DamagedEntry) as refused:
        read_all(store)
    message = str(refused.value)
    assert "\n" not in message
    # a flipped bit of the manifest can be one of a name in it
    assert name in message or ("rows-00000" in message and harm == "flip")
    fill(store, model)
    for one in (store, place.store()):
        assert torch.equal(read_all(one).head_input, read_all(place.store()).head_input)


@pytest.fixture
def checked(monkeypatch):
    """Names of a folder's files that were read whole for their checksum."""
    names = []

    def spy(path):
        names.append(path.name)
        return sha256_of(path)

    monkeypatch.setattr("qsae_bench.measure.store.local.sha256_of", spy)
    return names


def test_a_folders_files_are_checked_once_and_when_they_are_needed(model, tmp_path, monkeypatch, checked):
    """Of ten sequences three files: a worker that has a shard reads no other, nor one that it wrote."""
    monkeypatch.setattr("qsae_bench.measure.store.entry_writing.SHARD_BYTES", 1)
    writer = ReferenceStore(tmp_path, 1 << 40)
    fill(writer, model)
    checked.clear()
    read_all(writer)
    assert checked == []
    worker = ReferenceStore(tmp_path, 1 << 40)
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
    fill(ReferenceStore(tmp_path, 1 << 40), model)
    stored = ReferenceStore(tmp_path, 1 << 40).open("key", "cpu")
    stored.read(0, 4)
    rows = tmp_path / "key" / "rows-00000.safetensors"
    other = tmp_path / "other"
    other.write_bytes(rows.read_bytes()[:-1] + b"!")
    other.replace(rows)
    with pytest.raises(DamagedEntry, match="checksum differs"):
        stored.read(0, 4)


def read_all(store, key="key"):
    stored = store.open(key, "cpu")
    assert stored is not None
    stored.head()
    return stored.read(0, stored.sequences)


def test_a_failed_write_leaves_nothing(model, place, monkeypatch):
    monkeypatch.setattr("qsae_bench.measure.store.entry_writing.SHARD_BYTES", 1)
    batches = iter_batches(model)

    def breaks():
        yield batches[0]
        raise OSError(28, "No space left on device")

    with pytest.raises(QsaeError, match="No space left") as refused:
        place.store().write("key", breaks(), torch.ones(4, 24, dtype=torch.bool), Head.of(model), {})
    assert "\n" not in str(refused.value)
    assert [name for name in place.files() if "/used-" not in name] == []
    assert place.store().open("key", "cpu") is None


def size_of(place, key):
    return sum(
        len(place.files()[place.named(key, file)])
        for file in ("rows-00000.safetensors", "head.safetensors")
    )


def test_eviction_drops_the_least_recently_used(model, place):
    for index, key in enumerate(["a", "b", "c"]):
        fill(place.store(), model, key)
        place.used(key, 10**6 - index)
    size = size_of(place, "a")
    assert place.store().open("a", "cpu") is not None  # used again: now the newest
    limit = int(2.5 * size) if not place.remote else int(2.5 * size_of_rows(place, "a") + head_bytes(place))
    fill(place.store(limit), model, "d")
    assert place.entries() == ["a", "d"]
    place.used("a", 10**5)
    fill(place.store(1), model, "d")
    assert place.entries() == ["d"]
    assert read_all(place.store(), "d") is not None


def test_what_is_being_read_is_not_evicted_and_what_is_gone_is_said(model, tmp_path):
    """Many workers have many models open at once."""
    store = ReferenceStore(tmp_path, 1)
    fill(store, model, "a")
    stored = store.open("a", "cpu")
    fill(store, model, "b")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]
    assert stored.read(0, 4) is not None
    store.discard("a")
    for work in (lambda: stored.read(0, 4), stored.head, stored.weights):
        with pytest.raises(DamagedEntry, match="is gone: evicted, or replaced by another run"):
            work()


def test_a_sound_entry_is_not_replaced_under_who_reads_it(model, tmp_path):
    """Two machines that share a folder build the same entry."""
    store = ReferenceStore(tmp_path, 1 << 40)
    fill(store, model)
    before = (tmp_path / "key" / "manifest.json").stat().st_ino
    fill(store, model)
    assert (tmp_path / "key" / "manifest.json").stat().st_ino == before
    assert [path.name for path in tmp_path.iterdir()] == ["key"]


def size_of_rows(place, key):
    files = place.files()
    return sum(
        len(files[place.named(key, file)]) for file in ("rows-00000.safetensors", "weights.safetensors")
    )


def head_bytes(place):
    return sum(len(content) for name, content in place.files().items() if name.startswith("heads/"))


def iter_batches(model):
    with torch.inference_mode():
        return list(
            forward_batches(Subject(model, torch.device("cpu")), stand_ins.corpus(), stand_ins.LAYERS)
        )


def test_two_writers_of_one_entry_leave_one_whole_entry(model, place):
    batches = iter_batches(model)
    valid = torch.from_numpy(stand_ins.corpus().valid)
    failures = []

    def write(store):
        try:
            store.write("key", iter(batches), valid, Head.of(model), {})
        except QsaeError as error:
            failures.append(error)

    threads = [threading.Thread(target=write, args=[place.store()]) for _ in range(4)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert failures == [] or not place.remote
    found = read_all(place.store())
    assert torch.equal(found.head_input, torch.cat([batch.head_input for batch in batches])), failures
    assert place.entries() == ["key"]


def test_key_changes_with_every_part():
    parts = {"revision": "a", "dtype": "b", "corpus": "c", "layers": [1, 2]}
    keys = {key_of(parts), *(key_of({**parts, name: "other"}) for name in parts)}
    assert len(keys) == len(parts) + 1
    assert key_of(dict(reversed(parts.items()))) == key_of(parts)


def test_equal_heads_are_told_by_their_weights(model):
    assert head_digest(Head.of(model)) == head_digest(Head.of(stand_ins.gemma3()))
    assert head_digest(Head.of(model)) != head_digest(Head.of(stand_ins.gemma3(seed=1)))


def test_a_head_is_stored_once_a_model(model, place):
    fill(place.store(), model, "a")
    fill(place.store(), model, "b", stand_ins.corpus(seed=5))
    fill(place.store(), stand_ins.gemma3(seed=1), "other")
    if place.remote:
        assert (
            len([name for name in place.files() if name.startswith("heads/") and "used" not in name]) == 2
        )
        heads = {key: place.named(key, "head.safetensors") for key in ("a", "b", "other")}
    else:
        folder = place.folder / "store"
        heads = {key: (folder / key / "head.safetensors").stat().st_ino for key in ("a", "b", "other")}
    assert heads["a"] == heads["b"] != heads["other"]
    place.store().discard("a")
    assert place.store().open("a", "cpu") is None
    read_all(place.store(), "b")


def test_what_a_killed_run_left_is_removed(model, tmp_path):
    left, fresh = tmp_path / ".old-x", tmp_path / ".new-x"
    left.mkdir()
    fresh.mkdir()
    os.utime(left, (1000, 1000))
    fill(ReferenceStore(tmp_path, 1 << 40), model)
    assert not left.exists()
    assert fresh.exists()


def test_manifest_says_what_it_was_made_from(model, place):
    fill(place.store(), model)
    manifest = json.loads(place.files()["key/manifest.json"])
    assert manifest["made_from"] == {"why": "test"}


@pytest.mark.parametrize(("taps", "share"), [((9, 17, 31, 41), 1 / 13), ((), 1 / 68)])
def test_bytes_a_position_at_gemma3_12b(tmp_path, taps, share):
    """Rows really written at the model's width, against the fp16 logits they replace."""
    from transformers import Gemma3TextConfig

    from qsae_bench.registry.entries import load_registry

    width = load_registry().model("gemma3_12b").d_model
    vocabulary = Gemma3TextConfig().vocab_size  # transformers' default is Gemma 3's own
    assert vocabulary >= 262_144
    hidden = torch.randn(4, 32, width).bfloat16()
    batch = Activations(hidden, {layer: hidden.clone() for layer in taps})
    head = Head.from_weights(torch.zeros(1, width), None, None)
    store = ReferenceStore(tmp_path, 1 << 40)
    store.write("key", [batch], torch.ones(4, 32, dtype=torch.bool), head, {})
    rows = sum(f.stat().st_size for f in (tmp_path / "key").glob("rows-*")) - 1024  # less the header
    assert rows / (4 * 32) <= share * 2 * vocabulary
