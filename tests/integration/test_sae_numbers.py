"""SAEs that were measured wrong without a word: on the embedded model, against sae-lens's own forward."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from builders import one_line
from qsae_bench.errors import QsaeError
from qsae_bench.gate.thresholds import Thresholds
from qsae_bench.measure.corpus.packing import Corpus
from qsae_bench.registry.entries import Selection, load_registry
from qsae_bench.tiny import MODEL_DIR, SAE_DIR

SCALE = 0.37
ENTRY = """
[models.mine]
source = "package:tiny/data/model"
n_layers = 6
d_model = 192
layers = [{layers}]
corpus = "tiny"
sae = {{ folder = "{folder}", d_in = 192{more} }}
"""


def entry(tmp_path, layers, more=""):
    """A registry with the embedded model and SAEs of the folder."""
    file = tmp_path / "mine.toml"
    text = ENTRY.format(layers=layers, folder=tmp_path / "saes", more=more)
    file.write_text(text, encoding="utf-8")
    return load_registry([file])


def changed(folder, weights=None, metadata=None, **fields):
    """Rewrite fields of a copied SAE's config, and weights."""
    from safetensors.torch import load_file, save_file

    config = json.loads((folder / "cfg.json").read_text())
    config |= fields
    config["metadata"] |= metadata or {}
    (folder / "cfg.json").write_text(json.dumps(config))
    tensors = load_file(folder / "sae_weights.safetensors")
    for name, change in (weights or {}).items():
        tensors[name] = change(tensors.get(name))
    kept = {name: tensor.contiguous() for name, tensor in tensors.items() if tensor is not None}
    save_file(kept, folder / "sae_weights.safetensors")


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(SAE_DIR, tmp_path / "saes")


def cell_of(registry):
    (cell,) = registry.select(Selection(models=("mine",), quantizations=("reference",)))
    return cell


def expected(sae, layer: int, corpus: Corpus) -> tuple[float, float]:
    """FVU and L0 from transformers' hidden states and ``sae``'s forward, in float64."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(MODEL_DIR, dtype=torch.float32).eval()
    with torch.no_grad():
        out = model(torch.from_numpy(corpus.ids), output_hidden_states=True)
        x = out.hidden_states[layer + 1].double()
        x_hat, f = sae(x), sae.encode(x)
    keep = torch.from_numpy(corpus.valid)
    x, x_hat, f = x[keep], x_hat[keep], f[keep]
    fvu = (x - x_hat).square().sum() / (x - x.mean(0)).square().sum()
    return fvu.item(), (f != 0).sum(1).double().mean().item()


def test_scale_skip_connection_and_what_is_said(folder, tmp_path, sessions):
    """Unfolded with its scale beside it; a skip connection; trained on another model and shorter text."""
    from sae_lens import SAE

    changed(
        folder / "layer1", {
            "W_enc": lambda w: w / SCALE, "W_dec": lambda w: w * SCALE, "b_dec": lambda b: b * SCALE,
        }, normalize_activations="expected_average_only_in",
    )  # fmt: skip
    (folder / "layer1" / "activation_scaler.json").write_text(json.dumps({"scaling_factor": SCALE}))
    changed(
        folder / "layer3", {
            "W_dec": torch.zeros_like, "b_dec": torch.zeros_like, "threshold": lambda _: None,
            "W_skip": lambda _: torch.eye(192),
        }, architecture="skip_transcoder", d_out=192, apply_b_dec_to_input=False,
    )  # fmt: skip
    changed(folder / "layer4", metadata={"model_name": "gemma-2-2b-it", "context_size": 16})
    registry = entry(tmp_path, "1, 3, 4")
    session = sessions(registry, Thresholds({}), selection=Selection(tokens=2032))
    cell = cell_of(registry)
    measured = session.measure(cell).estimates.layers
    corpus = session.model(cell).corpus
    shipped = {layer: SAE.load_from_disk(SAE_DIR / f"layer{layer}", dtype="float64") for layer in (1, 4)}
    for layer, sae in shipped.items():
        fvu, l0 = expected(sae, layer, corpus)
        assert measured[layer]["fvu"].value == pytest.approx(fvu, rel=1e-5)
        assert measured[layer]["l0"].value == pytest.approx(l0, rel=1e-5)
    assert measured[3]["fvu"].value == pytest.approx(0.0, abs=1e-12)
    length, model = session.warnings[cell]
    assert length.startswith("mine: SAE of layer 4: context_size 16: ")
    assert model.startswith("mine: SAE of layer 4: model_name 'gemma-2-2b-it': ")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"metadata": {"hook_name": "blocks.1.hook_mlp_out"}}, "hook_name: it reads 'blocks.1.hook_mlp_out'"),
        ({"normalize_activations": "expected_average_only_in"}, "normalize_activations 'expected_average_only_in'"),
        ({"weights": {"threshold": lambda _: None}}, 'Missing key(s) in state_dict: "threshold"'),
        ({"architecture": "unheard_of"}, "architecture 'unheard_of'"),
        ({"weights": {"b_enc": lambda b: b / 0}}, "b_enc has values that are not finite"),
        ({"weights": {"b_dec": lambda b: b + 3e38}}, "gives values that are not finite"),
    ],
)  # fmt: skip
def test_one_line_that_names_folder_and_layer(folder, tmp_path, sessions, change, said):
    changed(folder / "layer1", **change)
    registry = entry(tmp_path, "1")
    session = sessions(registry, Thresholds({}), selection=Selection(tokens=2032))
    with pytest.raises(QsaeError) as caught:
        session.measure(cell_of(registry))
    message = one_line(caught.value)
    assert f"SAE of layer 1 ({folder}/layer1)" in message
    assert said in message


def test_an_entry_can_only_name_the_place_that_is_read(folder, tmp_path):
    with pytest.raises(QsaeError) as caught:
        entry(tmp_path, "1", ', hook = "blocks.{layer}.hook_mlp_out"')
    message = one_line(caught.value)
    assert (
        "hook 'blocks.{layer}.hook_mlp_out': SAEs are read on the residual stream after their block"
        in message
    )
    entry(tmp_path, "1", ', hook = "blocks.{next_layer}.hook_resid_pre"')
