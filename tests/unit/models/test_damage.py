"""A model's files with one thing wrong in them: one line that names the file, or the weight and its layer."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from builders import one_line
from paths import ROOT
from qsae_bench.errors import QsaeError
from qsae_bench.models.damage import damaged_file
from qsae_bench.models.loading import load, load_tokenizer
from qsae_bench.registry.entries import load_registry
from qsae_bench.registry.specs import Cell

TINY = ROOT / "src/qsae_bench/tiny/data/model"
REGISTRY = load_registry()


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(TINY, tmp_path / "model")


def refusal(folder, what):
    model = replace(REGISTRY.model("tiny_gemma3"), source=str(folder))
    with pytest.raises(QsaeError) as caught:
        if what is load_tokenizer:
            load_tokenizer(model)
        else:
            load(Cell(model, REGISTRY.quantization("reference")), "cpu", torch.float32)
    message = one_line(caught.value)
    assert str(folder) in message
    return message


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_weights_that_are_cut_short_are_named(folder, share):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    assert f"{folder}: model.safetensors: damaged or cut short: " in refusal(folder, load)


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("model.layers.2.mlp.up_proj.weight", (760, 192), (768, 192)),
        ("model.embed_tokens.weight", (2552, 192), (2560, 192)),
    ],
)
def test_a_weight_of_another_shape_is_named_with_its_layer(folder, name, shape, expected):
    tensors = load_file(folder / "model.safetensors")
    tensors[name] = tensors[name][: shape[0]].clone()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    said = refusal(folder, load)
    assert f"has {name} of shape {shape}, and Gemma3ForCausalLM takes {expected} by its config" in said


@pytest.mark.parametrize(("index", "said"), [("{", "not valid JSON"), ("{}", "has no weight_map")])
def test_an_index_of_weights_is_named(folder, index, said):
    (folder / "model.safetensors").rename(folder / "one.safetensors")
    (folder / "model.safetensors.index.json").write_text(index)
    assert f"model.safetensors.index.json: {said}" in refusal(folder, load)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"hidden_size": "x"}, "Field 'hidden_size' expected int, got str"),
        ({"num_attention_heads": 5}, "is not a multiple of the number of attention heads (5)"),
        ({"layer_types": ["full_attention"]}, "(6) must be equal to the number of `layer_types` (1)"),
        ({"rope_parameters": 3}, "Field 'rope_parameters'"),
        ({"hidden_activation": "gelo"}, "KeyError: 'gelo'"),
    ],
)
def test_a_config_that_makes_no_model_says_why(folder, changes, said):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    assert said in refusal(folder, load)


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("tokenizer.json", "{", "tokenizer.json: not valid JSON"),
        ("tokenizer.json", "[]", "tokenizer.json: a list, not a table"),
        ("tokenizer.json", "{}", "KeyError: 'added_tokens'"),
        ("tokenizer_config.json", "[]", "tokenizer_config.json: a list, not a table"),
    ],
)
def test_a_tokenizers_damaged_file_is_named(folder, file, content, said):
    (folder / file).write_text(content)
    assert said in refusal(folder, load_tokenizer)


def test_nothing_is_said_of_files_that_are_whole(folder):
    assert damaged_file(folder, ("*.json", "*.safetensors")) == ""
    assert damaged_file(None, ("*.json",)) == ""
