"""Stored references, in a folder as at a URL: an exact round trip, and damage that is noticed and named."""

from __future__ import annotations

import json
import threading
from dataclasses import replace

import pytest
import torch

import stand_ins
from qsae_bench.errors import QsaeError
from qsae_bench.measure.store.entry import DamagedEntry, entry_key, head_digest
from qsae_bench.models.taps import Activations, Head
from store_places import fill, read_all


def test_what_is_read_is_what_the_model_gave(model, place):
    store = place.store()
    corpus = stand_ins.corpus()
    fill(place.store(), model)
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


@pytest.mark.parametrize("batch_size", [1, 3, 10])
def test_sinks_are_found_while_writing_and_again_in_an_entry_without_them(place, batch_size):
    model, corpus = stand_ins.gemma3(tie_word_embeddings=False), stand_ins.corpus()
    with torch.no_grad():
        model.model.embed_tokens.weight[7] *= 300
    store = place.store()
    store.write("key", stand_ins.reference_pass(model, corpus))
    written = place.store().open("key", "cpu")
    assert written.knows_sinks and written.sinks.layer in stand_ins.LAYERS
    again = place.store().open("key", "cpu")
    again.sinks = None
    again.look_for_sinks(corpus.valid, batch_size)
    assert again.sinks == written.sinks
    told = torch.cat([read.taps[written.sinks.layer] for read in (again.read(0, 4), again.read(4, 10))])
    is_sink = (told.norm(dim=-1) > written.sinks.norm).numpy() & corpus.valid
    assert (is_sink == ((corpus.ids == 7) & corpus.valid)).all() and is_sink.any()


def test_an_ordinary_model_has_no_sinks(model, place):
    fill(place.store(), model)
    stored = place.store().open("key", "cpu")
    assert stored.knows_sinks and stored.sinks is None


def test_soft_capped_logits_are_the_models_own(place):
    model = stand_ins.gemma3(final_logit_softcapping=2.0)
    corpus = stand_ins.corpus()
    fill(place.store(), model)
    stored = place.store().open("key", "cpu")
    with torch.no_grad():
        own = model(input_ids=torch.from_numpy(corpus.ids[:4])).logits
    ours = stored.head().logits(stored.read(0, 4).head_input)
    assert own.abs().max() <= 2.0
    torch.testing.assert_close(ours, own)


def test_no_entry_is_none(place):
    assert place.store().open("key", "cpu") is None


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


def test_two_writers_of_one_entry_leave_one_whole_entry(model, place):
    batches = list(stand_ins.batches(model))
    failures = []

    def write(store):
        try:
            store.write("key", replace(stand_ins.reference_pass(model), batches=iter(batches)))
        except QsaeError as error:
            failures.append(error)

    threads = [threading.Thread(target=write, args=[place.store()]) for _ in range(4)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert failures == [] or not place.remote
    found = read_all(place.store())
    assert torch.equal(found.head_input, torch.cat([batch.head_input for batch in batches])), failures
    assert place.entries() == ["key"]


def test_a_head_is_stored_once_a_model(model, place):
    fill(place.store(), model, "a")
    fill(place.store(), model, "b", stand_ins.corpus(seed=5))
    fill(place.store(), stand_ins.gemma3(seed=1), "other")
    if place.remote:
        assert len([name for name in place.files() if name.startswith("heads/")]) == 2
        heads = {key: place.named(key, "head.safetensors") for key in ("a", "b", "other")}
    else:
        folder = place.folder / "store"
        heads = {key: (folder / key / "head.safetensors").stat().st_ino for key in ("a", "b", "other")}
    assert heads["a"] == heads["b"] != heads["other"]
    for name in [name for name in place.files() if name.startswith("a/")]:
        place.put(name, None)
    read_all(place.store(), "b")


def test_manifest_says_what_it_was_made_from(model, place):
    fill(place.store(), model)
    manifest = json.loads(place.files()["key/manifest.json"])
    assert manifest["made_from"] == {"why": "test"}


def test_key_changes_with_every_part():
    parts = {"revision": "a", "dtype": "b", "corpus": "c", "layers": [1, 2]}
    keys = {entry_key(parts), *(entry_key({**parts, name: "other"}) for name in parts)}
    assert len(keys) == len(parts) + 1
    assert entry_key(dict(reversed(parts.items()))) == entry_key(parts)


def test_equal_heads_are_told_by_their_weights(model):
    assert head_digest(Head.of(model)) == head_digest(Head.of(stand_ins.gemma3()))
    assert head_digest(Head.of(model)) != head_digest(Head.of(stand_ins.gemma3(seed=1)))
