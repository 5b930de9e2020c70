"""The reference store: exact round trip, damage noticed and named, eviction, keys, bytes a position."""

from __future__ import annotations

import json
import os
import threading

import pytest
import torch

import stand_ins
from qsae_bench.errors import QsaeError
from qsae_bench.evaluation import forward_batches
from qsae_bench.local_store import ReferenceStore
from qsae_bench.reference import Damaged, head_digest, key_of
from qsae_bench.taps import Activations, Head, Subject


@pytest.fixture(scope="module")
def model():
    return stand_ins.gemma3()


def fill(store, model, key="key", corpus=None):
    corpus = corpus or stand_ins.corpus()
    with torch.inference_mode():
        batches = forward_batches(Subject(model, torch.device("cpu")), corpus, stand_ins.LAYERS)
        store.write(key, batches, torch.from_numpy(corpus.valid), Head.of(model), {"why": "test"})
    return corpus


def test_what_is_read_is_what_the_model_gave(model, tmp_path):
    store = ReferenceStore(tmp_path, 1 << 40)
    corpus = fill(store, model)
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


def test_soft_capped_logits_are_the_models_own(tmp_path):
    model = stand_ins.gemma3(final_logit_softcapping=2.0)
    store = ReferenceStore(tmp_path, 1 << 40)
    corpus = fill(store, model)
    stored = store.open("key", "cpu")
    with torch.no_grad():
        own = model(input_ids=torch.from_numpy(corpus.ids[:4])).logits
    ours = stored.head().logits(stored.read(0, 4).head_input)
    assert own.abs().max() <= 2.0
    torch.testing.assert_close(ours, own)


def test_no_entry_is_none(tmp_path):
    assert ReferenceStore(tmp_path / "never made", 1).open("key", "cpu") is None


@pytest.mark.parametrize("file", ["rows-00000.safetensors", "head.safetensors", "manifest.json"])
@pytest.mark.parametrize("harm", ["flip", "truncate", "remove"])
def test_damage_is_noticed_and_named(model, tmp_path, file, harm):
    store = ReferenceStore(tmp_path, 1 << 40)
    fill(store, model)
    path = tmp_path / "key" / file
    if harm == "remove":
        path.unlink()
    elif harm == "truncate":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    else:
        data = bytearray(path.read_bytes())
        at = data.index(b'"median_norms"') + 30 if file == "manifest.json" else len(data) - 9
        data[at] ^= 1
        path.write_bytes(bytes(data))
    with pytest.raises(Damaged) as refused:
        store.open("key", "cpu")
    message = str(refused.value)
    assert "\n" not in message
    assert (file in message) or ("rows-00000" in message and harm == "flip")
    fill(store, model)
    assert store.open("key", "cpu") is not None


def test_a_failed_write_leaves_nothing(model, tmp_path):
    store = ReferenceStore(tmp_path, 1 << 40)

    def breaks():
        yield from ()
        raise OSError(28, "No space left on device")

    with pytest.raises(QsaeError, match="No space left"):
        store.write("key", breaks(), torch.ones(1, 1, dtype=torch.bool), Head.of(model), {})
    assert list(tmp_path.iterdir()) == []


def test_eviction_drops_the_least_recently_used(model, tmp_path):
    store = ReferenceStore(tmp_path, 1 << 40)
    for index, key in enumerate(["a", "b", "c"]):
        fill(store, model, key)
        os.utime(tmp_path / key, (1000 + index, 1000 + index))
    size = sum(f.stat().st_size for f in (tmp_path / "a").iterdir())
    assert store.open("a", "cpu") is not None  # used again: now the newest
    ReferenceStore(tmp_path, int(2.5 * size)).write(
        "d", iter_batches(model), torch.from_numpy(stand_ins.corpus().valid), Head.of(model), {}
    )
    assert sorted(d.name for d in tmp_path.iterdir()) == ["a", "d"]
    ReferenceStore(tmp_path, 1)._evict(keep="d")
    assert sorted(d.name for d in tmp_path.iterdir()) == ["d"]


def iter_batches(model):
    with torch.inference_mode():
        return list(
            forward_batches(Subject(model, torch.device("cpu")), stand_ins.corpus(), stand_ins.LAYERS)
        )


def test_two_writers_of_one_entry_leave_one_whole_entry(model, tmp_path):
    store = ReferenceStore(tmp_path, 1 << 40)
    batches = iter_batches(model)
    valid = torch.from_numpy(stand_ins.corpus().valid)
    failures = []

    def write():
        try:
            store.write("key", iter(batches), valid, Head.of(model), {})
        except QsaeError as error:
            failures.append(error)

    threads = [threading.Thread(target=write) for _ in range(4)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert store.open("key", "cpu") is not None, failures
    assert [d.name for d in tmp_path.iterdir()] == ["key"]


def test_key_changes_with_every_part():
    parts = {"revision": "a", "dtype": "b", "corpus": "c", "layers": [1, 2]}
    keys = {key_of(parts), *(key_of({**parts, name: "other"}) for name in parts)}
    assert len(keys) == len(parts) + 1
    assert key_of(dict(reversed(parts.items()))) == key_of(parts)


def test_equal_heads_are_told_by_their_weights(model):
    assert head_digest(Head.of(model)) == head_digest(Head.of(stand_ins.gemma3()))
    assert head_digest(Head.of(model)) != head_digest(Head.of(stand_ins.gemma3(seed=1)))


def test_a_head_is_stored_once_a_model(model, tmp_path):
    store = ReferenceStore(tmp_path, 1 << 40)
    fill(store, model, "a")
    fill(store, model, "b", stand_ins.corpus(seed=5))
    fill(store, stand_ins.gemma3(seed=1), "other")
    inodes = {key: (tmp_path / key / "head.safetensors").stat().st_ino for key in ("a", "b", "other")}
    assert inodes["a"] == inodes["b"] != inodes["other"]
    store.discard("a")
    assert store.open("b", "cpu") is not None


def test_what_a_killed_run_left_is_removed(model, tmp_path):
    left, fresh = tmp_path / ".old-x", tmp_path / ".new-x"
    left.mkdir()
    fresh.mkdir()
    os.utime(left, (1000, 1000))
    fill(ReferenceStore(tmp_path, 1 << 40), model)
    assert not left.exists()
    assert fresh.exists()


def test_manifest_says_what_it_was_made_from(model, tmp_path):
    fill(ReferenceStore(tmp_path, 1 << 40), model)
    manifest = json.loads((tmp_path / "key" / "manifest.json").read_text())
    assert manifest["made_from"] == {"why": "test"}


@pytest.mark.parametrize(("taps", "share"), [((9, 17, 31, 41), 1 / 13), ((), 1 / 68)])
def test_bytes_a_position_at_gemma3_12b(tmp_path, taps, share):
    """Rows really written at the model's width, against the fp16 logits they replace."""
    from transformers import Gemma3TextConfig

    from qsae_bench.registry import load_registry

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
