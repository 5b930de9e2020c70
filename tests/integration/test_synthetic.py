"""``--synthetic``: real shape, random weights; what ``plan`` predicts is what the run takes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from qsae_bench.models.architecture import decoder_shapes
from qsae_bench.models.backends import LoadRequest, load_with
from qsae_bench.models.synthetic import random_saes
from qsae_bench.models.weights import storage
from qsae_bench.registry.entries import Selection, load_registry
from synthetic_runs import synthetic_run


@pytest.fixture(scope="module")
def registry():
    return load_registry()


def test_every_quantization_starts_from_the_same_random_weights(registry):
    model = replace(registry.model("tiny_gemma3"), synthetic=True)
    loaded = {
        name: load_with(LoadRequest(model, registry.quantization(name), "cpu", torch.float32))
        for name in ("reference", "rtn_int8", "nf4")
    }
    stored = storage.stored_matrices(loaded["nf4"], decoder_shapes(model))
    assert storage.bits_per_weight(stored) < 4.5
    ids = torch.randint(3, 2000, (2, 16))
    with torch.inference_mode():
        logits = {name: one.eval()(ids).logits for name, one in loaded.items()}
    scale = logits["reference"].norm()
    assert 0 < (logits["rtn_int8"] - logits["reference"]).norm() / scale < 0.1
    embeddings = [one.get_input_embeddings().weight for one in loaded.values()]
    assert all(torch.equal(embeddings[0], other) for other in embeddings[1:])


def test_random_saes_have_the_real_width_and_are_sparse(registry):
    model = registry.select(Selection(models=("gemma3_270m",), layers="all", synthetic=True))[0].model
    saes = random_saes(model, "cpu")
    assert list(saes) == [5, 9, 12, 15]
    active = (saes[5].encode(torch.randn(64, model.d_model)) > 0).float().mean()
    assert saes[5].W_dec.shape == (16384, 640)
    assert 0.001 < active < 0.02


def test_a_model_without_an_architecture_says_which_have_one(tmp_path):
    extra = tmp_path / "mine.toml"
    extra.write_text(
        '[models.mine]\nsource = "some/model"\nn_layers = 4\nd_model = 8\nlayers = [1]\ncorpus = "tiny"\n'
        'sae = { folder = "./saes", d_in = 8 }\n',
        encoding="utf-8",
    )
    ran = synthetic_run(tmp_path / "qsae", "--registry", str(extra), "--models", "mine")
    assert ran.returncode == 2
    (line,) = [line for line in ran.stderr.splitlines() if "mine" in line]
    assert "--synthetic needs its architecture" in line and "gemma3_12b" in line
