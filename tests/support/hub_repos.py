"""Small random repositories in the layout of the real ones, for :mod:`local_hub` to serve.

Names of files, configuration fields and tensors, numbers of layers and widths are the real ones; what
isn't asked about (heads, MLPs, the vocabulary, the vision tower) is as small as it can be.
"""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import save_file

import qsae_bench.tiny
from qsae_bench.tiny import grammar

TINY_MODEL = Path(qsae_bench.tiny.__file__).parent / "data" / "model"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
L0 = {"small": 20, "medium": 60, "big": 150}
PILE_SETS = ("Pile-CC", "StackExchange", "Wikipedia (en)", "USPTO Backgrounds", "PubMed Abstracts")

Tensors = dict[str, torch.Tensor]


# -- models ---------------------------------------------------------------------------------------


def gemma3_text(
    folder: Path,
    n_layers: int = 26,
    d_model: int = 1152,
    *,
    intermediate: int = 32,
    head_dim: int = 16,
    heads: int = 2,
    kv_heads: int = 1,
    seed: int = 0,
) -> Path:
    """``google/gemma-3-1b-pt``: text only, in one file."""
    text = {
        "attention_bias": False, "attention_dropout": 0.0, "attn_logit_softcapping": None,
        "final_logit_softcapping": None, "head_dim": head_dim, "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": d_model, "initializer_range": 0.02, "intermediate_size": intermediate,
        "max_position_embeddings": 32768, "model_type": "gemma3_text", "num_attention_heads": heads,
        "num_hidden_layers": n_layers, "num_key_value_heads": kv_heads,
        "query_pre_attn_scalar": head_dim, "rms_norm_eps": 1e-06, "rope_local_base_freq": 10000,
        "rope_scaling": None, "rope_theta": 1000000, "sliding_window": 512, "sliding_window_pattern": 6,
        "use_cache": True, "vocab_size": _vocabulary(spare=0),
    }  # fmt: skip
    config = {
        "architectures": ["Gemma3ForCausalLM"], "bos_token_id": 2, "cache_implementation": "hybrid",
        "eos_token_id": 1, "pad_token_id": 0, "torch_dtype": "bfloat16",
        "transformers_version": "4.50.0.dev0",
    }  # fmt: skip
    _write_common(folder, config | text)
    tensors = _text_tensors(text, "model.", torch.Generator().manual_seed(seed))
    _save(tensors, folder / "model.safetensors")
    return folder


def gemma3_multimodal(
    folder: Path,
    n_layers: int = 34,
    d_model: int = 2560,
    *,
    intermediate: int = 32,
    head_dim: int = 16,
    heads: int = 2,
    kv_heads: int = 1,
    seed: int = 0,
) -> Path:
    """``google/gemma-3-4b-pt`` and larger: a text model beside a vision tower, in two shards."""
    words = _vocabulary(spare=0)
    text = {
        "head_dim": head_dim, "hidden_size": d_model, "intermediate_size": intermediate,
        "model_type": "gemma3_text", "num_attention_heads": heads, "num_hidden_layers": n_layers,
        "num_key_value_heads": kv_heads, "query_pre_attn_scalar": head_dim,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024,
        "vocab_size": _vocabulary(spare=64),
    }  # fmt: skip
    vision = {
        "hidden_size": 16, "image_size": 28, "intermediate_size": 32,
        "model_type": "siglip_vision_model", "num_attention_heads": 2, "num_hidden_layers": 1,
        "patch_size": 14, "vision_use_head": False,
    }  # fmt: skip
    config = {
        "architectures": ["Gemma3ForConditionalGeneration"], "boi_token_index": words - 2,
        "eoi_token_index": words - 1, "eos_token_id": 1, "image_token_index": words,
        "initializer_range": 0.02, "mm_tokens_per_image": 4, "model_type": "gemma3",
        "text_config": text, "torch_dtype": "bfloat16", "transformers_version": "4.50.0.dev0",
        "vision_config": vision,
    }  # fmt: skip
    _write_common(folder, config)
    random = torch.Generator().manual_seed(seed)
    tensors = _text_tensors(text, "language_model.model.", random) | _vision_tensors(
        vision, d_model, random
    )
    _save_sharded(tensors, folder, shards=2)
    return folder


def _vocabulary(spare: int) -> int:
    """Rows of the embedding: the tokenizer's words and some more, in multiples of 64 as in Gemma."""
    tokenizer = json.loads((TINY_MODEL / "tokenizer.json").read_text(encoding="utf-8"))
    ids = [*tokenizer["model"]["vocab"].values(), *(token["id"] for token in tokenizer["added_tokens"])]
    return -(-(max(ids) + 1 + spare) // 64) * 64


def _write_common(folder: Path, config: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in TOKENIZER_FILES:
        shutil.copyfile(TINY_MODEL / name, folder / name)
    _write_json(folder / "config.json", config)
    generation = {"cache_implementation": "hybrid", "bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0}
    _write_json(folder / "generation_config.json", generation)
    _write_card(folder, "license: gemma\nlibrary_name: transformers\npipeline_tag: text-generation")


def _text_tensors(text: dict[str, Any], prefix: str, random: torch.Generator) -> Tensors:
    """Random weights with a residual stream of about unit scale: norms weigh what each layer adds."""
    width, hidden, head = text["hidden_size"], text["intermediate_size"], text["head_dim"]
    queries, keys = head * text["num_attention_heads"], head * text["num_key_value_heads"]
    matrices = {
        "mlp.down_proj": (width, hidden), "mlp.gate_proj": (hidden, width),
        "mlp.up_proj": (hidden, width), "self_attn.k_proj": (keys, width),
        "self_attn.o_proj": (width, queries), "self_attn.q_proj": (queries, width),
        "self_attn.v_proj": (keys, width),
    }  # fmt: skip
    # Gemma's norms multiply by 1 + weight: -0.8 lets a layer add a fifth of unit scale
    norms = {
        "input_layernorm": (width, 0.0), "post_attention_layernorm": (width, -0.8),
        "pre_feedforward_layernorm": (width, 0.0), "post_feedforward_layernorm": (width, -0.8),
        "self_attn.q_norm": (head, 0.0), "self_attn.k_norm": (head, 0.0),
    }  # fmt: skip

    def normal(shape: tuple[int, ...], std: float, mean: float = 0.0) -> torch.Tensor:
        return (mean + std * torch.randn(shape, generator=random)).bfloat16()

    tensors = {f"{prefix}embed_tokens.weight": normal((text["vocab_size"], width), width**-0.5)}
    for layer in range(text["num_hidden_layers"]):
        for name, shape in matrices.items():
            tensors[f"{prefix}layers.{layer}.{name}.weight"] = normal(shape, shape[1] ** -0.5)
        for name, (size, mean) in norms.items():
            tensors[f"{prefix}layers.{layer}.{name}.weight"] = normal((size,), 0.02, mean)
    # the head is the embedding: unscaled, a token would predict itself with a logit of sqrt(width)
    tensors[f"{prefix}norm.weight"] = normal((width,), 0.02, 3 * width**-0.5 - 1)
    return tensors


def _vision_tensors(vision: dict[str, Any], d_model: int, random: torch.Generator) -> Tensors:
    width, hidden, patch = vision["hidden_size"], vision["intermediate_size"], vision["patch_size"]
    patches = (vision["image_size"] // patch) ** 2
    tower = "vision_tower.vision_model"
    linear = {f"self_attn.{name}_proj": (width, width) for name in ("k", "out", "q", "v")}
    linear |= {"mlp.fc1": (hidden, width), "mlp.fc2": (width, hidden)}
    shapes: dict[str, tuple[int, ...]] = {
        "multi_modal_projector.mm_input_projection_weight": (width, d_model),
        "multi_modal_projector.mm_soft_emb_norm.weight": (width,),
        f"{tower}.embeddings.patch_embedding.bias": (width,),
        f"{tower}.embeddings.patch_embedding.weight": (width, 3, patch, patch),
        f"{tower}.embeddings.position_embedding.weight": (patches, width),
        f"{tower}.post_layernorm.bias": (width,),
        f"{tower}.post_layernorm.weight": (width,),
    }
    for layer in range(vision["num_hidden_layers"]):
        start = f"{tower}.encoder.layers.{layer}"
        for name, shape in linear.items():
            shapes[f"{start}.{name}.weight"], shapes[f"{start}.{name}.bias"] = shape, shape[:1]
        for name in ("layer_norm1", "layer_norm2"):
            shapes[f"{start}.{name}.weight"] = shapes[f"{start}.{name}.bias"] = (width,)
    return {name: (0.1 * torch.randn(shape, generator=random)).bfloat16() for name, shape in shapes.items()}


def _save(tensors: Tensors, path: Path) -> None:
    save_file(tensors, path, metadata={"format": "pt"})


def _save_sharded(tensors: Tensors, folder: Path, shards: int) -> None:
    """Files of about equal size, and the index that says what is where."""
    sizes = {name: tensor.numel() * tensor.element_size() for name, tensor in tensors.items()}
    total, before = sum(sizes.values()), 0
    weight_map, parts = {}, [Tensors() for _ in range(shards)]
    for name, tensor in tensors.items():
        shard = min(before * shards // total, shards - 1)
        parts[shard][name] = tensor
        weight_map[name] = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        before += sizes[name]
    for shard, part in enumerate(parts, 1):
        _save(part, folder / f"model-{shard:05d}-of-{shards:05d}.safetensors")
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    _write_json(folder / "model.safetensors.index.json", index)


# -- SAEs -----------------------------------------------------------------------------------------


def gemma_scope_2(
    folder: Path,
    layers: Iterable[int],
    d_in: int,
    d_sae: int = 256,
    *,
    widths: Iterable[str] = ("16k",),
    l0s: Iterable[str] = ("medium",),
    threshold: float = 1.0,
    model_name: str = "gemma-v3-4b-pt",
    seed: int = 0,
) -> Path:
    """``google/gemma-scope-2-4b-pt``: JumpReLU SAEs of the residual stream after a layer.

    The encoder reads a stream of unit scale as standard normals, so that a threshold of 1 leaves about
    a sixth of the features active. ``widths`` only names: every SAE has ``d_sae`` features.
    """
    for number, (layer, width, l0) in enumerate(itertools.product(layers, widths, l0s)):
        place = folder / "resid_post" / f"layer_{layer}_width_{width}_l0_{l0}"
        place.mkdir(parents=True, exist_ok=True)
        config = {
            "hf_hook_point_in": f"model.layers.{layer}.output",
            "hf_hook_point_out": f"model.layers.{layer}.output",
            "width": d_sae, "model_name": model_name, "architecture": "jump_relu", "l0": L0[l0],
            "affine_connection": False, "type": "sae",
        }  # fmt: skip
        _write_json(place / "config.json", config)
        random = torch.Generator().manual_seed(1000 * seed + number)
        encoder = torch.randn(d_in, d_sae, generator=random) * d_in**-0.5
        tensors = {
            "w_enc": encoder,
            "w_dec": encoder.T.contiguous(),
            "b_enc": 0.01 * torch.randn(d_sae, generator=random),
            "b_dec": 0.01 * torch.randn(d_in, generator=random),
            "threshold": torch.full((d_sae,), threshold),
        }
        _save(tensors, place / "params.safetensors")
    _write_card(folder, "license: cc-by-4.0\nlibrary_name: saelens")
    return folder


# -- corpora --------------------------------------------------------------------------------------


def pile_10k(folder: Path, documents: int = 300, seed: int = 0) -> Path:
    """``NeelNanda/pile-10k``: texts of 1000 tokens and more by the tiny model's tokenizer."""
    source = grammar.documents(seed, "pile_10k")
    texts = ["".join(itertools.islice(source, 3)) for _ in range(documents)]
    metas = [{"pile_set_name": PILE_SETS[i % len(PILE_SETS)]} for i in range(documents)]
    meta = pa.struct([("pile_set_name", pa.string())])
    table = pa.table({"text": pa.array(texts, pa.string()), "meta": pa.array(metas, meta)})
    _write_parquet(table, folder / "data" / "train-00000-of-00001.parquet")
    card = f"""license: bigscience-bloom-rail-1.0
dataset_info:
  features:
  - name: text
    dtype: string
  - name: meta
    struct:
    - name: pile_set_name
      dtype: string
  splits:
  - name: train
    num_bytes: {table.nbytes}
    num_examples: {documents}
  download_size: {table.nbytes}
  dataset_size: {table.nbytes}"""
    _write_card(folder, card)
    return folder


def wikitext(folder: Path, articles: int = 20, seed: int = 0) -> Path:
    """``Salesforce/wikitext``, ``wikitext-2-raw-v1``: a row a line, titles, and empty lines between."""
    config = "wikitext-2-raw-v1"
    counts = {"test": max(articles // 4, 1), "train": articles, "validation": max(articles // 4, 1)}
    for split, count in counts.items():
        lines = list(_articles(itertools.islice(grammar.documents(seed, f"wikitext-{split}"), count)))
        name = f"{split}-00000-of-00001.parquet"
        _write_parquet(pa.table({"text": pa.array(lines, pa.string())}), folder / config / name)
    files = "\n".join(f"  - split: {split}\n    path: {config}/{split}-*" for split in counts)
    features = "  features:\n  - name: text\n    dtype: string"
    card = f"configs:\n- config_name: {config}\n  data_files:\n{files}\n"
    _write_card(folder, card + f"dataset_info:\n- config_name: {config}\n{features}")
    return folder


def _articles(sources: Iterable[str]) -> Iterator[str]:
    for source in sources:
        title, *paragraphs = source.splitlines()
        yield from ("", f" = {title.lstrip('# ').split(': ')[-1].title()} = \n", "")
        for number, paragraph in enumerate(paragraphs):
            if number % 6 == 5:
                yield from ("", f" = = Section {number // 6 + 1} = = \n", "")
            yield f" {paragraph} \n"


def _write_parquet(table: pa.Table, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=1000)


def _write_card(folder: Path, yaml: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "README.md").write_text(f"---\n{yaml}\n---\n\nRandom, for tests.\n", encoding="utf-8")


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
