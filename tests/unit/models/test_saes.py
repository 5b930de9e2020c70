"""SAEs of another model or another place are refused before anything is measured with them."""

from __future__ import annotations

from dataclasses import replace

import pytest

import stand_ins
from qsae_bench.errors import QsaeError
from qsae_bench.models.saes import load_saes
from qsae_bench.registry.entries import load_registry
from qsae_bench.registry.sae_spec import SaeSpec


@pytest.fixture(scope="module")
def tiny():
    return load_registry().model("tiny_gemma3")


def saved(folder, model, width, hook):
    """A model spec whose layer 1 has an SAE of this width and hook on disk."""
    sae = stand_ins.jumprelu(1, width=width)
    sae.cfg.metadata.hook_name = hook
    sae.save_model(folder / "layer1")
    return replace(model, layers=(1,), sae=SaeSpec(d_in=model.d_model, folder=str(folder)))


def test_the_shipped_saes_load(tiny):
    saes = load_saes(tiny, "cpu")
    assert set(saes) == set(tiny.layers)
    for layer, sae in saes.items():
        assert sae.cfg.d_in == tiny.d_model
        assert sae.cfg.d_sae >= 2048
        assert sae.cfg.metadata.hook_name == f"blocks.{layer}.hook_resid_post"
        assert not any(parameter.requires_grad for parameter in sae.parameters())


def test_width_of_another_model(tmp_path, tiny):
    spec = saved(tmp_path, tiny, 256, "blocks.1.hook_resid_post")
    with pytest.raises(QsaeError, match=r"d_in 256, the model's width is 192: .* another model") as caught:
        load_saes(spec, "cpu")
    assert "\n" not in str(caught.value)


def test_another_hook_point(tmp_path, tiny):
    spec = saved(tmp_path, tiny, 192, "blocks.4.hook_resid_post")
    with pytest.raises(QsaeError, match=r"reads 'blocks.4.hook_resid_post', not 'blocks.1"):
        load_saes(spec, "cpu")


def test_no_sae_there(tmp_path, tiny):
    spec = replace(tiny, layers=(1,), sae=SaeSpec(d_in=192, folder=str(tmp_path)))
    with pytest.raises(QsaeError, match="no SAE of layer 1 at"):
        load_saes(spec, "cpu")
