"""Writing a reference: nothing is left of a pass that fails, and a position takes the bytes that it should."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import stand_ins
from qsae_bench.errors import QsaeError
from qsae_bench.measure.store.entry_writing import ReferencePass
from qsae_bench.measure.store.local import LocalStore
from qsae_bench.models.taps import Activations, Head


def test_a_failed_write_leaves_nothing(model, place, small_shards):
    def breaks():
        yield next(stand_ins.batches(model))
        raise OSError(28, "No space left on device")

    with pytest.raises(QsaeError, match="No space left") as refused:
        place.store().write("key", replace(stand_ins.reference_pass(model), batches=breaks()))
    assert "\n" not in str(refused.value)
    assert place.files() == {}
    assert place.store().open("key", "cpu") is None


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
    store = LocalStore(tmp_path, 1 << 40)
    store.write("key", ReferencePass([batch], torch.ones(4, 32, dtype=torch.bool), head, {}))
    rows = sum(f.stat().st_size for f in (tmp_path / "key").glob("rows-*")) - 1024  # less the header
    assert rows / (4 * 32) <= share * 2 * vocabulary
