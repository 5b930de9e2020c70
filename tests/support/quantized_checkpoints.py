"""The embedded model as other people's quantizers store it: compressed-tensors and GGUF, written by hand.

Written from the formats' descriptions, not by the libraries that read them, so that what they store is
known to the bit.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np

from paths import ROOT

TINY = ROOT / "src/qsae_bench/tiny/data/model"
LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

INT8 = {
    "quant_method": "compressed-tensors", "format": "int-quantized", "quantization_status": "compressed",
    "ignore": ["lm_head"],
    "config_groups": {"group_0": {"targets": ["Linear"], "weights": {
        "num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel", "dynamic": False,
    }, "input_activations": {
        "num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True,
    }}},
}  # fmt: skip
"""weights a scale an output channel, activations a scale a token"""


def weights() -> dict[str, np.ndarray]:
    """Name -> float32."""
    from safetensors.torch import load_file  # numpy has no bfloat16

    return {name: tensor.float().numpy() for name, tensor in load_file(TINY / "model.safetensors").items()}


def is_block_linear(name: str) -> bool:
    return any(name.endswith(f"{one}.weight") for one in LINEAR)


def write_compressed_w8a8(folder: Path) -> Path:
    """int8 weights with one float32 scale a row."""
    from safetensors.numpy import save_file

    folder.mkdir(parents=True)
    found: dict[str, np.ndarray] = {}
    for name, weight in weights().items():
        if is_block_linear(name):
            scale = np.abs(weight).max(axis=1, keepdims=True) / 127
            found[name] = np.rint(weight / scale).clip(-127, 127).astype(np.int8)
            found[f"{name}_scale"] = scale.astype(np.float32)
        else:
            found[name] = weight
    save_file(found, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((TINY / "config.json").read_text()) | {"quantization_config": INT8}
    (folder / "config.json").write_text(json.dumps(config))
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TINY / file, folder / file)
    return folder


EXPANDED = {
    "ignore": ["model.language_model.lm_head", "lm_head", "re:model\\.vision_tower.*",
               "model.language_model.layers.5.mlp.down_proj"],
    "targets": ["re:model\\.language_model\\.layers.*proj"],
}  # fmt: skip
"""modules as a multimodal checkpoint's quantizer names them"""


def write_multimodal_w8a8(folder: Path) -> Path:
    """The same as the text tower of a ``Gemma3ForConditionalGeneration``, one matrix left in floats."""
    from safetensors.torch import load_file, save_file

    write_compressed_w8a8(folder)
    left = "model.layers.5.mlp.down_proj.weight"
    tensors = load_file(folder / "model.safetensors")
    tensors[left] = load_file(TINY / "model.safetensors")[left].float()
    del tensors[f"{left}_scale"]
    renamed = {f"model.language_model.{name.removeprefix('model.')}": t for name, t in tensors.items()}
    save_file(renamed, folder / "model.safetensors", metadata={"format": "pt"})
    text = json.loads((TINY / "config.json").read_text())
    group = INT8["config_groups"]["group_0"] | {"targets": EXPANDED["targets"]}
    quantization = INT8 | {"ignore": EXPANDED["ignore"], "config_groups": {"group_0": group}}
    config = {
        "model_type": "gemma3", "architectures": ["Gemma3ForConditionalGeneration"], "text_config": text,
        "tie_word_embeddings": True, "quantization_config": quantization,
        "vision_config": {
            "model_type": "siglip_vision_model", "hidden_size": 16, "intermediate_size": 16, "image_size": 28,
            "num_hidden_layers": 1, "num_attention_heads": 1, "patch_size": 14,
        },
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    return folder


NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm", "post_feedforward_layernorm": "post_ffw_norm",
}  # fmt: skip
"""transformers' modules -> llama.cpp's tensors"""


def write_gguf(path: Path, values: dict[str, float | int | str] | None = None) -> Path:
    """Block matrices in Q8_0 (blocks of 32 with a float16 scale), everything else in float32.

    ``values`` are more of llama.cpp's keys, or others than the model's, without ``gemma3.``.
    """
    import gguf

    path.parent.mkdir(parents=True, exist_ok=True)
    config = json.loads((TINY / "config.json").read_text())
    writer = gguf.GGUFWriter(path, "gemma3")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    for key, value in (values or {}).items():
        writer.kv_data[0].pop(f"gemma3.{key}", None)
        add = {str: writer.add_string, float: writer.add_float32, int: writer.add_uint32}[type(value)]
        add(f"gemma3.{key}", value)
    for name, weight in weights().items():
        stem = name.removeprefix("model.").removesuffix(".weight")
        if stem == "embed_tokens":
            writer.add_tensor("token_embd.weight", weight)
        elif stem == "norm":
            writer.add_tensor("output_norm.weight", weight + 1)
        elif stem.startswith("layers."):
            _, layer, module = stem.split(".", 2)
            target = f"blk.{layer}.{NAMES[module]}.weight"
            if is_block_linear(name):
                packed = gguf.quants.quantize(weight, gguf.GGMLQuantizationType.Q8_0)
                writer.add_tensor(target, packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
            else:  # llama.cpp stores Gemma's norms as they multiply, one more than transformers does
                writer.add_tensor(target, weight + 1)
        else:
            raise AssertionError(name)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
