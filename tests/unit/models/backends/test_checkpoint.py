"""Checkpoints that are quantized already, read by the real loaders; and what is refused of them."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

import quantized_checkpoints as checkpoints
from builders import needs, one_line
from qsae_bench.errors import CannotRun, QsaeError
from qsae_bench.gate.thresholds import Thresholds
from qsae_bench.models.architecture import decoder_shapes
from qsae_bench.models.backends.checkpoint import compare_config
from qsae_bench.models.loading import load, require, run_first_forward
from qsae_bench.models.weights import storage
from qsae_bench.registry.entries import Selection, load_registry
from qsae_bench.registry.specs import Cell, CheckpointSpec, QuantizationSpec
from qsae_bench.run.local_session import LocalSession
from qsae_bench.run.session import SessionOptions


@pytest.fixture(scope="module")
def registry():
    return load_registry()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    checkpoints.write_compressed_w8a8(folder / "w8a8")
    checkpoints.write_gguf(folder / "gguf" / "tiny.gguf")
    return folder


def cell(registry, name, source, file=None):
    spec = CheckpointSpec(str(source), file=file)
    quantization = QuantizationSpec(name, "checkpoint", checkpoints={"tiny_gemma3": spec})
    return Cell(registry.model("tiny_gemma3"), quantization)


@pytest.fixture
def session(registry, tmp_path):
    opened = LocalSession(
        SessionOptions(registry, Thresholds({}), tmp_path, "test", selection=Selection(tokens=2032))
    )
    yield opened
    opened.close()


@needs("compressed_tensors")
def test_compressed_tensors(session, registry, files):
    """Eight bits a weight and a scale a row, stored; unpacked at the first forward, and message so."""
    one = cell(registry, "w8a8", files / "w8a8")
    measured = session.measure(one)
    linear = {k: w.shape for k, w in checkpoints.weights().items() if checkpoints.is_block_linear(k)}
    bits = sum(o * i * 8 + o * 32 for o, i in linear.values()) / sum(o * i for o, i in linear.values())
    assert session.costs(one)["bits_per_weight"] == bits
    assert (measured.quantized.share, measured.quantized.simulated) == (1, True)
    assert 0 < measured.estimates.cell["kl_divergence"].value < 1e-3
    # the format is what was written by hand, scale for scale
    assert measured.estimates.cell["weight_gain_error"].value < 0.005


@needs("compressed_tensors")
def test_activations_of_compressed_tensors_are_rounded_too(registry, files):
    """Unpacked to floats on a CPU, it still rounds what its config says: its quality is the method's."""
    own = load(cell(registry, "w8a8", files / "w8a8"), "cpu", torch.float32)
    run_first_forward(own, torch.float32)
    tensors = load_file(files / "w8a8" / "model.safetensors")
    plain = load(
        Cell(registry.model("tiny_gemma3"), registry.quantization("reference")), "cpu", torch.float32
    )
    ids = torch.arange(3, 120)[None]
    with torch.inference_mode():
        expected = plain.model(ids).logits.clone()
        for name, weight in plain.model.state_dict().items():
            if (scale := tensors.get(f"{name}_scale")) is not None:
                weight.copy_(tensors[name].float() * scale)
        weights_only = (plain.model(ids).logits - expected).norm()
        assert (own.model(ids).logits - expected).norm() > 2 * weights_only


@needs("compressed_tensors")
def test_a_multimodal_checkpoint_names_its_text_tower(registry, files, tmp_path):
    """Modules in ``ignore`` and ``targets`` are the multimodal model's; only its text decoder is loaded."""
    folder = checkpoints.write_multimodal_w8a8(tmp_path / "multimodal")
    found = load(cell(registry, "w8a8", folder), "cpu", torch.float32)
    stored = {
        (s.layer, *s.paths): s
        for s in storage.stored_matrices(found.model, decoder_shapes(found.cell.model))
    }
    left = stored.pop((5, "mlp.down_proj"))
    assert (left.floats, left.bits) == (True, 32 * left.elements)
    assert not any(one.floats for one in stored.values())
    run_first_forward(found, torch.float32)
    plain = load(cell(registry, "w8a8", files / "w8a8"), "cpu", torch.float32)
    run_first_forward(plain, torch.float32)
    ids = torch.arange(3, 40)[None]
    with torch.inference_mode():
        one, other = (m.model(ids).logits for m in (found, plain))
    assert 0 < (one - other).norm() / other.norm() < 0.05


def test_names_of_a_text_tower():
    from qsae_bench.models.backends.unquantized import text_names

    assert text_names({
        "ignore": ["language_model.lm_head", "model.language_model.layers.3.mlp", "vision_tower.x", "lm_head"],
        "modules_to_not_convert": ["language_model.model.layers.0"],
        "block_name_to_quantize": "language_model.model.layers",
        "config_groups": {"g": {"targets": ["Linear", "re:^language_model\\.model\\.layers.*", "re:.*lm_head"]}},
        "bits": 4,
    }) == {
        "ignore": ["lm_head", "model.layers.3.mlp", "vision_tower.x", "lm_head"],
        "modules_to_not_convert": ["model.layers.0"],
        "block_name_to_quantize": "model.layers",
        "config_groups": {"g": {"targets": ["Linear", "re:^model.layers.*", "re:.*lm_head"]}},
        "bits": 4,
    }  # fmt: skip


@needs("gguf")
def test_gguf(session, registry, files):
    """Q8_0: 32 codes of 8 bits and a float16 scale a block."""
    one = cell(registry, "q8_0", files / "gguf", "tiny.gguf")
    measured = session.measure(one)
    assert session.costs(one)["bits_per_weight"] == 8.5
    assert session.costs(one)["weight_bytes"] == 15_258_624  # dequantized
    assert (measured.quantized.share, measured.quantized.simulated) == (1, True)
    assert 0 < measured.estimates.cell["kl_divergence"].value < 1e-5
    assert measured.quantized.without.startswith("llama.cpp also rounds activations")
    model = session.load(one).model
    weight = checkpoints.weights()["model.layers.3.mlp.up_proj.weight"].reshape(-1, 32)
    scale = (abs(weight).max(1, keepdims=True) / 127).astype("float16").astype("float32")
    by_hand = torch.from_numpy((weight / scale).round().clip(-127, 127) * scale).reshape(768, 192)
    found = model.model.layers[3].mlp.up_proj.weight
    # the file's scale is rounded to float16 after the codes are made: one code may differ by one step
    assert (found - by_hand).abs().max() <= scale.max() * 1.01
    assert ((found - by_hand).abs() > 1e-6).float().mean() < 0.01


@needs("compressed_tensors")
def test_another_tokenizer_is_refused(registry, files, tmp_path):
    folder = shutil.copytree(files / "w8a8", tmp_path / "w8a8")
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text(encoding="utf-8"))
    vocabulary = tokenizer["model"]["vocab"]
    a, b = list(vocabulary)[200:202]
    vocabulary[a], vocabulary[b] = vocabulary[b], vocabulary[a]
    path.write_text(json.dumps(tokenizer), encoding="utf-8")
    with pytest.raises(QsaeError, match="its tokenizer differs from the model's") as caught:
        load(cell(registry, "w8a8", folder), "cpu", torch.float32)
    assert repr(a) in one_line(caught.value)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (folder / file).unlink()
    load(cell(registry, "w8a8", folder), "cpu", torch.float32)  # one that says nothing of its tokens


def with_config(files, into, **changes):
    """The compressed-tensors folder with another config, its weights unchanged."""
    folder = shutil.copytree(files / "w8a8", into)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    return folder


ROPE = {
    "full_attention": {"rope_theta": 1e4, "rope_type": "default"},
    "sliding_attention": {"rope_theta": 1e4, "rope_type": "default"},
}
"""1e4 for 1e6 at the layers of full attention, as transformers stores it"""
OLD_ROPE = {"rope_parameters": None, "rope_theta": 1e4, "rope_local_base_freq": 1e4}
"""the same as releases before it did"""


@needs("compressed_tensors")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"rope_parameters": ROPE},
            r"full_attention\.rope_theta is 10000\.0, the reference's is 1000000\.0",
        ),
        (OLD_ROPE, r"full_attention\.rope_theta is 10000\.0, the reference's is 1000000\.0"),
        ({"query_pre_attn_scalar": 192}, "query_pre_attn_scalar is 192, the reference's is 48"),
        ({"sliding_window": 32}, "sliding_window is 32, the reference's is 64"),
        ({"final_logit_softcapping": 30.0}, r"final_logit_softcapping is 30\.0, the reference's is null"),
        ({"a_multiplier": 2.0}, r"a_multiplier is 2\.0, the reference's is null or missing"),
    ],
)
def test_a_config_that_computes_something_else_is_refused_by_name(
    registry, files, tmp_path, changes, message
):
    folder = with_config(files, tmp_path / "w8a8", **changes)
    with pytest.raises(QsaeError, match=message) as caught:
        load(cell(registry, "w8a8", folder), "cpu", torch.float32)
    assert f"tiny_gemma3-w8a8: {folder}: " in one_line(caught.value)
    assert "differs = [" in one_line(caught.value)


@needs("compressed_tensors")
def test_a_difference_that_the_entry_names_is_measured_and_said(session, registry, files, tmp_path):
    """The perplexity is that of transformers' own model with the other rope, not the recipe's."""
    folder = with_config(files, tmp_path / "w8a8", rope_parameters=ROPE)
    spec = CheckpointSpec(str(folder), differs=("rope_theta",))
    one = Cell(
        registry.model("tiny_gemma3"),
        QuantizationSpec("w8a8", "checkpoint", checkpoints={"tiny_gemma3": spec}),
    )
    expected = AutoModelForCausalLM.from_pretrained(checkpoints.TINY, dtype=torch.float32)
    other = AutoConfig.from_pretrained(checkpoints.TINY)
    other.rope_parameters = ROPE
    moved = AutoModelForCausalLM.from_pretrained(checkpoints.TINY, config=other, dtype=torch.float32)
    ids = torch.arange(3, 400)[None] % 2000
    with torch.inference_mode():
        by_rope = (moved(ids).logits - expected(ids).logits).norm()
        found = session.load(one).model(ids).logits - expected(ids).logits
    assert found.norm() == pytest.approx(float(by_rope), rel=0.05)
    assert any(
        "w8a8: its config differs, as its entry allows: rope_parameters.full_attention.rope_theta is 10000.0"
        in line for line in session.warnings[one]
    )  # fmt: skip
    before = list(session.warnings[one])
    session.load(Cell(registry.model("tiny_gemma3"), registry.quantization("reference")))
    session.load(one)
    assert session.warnings[one] == before


@needs("compressed_tensors", "gguf")
def test_configs_of_the_same_model_pass(registry, files, tmp_path):
    """As other tools write them: old names of the rope, null for a default, generation's keys."""
    folder = with_config(
        files, tmp_path / "w8a8", rope_parameters=None, rope_theta=1_000_000, rope_local_base_freq=10_000,
        rope_scaling=None, sliding_window_pattern=6, torch_dtype="float16", temperature=0.7, use_cache=False,
        transformers_version="4.50.0", _name_or_path="elsewhere", attention_dropout=0.1,
    )  # fmt: skip
    assert compare_config(cell(registry, "w8a8", folder)) == []
    assert compare_config(cell(registry, "w8a8", files / "w8a8")) == []
    assert compare_config(cell(registry, "w8a8", checkpoints.write_multimodal_w8a8(tmp_path / "mm"))) == []
    assert compare_config(cell(registry, "q8_0", files / "gguf", "tiny.gguf")) == []


@needs("gguf")
def test_a_ggufs_values_are_compared_with_the_models(registry, tmp_path):
    """transformers takes the weights alone; llama.cpp would compute with these."""
    values = {
        "rope.freq_base": 1e6, "rope.scaling.type": "none", "attention.sliding_window": 64,
        "attention.layer_norm_rms_epsilon": 1e-6, "context_length": 99,
    }  # fmt: skip
    same = checkpoints.write_gguf(tmp_path / "same" / "tiny.gguf", values)
    assert compare_config(cell(registry, "q8_0", same.parent, same.name)) == []
    for key, value, message in (
        (
            "rope.freq_base",
            1e4,
            r"rope_parameters\.full_attention\.rope_theta is 10000\.0, the reference's",
        ),
        ("rope.scaling.type", "linear", "rope_type is 'linear', the reference's is 'default'"),
        ("attention.sliding_window", 32, "sliding_window is 32, the reference's is 64"),
        ("attention.layer_norm_rms_epsilon", 1e-5, "rms_norm_eps is .*, the reference's is 1e-06"),
        ("attention.head_count", 8, "num_attention_heads is 8, the reference's is 4"),
    ):
        path = checkpoints.write_gguf(tmp_path / key / "tiny.gguf", values | {key: value})
        with pytest.raises(QsaeError, match=message) as caught:
            compare_config(cell(registry, "q8_0", path.parent, path.name))
        one_line(caught.value)


def test_a_quantized_source_is_no_reference(registry, files, tmp_path):
    """Its nf4 would differ from it by nothing, and pass."""
    model = replace(registry.model("tiny_gemma3"), source=str(files / "w8a8"))
    for name in ("reference", "rtn_int4"):
        with pytest.raises(QsaeError, match="a reference must not be") as caught:
            load(Cell(model, registry.quantization(name)), "cpu", torch.float32)
        assert f"{files / 'w8a8'} is quantized (compressed-tensors)" in one_line(caught.value)
        assert 'backend = "checkpoint", checkpoints = { tiny_gemma3 = "…" }' in one_line(caught.value)


@needs("bitsandbytes")
def test_a_bitsandbytes_folder_is_a_checkpoint_and_no_reference(registry, tmp_path):
    """As transformers saves it, config and all."""
    own = load(Cell(registry.model("tiny_gemma3"), registry.quantization("nf4")), "cpu", torch.float32)
    own.model.save_pretrained(tmp_path / "nf4")
    ids = torch.arange(3, 40)[None]
    again = load(cell(registry, "mine", tmp_path / "nf4"), "cpu", torch.float32)
    with torch.inference_mode():
        assert torch.equal(again.model(ids).logits, own.model(ids).logits)
    model = replace(registry.model("tiny_gemma3"), source=str(tmp_path / "nf4"))
    with pytest.raises(QsaeError, match=r"is quantized \(bitsandbytes\): a reference must not be"):
        load(Cell(model, registry.quantization("reference")), "cpu", torch.float32)


def test_a_checkpoints_own_method_is_asked_for_by_its_extra(registry, tmp_path):
    folder = shutil.copytree(checkpoints.TINY, tmp_path / "gptq")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        CannotRun, match=r"needs (gptqmodel|optimum.gptq): pip install 'qsae-bench\[gptq\]'"
    ):
        load(cell(registry, "mine", folder), "cpu", torch.float32)


def test_a_checkpoint_that_is_not_quantized_is_refused(registry):
    with pytest.raises(
        QsaeError, match="is not quantized: its config has no quantization_config"
    ) as caught:
        load(cell(registry, "mine", checkpoints.TINY), "cpu", torch.float32)
    one_line(caught.value)


@needs("compressed_tensors")
def test_a_checkpoint_of_another_model_is_refused(registry, files, tmp_path):
    folder = shutil.copytree(files / "w8a8", tmp_path / "w8a8")
    config = json.loads((folder / "config.json").read_text())
    config["num_hidden_layers"] = 5
    config["layer_types"] = config["layer_types"][:5] if config.get("layer_types") else None
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(QsaeError, match=r"has \(layers, width\) \(5, 192\)") as caught:
        load(cell(registry, "w8a8", folder), "cpu", torch.float32)
    one_line(caught.value)


@needs("gguf")
def test_a_file_that_is_no_gguf_takes_one_line(registry, tmp_path):
    (tmp_path / "tiny.gguf").write_bytes(b"not one\n" * 100)
    with pytest.raises(QsaeError) as caught:
        load(cell(registry, "mine", tmp_path, "tiny.gguf"), "cpu", torch.float32)
    assert "tiny_gemma3-mine" in one_line(caught.value)


def test_a_missing_folder_takes_one_line(registry, tmp_path):
    with pytest.raises(QsaeError, match="no such folder") as caught:
        load(cell(registry, "mine", tmp_path / "nowhere"), "cpu", torch.float32)
    one_line(caught.value)


def test_a_model_without_a_checkpoint_is_skipped_with_what_to_do(registry):
    quantization = QuantizationSpec(
        "mine", "checkpoint", checkpoints={"gemma3_4b": CheckpointSpec("org/name")}
    )
    model = registry.model("tiny_gemma3")
    with pytest.raises(CannotRun, match="names no checkpoint of tiny_gemma3, only of gemma3_4b") as caught:
        require(Cell(model, quantization), "cpu")
    assert "--registry" in one_line(caught.value)
    with pytest.raises(CannotRun, match="leave out --synthetic"):
        require(Cell(replace(model, synthetic=True), quantization), "cpu")


def test_entries_name_models_that_exist(tmp_path):
    entry = tmp_path / "mine.toml"
    good = '[quantizations.mine]\nbackend = "checkpoint"\n'
    for text, message in (
        (good, "needs checkpoints"),
        (good + 'checkpoints = { tiny_gemma4 = "org/name" }', "did you mean 'tiny_gemma3'"),
        (good + "checkpoints = { tiny_gemma3 = 3 }", 'expected "org/name"'),
        (good + 'checkpoints = { tiny_gemma3 = { file = "x.gguf" } }', "missing source"),
        (good + 'checkpoints = { tiny_gemma3 = { source = "a/b", fil = "x" } }', "did you mean 'file'"),
        (good + 'checkpoints = { tiny_gemma3 = { source = "a/b", differs = "x" } }', "differs"),
        ('[quantizations.mine]\nbackend = "rtn"\ncheckpoints = { tiny_gemma3 = "a/b" }', "and only it"),
    ):
        entry.write_text(text, encoding="utf-8")
        with pytest.raises(QsaeError, match=message) as caught:
            load_registry([entry])
        one_line(caught.value)
    entry.write_text(good + 'checkpoints = { tiny_gemma3 = "./w8a8" }', encoding="utf-8")
    found = load_registry([entry]).quantization("mine").checkpoints["tiny_gemma3"]
    assert found.source == str((tmp_path / "w8a8").resolve())  # relative to the file that names it
    entry.write_text(
        good + 'checkpoints = { tiny_gemma3 = { source = "a/b", differs = ["rope_theta"] } }',
        encoding="utf-8",
    )
    assert load_registry([entry]).quantization("mine").checkpoints["tiny_gemma3"].differs == ("rope_theta",)


def test_published_checkpoints_of_the_registry_are_of_models_of_it(registry):
    quantizations = [q for q in registry.quantizations.values() if q.backend == "checkpoint"]
    assert {q.name for q in quantizations} == {"gptq_int4", "awq_int4", "compressed_w8a8", "gguf_q4_k_m"}
    for quantization in quantizations:
        for name, found in quantization.checkpoints.items():
            assert name in registry.models
            assert found.source.count("/") == 1
            assert (found.file is not None) == quantization.name.startswith("gguf")
            # an instruction-tuned checkpoint beside a pretrained model's SAEs would be another model
            assert name.endswith("_it") == ("-it" in f"{found.source} {found.file}".lower()), found
