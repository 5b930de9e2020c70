"""What only a GPU shows; skipped where there is none. docs/gpu.md says how they are run."""

from __future__ import annotations

import copy
import time
import warnings

import numpy as np
import pytest
import torch

import stand_ins
from qsae_bench.gpus import GpuSampler
from qsae_bench.measure import device_state
from qsae_bench.measure.clock import GpuClock
from qsae_bench.measure.evaluation import evaluate
from qsae_bench.measure.store.local import LocalStore
from qsae_bench.models import loading
from qsae_bench.models.memory import live_storages, new_storages
from qsae_bench.models.taps import Subject, Taps
from qsae_bench.registry.entries import load_registry
from qsae_bench.registry.specs import Selection
from qsae_bench.stats.bootstrap import estimate

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU is visible"),
    pytest.mark.alone,
]
GPU, CPU = torch.device("cuda"), torch.device("cpu")


def measured(folder, model_r, model_q, corpus, device, on_progress=lambda done, total: None):
    """A pass of ``model_q`` against ``model_r`` on one device, in the models' own dtype."""
    store = LocalStore(folder / device.type, 1 << 40)
    saes = {layer: stand_ins.jumprelu(layer).to(device) for layer in stand_ins.LAYERS}
    for sae in saes.values():
        sae.device = device
    store.write("k", stand_ins.reference_pass(model_r, corpus, device=device))
    stored = store.open("k", str(device))
    return evaluate(
        stand_ins.cell(),
        corpus,
        stored,
        saes,
        str(device),
        Subject(model_q, device),
        on_progress=on_progress,
    )


@pytest.fixture(scope="module")
def pair():
    model = stand_ins.gemma3()
    return model, stand_ins.damaged(model, 0.05)


def test_float32_pass_is_the_cpus(pair, tmp_path):
    corpus = stand_ins.corpus(12)
    here = estimate(measured(tmp_path, *pair, corpus, CPU))
    there = estimate(measured(tmp_path, *(copy.deepcopy(m).to(GPU) for m in pair), corpus, GPU))
    assert there.cell["kl_divergence"].value > 1e-4
    pairs = [(here.cell[key], there.cell[key], key) for key in here.cell]
    pairs += [
        (found[key], there.layers[layer][key], f"{key} of layer {layer}")
        for layer, found in here.layers.items()
        for key in found
    ]
    wrong = [
        (name, a.value, b.value)
        for a, b, name in pairs
        if not np.isclose(a.value, b.value, rtol=2e-3, atol=2e-5, equal_nan=True)
    ]
    assert not wrong


def test_bfloat16_divergence_against_float64(pair, tmp_path):
    """The head's product is kept in float32: from the very same bf16 inputs, KL to 1e-3 of float64's."""
    model_r, model_q = (copy.deepcopy(m).to(GPU, torch.bfloat16) for m in pair)
    corpus = stand_ins.corpus(8)
    found = measured(tmp_path, model_r, model_q, corpus, GPU).rows.scalars
    ids = torch.from_numpy(corpus.ids).to(GPU)
    with torch.inference_mode():
        sides = []
        for model in (model_r, model_q):
            with Taps(model, ()) as taps:
                parts = [taps.read(batch).head_input for batch in ids.split(corpus.spec.batch_size)]
            hidden = torch.cat(parts).double()
            weight = model.get_output_embeddings().weight.double()
            sides.append((hidden[:, :-1] @ weight.T).log_softmax(-1))
        kl = (sides[0].exp() * (sides[0] - sides[1])).sum(-1)
        expected = torch.where(torch.from_numpy(corpus.valid[:, 1:]).to(GPU), kl, 0.0).sum(1).cpu().numpy()
    np.testing.assert_allclose(found["kl"], expected, rtol=1e-3)


def test_nothing_between_batches_waits_for_the_gpu(pair, tmp_path):
    """torch says where a call waits; transformers may look at its mask, this package may not wait at all."""
    models = [copy.deepcopy(m).to(GPU, torch.bfloat16) for m in pair]

    def progress(done: int, total: int) -> None:  # from the first batch's end to the last one's
        torch.cuda.set_sync_debug_mode("warn" if done < total else "default")

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            measured(tmp_path, *models, stand_ins.corpus(20), GPU, progress)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    at = [(w.filename, w.lineno) for w in caught if "called a synchronizing" in str(w.message)]
    theirs = [place for place in at if place[0].endswith("transformers/masking_utils.py")]
    assert at == theirs, at
    assert len(theirs) <= 4, theirs  # batches


def test_the_gpus_clock_goes_as_the_walls_does():
    matrix = torch.randn(4096, 4096, device=GPU)
    clock = GpuClock()
    clock()
    started, began = clock(), time.perf_counter()
    for _ in range(60):
        matrix = torch.nn.functional.normalize(matrix @ matrix)
    took, walls = clock() - started, time.perf_counter() - began
    assert took > 0.01
    assert took == pytest.approx(walls, rel=0.1)


def test_the_real_driver_is_understood():
    with GpuSampler() as sampler:
        matrix = torch.randn(8192, 8192, device=GPU)
        until = time.perf_counter() + 1.0
        while time.perf_counter() < until:
            matrix @ matrix
            torch.cuda.synchronize()
    samples = sampler.samples
    assert len(samples) >= 2
    assert {s.uuid for s in samples} >= device_state.visible_gpus() != frozenset()
    assert all(s.sm_mhz and s.max_sm_mhz and s.reasons is not None for s in samples)
    with device_state.watch("cuda") as seen:
        matrix @ matrix
        torch.cuda.synchronize()
    assert not [flag for flag in seen.flags if "shared" in flag], seen.flags


@pytest.mark.parametrize("quantization", ["reference", "int8", "nf4", "fp4"])
def test_a_model_leaves_nothing_on_the_gpu(quantization):
    pytest.importorskip("bitsandbytes")
    selection = Selection(models=("tiny_gemma3",), quantizations=(quantization,))
    (cell,) = load_registry().select(selection)

    def once() -> int:
        before = live_storages()
        loaded = loading.load(cell, "cuda", torch.bfloat16)
        loading.run_first_forward(loaded, torch.bfloat16)
        loaded.storages = new_storages(before)
        assert loaded.storages
        return loading.release(loaded)

    once()  # what libraries keep for good
    before = torch.cuda.memory_allocated()
    assert once() == 0
    assert torch.cuda.memory_allocated() == before
