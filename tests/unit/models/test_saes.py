"""SAEs of another model or another place are refused before anything is measured with them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import any_sae
import stand_ins
from builders import one_line
from qsae_bench.errors import QsaeError
from qsae_bench.models.sae_forward import check_forward
from qsae_bench.models.saes import load_saes, sae_notes
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


def refused(spec):
    with pytest.raises(QsaeError) as caught:
        load_saes(spec, "cpu")
    return one_line(caught.value)


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
    assert "d_in 256, the model's width is 192" in refused(spec)


def test_another_hook_point(tmp_path, tiny):
    spec = saved(tmp_path, tiny, 192, "blocks.4.hook_resid_post")
    assert "reads 'blocks.4.hook_resid_post', not 'blocks.1" in refused(spec)


def test_no_sae_there(tmp_path, tiny):
    spec = replace(tiny, layers=(1,), sae=SaeSpec(d_in=192, folder=str(tmp_path)))
    with pytest.raises(QsaeError, match="no SAE of layer 1 at"):
        load_saes(spec, "cpu")


# -- what sae-lens, torch and safetensors raise --------------------------------------------------------


def cut(folder):
    """Half of the weights' file."""
    path = folder / "sae_weights.safetensors"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


CONFIG = any_sae.config("jumprelu")
WEIGHTS = any_sae.weights(CONFIG)


@pytest.mark.parametrize(
    ("config", "weights", "said"),
    [
        (CONFIG, {k: v for k, v in WEIGHTS.items() if k != "threshold"}, 'Missing key(s) in state_dict: "threshold"'),
        (CONFIG | {"architecture": "unheard_of"}, WEIGHTS, "architecture 'unheard_of'"),
        ('{"d_in": 48,', WEIGHTS, "JSONDecodeError: Expecting property name"),
        ("[]", WEIGHTS, "cfg.json holds no table"),
        (CONFIG | {"d_sae": 65}, WEIGHTS, "size mismatch for W_dec"),
        (CONFIG, WEIGHTS | {"scaling_factor": torch.full((64,), 2.0)}, "finetuning_scaling_factor"),
        (CONFIG, WEIGHTS | {"threshold": torch.full((64,), float("nan"))}, "threshold has values that are not finite"),
        ({k: v for k, v in CONFIG.items() if k != "d_sae"}, WEIGHTS, "d_sae"),
    ],
)  # fmt: skip
def test_a_damaged_one_is_one_line_that_names_folder_and_layer(tmp_path, config, weights, said):
    folder = any_sae.write(tmp_path, config, weights)
    message = refused(any_sae.spec(tmp_path))
    assert message.startswith(f"model 'stand_in': the SAE of layer 1 ({folder})")
    assert said in message


def test_half_of_a_file(tmp_path):
    folder = any_sae.write(tmp_path, CONFIG, WEIGHTS)
    cut(folder)
    message = refused(any_sae.spec(tmp_path))
    assert f"SAE of layer 1 ({folder}) can't be read: SafetensorError" in message


# -- which model, and which text -----------------------------------------------------------------------


def trained_on(name, **metadata):
    return any_sae.config("jumprelu", metadata={"model_name": name, **metadata})


def test_a_model_of_the_hub_is_known_by_its_name(tmp_path):
    any_sae.write(tmp_path, trained_on("gemma-2-2b-it"), WEIGHTS)
    spec = any_sae.spec(tmp_path)
    assert "model_name 'gemma-2-2b-it': another model than " in refused(
        replace(spec, source="google/gemma-2-2b")
    )
    assert set(load_saes(replace(spec, source="google/gemma-2-2b-it"), "cpu")) == {1}
    any_sae.write(tmp_path, trained_on("pythia-70m"), WEIGHTS)  # TransformerLens's alias
    assert set(load_saes(replace(spec, source="EleutherAI/pythia-70m"), "cpu")) == {1}


def test_a_folder_may_be_another_model_and_shorter_text_is_another_text(tmp_path):
    any_sae.write(tmp_path, trained_on("gemma-2-2b-it", context_size=16), WEIGHTS)
    spec = any_sae.spec(tmp_path)
    saes = load_saes(spec, "cpu")
    length, model = sae_notes(spec, saes, 128, True)
    assert length.startswith(
        "stand_in: SAE of layer 1: context_size 16: it was trained on shorter sequences than"
    )
    assert model.startswith("stand_in: SAE of layer 1: model_name 'gemma-2-2b-it': the model is a folder")
    assert sae_notes(replace(spec, name="gemma-2-2b-it"), saes, 16, True) == []


# -- what is measured is what sae-lens runs ------------------------------------------------------------


def test_an_sae_that_gives_nan_on_finite_activations():
    sae = stand_ins.jumprelu(1)
    sae.b_enc.data[3] = float("inf")
    sae.W_dec.data[3] = 0.0
    with pytest.raises(QsaeError, match="^the SAE: gives values that are not finite, on activations"):
        check_forward(sae, torch.randn(2, 5, 48), "the SAE")
    assert check_forward(sae, torch.full((2, 5, 48), float("nan")), "the SAE") is None  # the model's fault


def test_an_sae_whose_decode_is_something_else(monkeypatch):
    sae = stand_ins.jumprelu(1)
    decode = type(sae).decode
    calls = []

    def other(self, features):
        calls.append(0)
        return decode(self, features) * (1.0 if len(calls) > 1 else 1.1)

    monkeypatch.setattr(type(sae), "decode", other)
    with pytest.raises(QsaeError, match=r"its forward is not decode\(encode\(x\)\)"):
        check_forward(sae, torch.randn(2, 5, 48), "the SAE")


def test_negative_features_of_an_architecture_that_has_none(monkeypatch):
    sae = stand_ins.jumprelu(1)
    encode = type(sae).encode
    monkeypatch.setattr(type(sae), "encode", lambda self, x: -encode(self, x))
    with pytest.raises(QsaeError, match="features differ from 0 and 0 are above it"):
        check_forward(sae, torch.randn(2, 5, 48), "the SAE")
