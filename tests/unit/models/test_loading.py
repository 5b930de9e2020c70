"""From files to a model: text decoders of multimodal checkpoints, other architectures, layers elsewhere."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, Gemma3ForCausalLM

import hub_repos
import stand_ins
from builders import one_line
from qsae_bench.errors import CannotRun, QsaeError
from qsae_bench.measure.splice import _nll
from qsae_bench.models import loading
from qsae_bench.models.architecture import read_config, synthetic_config
from qsae_bench.models.backends import LoadRequest, load_with
from qsae_bench.models.taps import Head, Subject, Taps, check_head, decoder_layers, subtract_mean
from qsae_bench.registry.entries import load_registry
from qsae_bench.registry.specs import Cell, QuantizationSpec

REGISTRY = load_registry()
OTHERS = ("gemma2_2b", "llama3.1_8b", "qwen3_1.7b", "gpt2_small", "pythia_70m")


def request(model, quantization="reference"):
    return LoadRequest(model, REGISTRY.quantization(quantization), "cpu", torch.float32)


@pytest.fixture(scope="module")
def multimodal(tmp_path_factory):
    folder = hub_repos.gemma3_multimodal(tmp_path_factory.mktemp("mm"), n_layers=3, d_model=64)
    model = replace(REGISTRY.model("gemma3_4b"), source=str(folder), n_layers=3, d_model=64)
    return folder, model


def other_layout(folder, into):
    """The same checkpoint under the names that newer transformers writes."""
    into.mkdir()
    for path in folder.iterdir():
        if path.suffix == ".json" and "index" not in path.name:
            (into / path.name).write_bytes(path.read_bytes())
    tensors = {}
    for path in folder.glob("*.safetensors"):
        for name, tensor in load_file(path).items():
            new = name.replace("language_model.model.", "model.language_model.")
            tensors[new if new != name else f"model.{name}"] = tensor
    save_file(tensors, into / "model.safetensors", metadata={"format": "pt"})
    return into


@pytest.mark.parametrize("layout", ["as published", "as saved by newer versions"])
def test_the_text_decoder_of_a_multimodal_checkpoint_is_loaded_alone(multimodal, tmp_path, layout):
    folder, model = multimodal
    whole = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    if layout != "as published":
        model = replace(model, source=str(other_layout(folder, tmp_path / "other")))
    text = load_with(request(model)).eval()
    assert isinstance(text, Gemma3ForCausalLM)
    assert not any("vision" in name for name, _ in text.named_parameters())
    ids = torch.randint(5, 2000, (2, 20))
    with torch.inference_mode():
        assert torch.equal(text(ids).logits, whole(ids).logits)


def test_a_quantizer_sees_only_the_text_decoder(multimodal):
    quantized = load_with(request(multimodal[1], "int8"))
    names = [name for name, module in quantized.named_modules() if "8bit" in type(module).__name__]
    assert len(names) == 3 * 7
    assert all(name.startswith("model.layers.") for name in names)


def test_weights_that_are_missing_are_not_made_up(multimodal, tmp_path):
    folder, model = multimodal
    into = other_layout(folder, tmp_path / "lacking")
    tensors = load_file(into / "model.safetensors")
    del tensors["model.language_model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, into / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(QsaeError) as caught:
        load_with(request(replace(model, source=str(into))))
    assert "lacks 1 weights" in one_line(caught.value) and "layers.1.mlp.up_proj" in str(caught.value)


def test_another_models_shape_is_refused_before_its_weights_are_read(multimodal, tmp_path):
    folder, model = multimodal
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())  # and no weights
    with pytest.raises(QsaeError) as caught:
        read_config(replace(model, source=str(tmp_path), n_layers=34))
    assert "(3, 64)" in one_line(caught.value) and "(34, 64)" in str(caught.value)


@pytest.mark.parametrize("content", ["", "{", '{"model_type": "nothing_known"}'])
def test_a_broken_config_is_one_line(multimodal, tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(QsaeError) as caught:
        read_config(replace(multimodal[1], source=str(tmp_path)))
    assert "config" in one_line(caught.value)


@pytest.mark.parametrize("name", OTHERS)
def test_other_architectures_are_read_and_their_head_understood(name):
    spec = replace(
        REGISTRY.model(name), n_layers=3, d_model=64,
        architecture={
            **REGISTRY.model(name).architecture, "vocab_size": 96, "num_attention_heads": 4,
            "num_key_value_heads": 2, "head_dim": 16, "intermediate_size": 96, "bos_token_id": 1,
            "eos_token_id": 1, "pad_token_id": 0,
        },
    )  # fmt: skip
    config = synthetic_config(spec)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    ids = torch.randint(2, 96, (2, 12))
    check_head(model, ids)
    assert len(decoder_layers(model)) == 3
    with torch.inference_mode(), Taps(model, (0, 1)) as taps:
        read = taps.read(ids)
        whole = model(ids, output_hidden_states=True)
        logits = Head.of(model).logits(read.head_input.flatten(0, 1))
    assert torch.equal(read.taps[1], whole.hidden_states[2])
    assert torch.allclose(logits, whole.logits.flatten(0, 1), atol=1e-5)


def test_gemma_2_keeps_its_attention_soft_cap():
    """sdpa has none, so that a model read through it is not the published one."""
    spec = REGISTRY.model("gemma2_2b")
    config = synthetic_config(replace(spec, n_layers=1, d_model=64))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert model.config._attn_implementation == "eager"
    assert config.attn_logit_softcapping == 50.0


def test_layers_on_another_device_are_tapped_all_the_same(multimodal, tmp_path):
    """accelerate's hooks move a layer's weights as it runs; with two GPUs it is the same machinery."""
    folder, model = multimodal
    plain = load_with(request(model)).eval()
    text = AutoConfig.from_pretrained(folder).get_text_config()
    places = {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"}
    places |= {f"model.layers.{layer}": "disk" if layer == 1 else "cpu" for layer in range(3)}
    spread = Gemma3ForCausalLM.from_pretrained(
        folder, config=text, dtype=torch.float32, device_map=places, offload_folder=str(tmp_path),
        key_mapping={r"^language_model\.model\.": "model."},
    ).eval()  # fmt: skip
    assert next(spread.model.layers[1].parameters()).device.type == "meta"
    ids = torch.randint(5, 2000, (2, 9))
    with torch.inference_mode(), Taps(plain, (0, 1, 2)) as one, Taps(spread, (0, 1, 2)) as other:
        mine, theirs = one.read(ids), other.read(ids)
    for layer in range(3):
        assert torch.equal(mine.taps[layer], theirs.taps[layer])
    assert torch.equal(mine.head_input, theirs.head_input)


# -- centred residual streams -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def gpt2():
    config = synthetic_config(
        replace(REGISTRY.model("gpt2_small"), n_layers=3, d_model=48, architecture={
            **REGISTRY.model("gpt2_small").architecture, "vocab_size": 300, "num_attention_heads": 4,
            "bos_token_id": 2, "eos_token_id": 1,
        })
    )  # fmt: skip
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def test_centred_taps_are_what_centred_weights_give(gpt2):
    """TransformerLens centres every weight that writes to the stream; so do we, by hand, and compare."""
    import copy

    centred = copy.deepcopy(gpt2)
    with torch.no_grad():
        for weight in (centred.transformer.wte.weight, centred.transformer.wpe.weight):
            weight.copy_(subtract_mean(weight))
        centred.lm_head.weight = torch.nn.Parameter(gpt2.lm_head.weight.clone())
        for block in centred.transformer.h:
            for module in (block.attn.c_proj, block.mlp.c_proj):  # Conv1D: [in, out]
                module.weight.copy_(subtract_mean(module.weight))
                module.bias.copy_(subtract_mean(module.bias))
    ids = torch.randint(3, 300, (2, 10))
    with torch.inference_mode(), Taps(gpt2, (0, 1), centered=True) as ours, Taps(centred, (0, 1)) as theirs:
        mine, lens = ours.read(ids), theirs.read(ids)
    for layer in (0, 1):
        assert torch.allclose(mine.taps[layer], lens.taps[layer], atol=1e-5)


def test_splicing_a_perfect_sae_into_a_centred_stream_costs_nothing(gpt2):
    corpus = stand_ins.corpus()
    subject = Subject(gpt2, torch.device("cpu"), centered=True)
    spliced = _nll(subject, corpus, 1, lambda x: x, "cpu")
    plain = _nll(replace(subject, centered=False), corpus, 1, lambda x: x, "cpu")
    assert spliced == pytest.approx(plain, rel=1e-5)


# -- requirements -------------------------------------------------------------------------------------


def test_a_named_device_is_the_users_own_decision():
    cell = Cell(replace(REGISTRY.model("gemma3_4b"), gated=False), REGISTRY.quantization("nf4"))
    with pytest.raises(CannotRun, match="--device cpu"):
        loading.require(cell, "cpu")
    assert loading.require(cell, "cpu", device_named=True) is None


def test_a_gpu_that_is_not_there_is_refused():
    if torch.cuda.is_available():
        pytest.skip("needs a machine without a GPU")
    with pytest.raises(QsaeError, match="torch sees no GPU"):
        loading.default_device("cuda")


def test_a_gpu_too_small_says_both_numbers(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    small = SimpleNamespace(total_memory=4 << 30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: small)
    cell = Cell(REGISTRY.model("gemma3_12b"), REGISTRY.quantization("nf4"))
    with pytest.raises(CannotRun) as caught:
        loading.require(cell, "auto")
    assert "27 GiB" in one_line(caught.value) and "8 GiB are here" in str(caught.value)


def test_config_values_are_the_registrys(multimodal):
    config = json.loads((multimodal[0] / "config.json").read_text())
    assert (
        config["text_config"]["num_hidden_layers"]
        == read_config(multimodal[1]).get_text_config().num_hidden_layers
    )


def test_a_quantization_may_compute_in_other_numbers_on_a_gpu():
    tiny, awq = REGISTRY.model("tiny_gemma3"), REGISTRY.quantization("awq_int4")
    assert loading.dtype_of(Cell(tiny, awq), "cuda") == torch.float16
    assert loading.dtype_of(Cell(tiny, awq), "cpu") == torch.float32
    nf4 = Cell(tiny, QuantizationSpec("nf4", "transformers"))
    assert loading.dtype_of(nf4, "auto") == torch.bfloat16
