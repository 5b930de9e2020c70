"""The embedded model and its SAEs inside the shape of a real Gemma 3: as deep, as wide, and the same function.

A random model is outside every sanity bound, so a run on one ends red for reasons of its own. Here the
embedded model's 192 dimensions come first and the others stay zero; its six layers stand where the real
model has them tapped, and the layers between add nothing (their post-norms multiply by 0).
"""

from __future__ import annotations

import itertools
import json
import math
import random
from pathlib import Path

import pyarrow as pa
import torch
from safetensors.torch import load_file, save_file

import hub_repos
from hub_repos import TINY_MODEL
from qsae_bench.tiny import grammar

TINY = json.loads((TINY_MODEL / "config.json").read_text(encoding="utf-8"))
WIDTH = TINY["hidden_size"]
TINY_SAES = TINY_MODEL.parent / "saes"

Tensors = dict[str, torch.Tensor]


def places(n_layers: int, tapped: int) -> list[int]:
    """Where the six layers go: the embedded model's layer 3 at ``tapped``, the others spread around it."""
    return [tapped // 4, tapped // 2, 3 * tapped // 4, tapped, (tapped + n_layers) // 2, n_layers - 1]


def text_config(n_layers: int, d_model: int, tapped: int) -> dict:
    types = ["sliding_attention"] * n_layers
    for mine, place in enumerate(places(n_layers, tapped)):
        types[place] = TINY["layer_types"][mine]
    kept = {
        key: value for key, value in TINY.items() if key not in ("architectures", "transformers_version")
    }
    return kept | {
        "hidden_size": d_model, "num_hidden_layers": n_layers, "layer_types": types,
        "max_position_embeddings": 4096,
    }  # fmt: skip


def text_tensors(n_layers: int, d_model: int, tapped: int, prefix: str) -> Tensors:
    """Weights of the wide model. With s = sqrt(192 / d_model): RMSNorm over d_model dimensions, of which
    192 are not zero, gives 1/s times what it gave; embeddings are multiplied by sqrt(d_model)."""
    tiny = load_file(TINY_MODEL / "model.safetensors")
    scale = math.sqrt(WIDTH / d_model)
    where = dict(zip(places(n_layers, tapped), range(6), strict=True))

    def norm(weight: torch.Tensor, factor: float) -> torch.Tensor:
        wide = torch.zeros(d_model)
        wide[:WIDTH] = (1 + weight.float()) * factor - 1
        return wide.bfloat16()

    def inner(weight: torch.Tensor) -> torch.Tensor:
        """A q, k, v, gate or up projection: more inputs."""
        return torch.nn.functional.pad(weight, (0, d_model - WIDTH)).contiguous()

    def outer(weight: torch.Tensor) -> torch.Tensor:
        """An o or down projection: more outputs."""
        return torch.nn.functional.pad(weight, (0, 0, 0, d_model - WIDTH)).contiguous()

    wide = {"embed_tokens.weight": inner((tiny["model.embed_tokens.weight"].float() * scale).bfloat16())}
    wide["norm.weight"] = norm(tiny["model.norm.weight"], 1.0)
    for layer in range(n_layers):
        source = where.get(layer)
        start = f"model.layers.{0 if source is None else source}."
        for name in (key.removeprefix(start) for key in tiny if key.startswith(start)):
            weight = tiny[start + name]
            if name.endswith(("q_norm.weight", "k_norm.weight")):
                new = weight
            elif "layernorm" in name:
                new = norm(weight, scale)
                if source is None and name.startswith("post_"):
                    new = torch.full((d_model,), -1.0).bfloat16()
            elif "o_proj" in name or "down_proj" in name:
                new = outer(weight)
            else:
                new = inner(weight)
            wide[f"layers.{layer}.{name}"] = new.clone()
    return {prefix + name: tensor for name, tensor in wide.items()}


def gemma3_text(folder: Path, n_layers: int = 26, d_model: int = 1152, tapped: int = 13) -> Path:
    """``google/gemma-3-1b-pt``."""
    config = text_config(n_layers, d_model, tapped) | {"architectures": ["Gemma3ForCausalLM"]}
    hub_repos._write_common(folder, config)
    hub_repos._save(text_tensors(n_layers, d_model, tapped, "model."), folder / "model.safetensors")
    return folder


def gemma3_multimodal(folder: Path, n_layers: int = 34, d_model: int = 2560, tapped: int = 17) -> Path:
    """``google/gemma-3-4b-pt``: beside a vision tower, in two shards, under the real names."""
    hub_repos.gemma3_multimodal(folder, n_layers=1, d_model=d_model)
    for old in folder.glob("*.safetensors*"):
        old.unlink()
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["text_config"] = text_config(n_layers, d_model, tapped)
    hub_repos._write_json(folder / "config.json", config)
    vision = hub_repos._vision_tensors(config["vision_config"], d_model, torch.Generator().manual_seed(0))
    tensors = text_tensors(n_layers, d_model, tapped, "language_model.model.") | vision
    hub_repos._save_sharded(tensors, folder, shards=2)
    return folder


def gemma_scope_2(folder: Path, layer: int, d_model: int, model_name: str) -> Path:
    """The embedded model's SAE of layer 3 as the release's ``layer_N_width_16k_l0_medium``."""
    tiny = load_file(TINY_SAES / "layer3" / "sae_weights.safetensors")
    extra = d_model - WIDTH
    # the release's SAEs don't subtract b_dec from their input; ours does, so it moves into b_enc
    b_enc = tiny["b_enc"].float() - tiny["b_dec"].float() @ tiny["W_enc"].float()
    tensors = {
        "w_enc": torch.nn.functional.pad(tiny["W_enc"].float(), (0, 0, 0, extra)),
        "w_dec": torch.nn.functional.pad(tiny["W_dec"].float(), (0, extra)),
        "b_enc": b_enc,
        "b_dec": torch.nn.functional.pad(tiny["b_dec"].float(), (0, extra)),
        "threshold": tiny["threshold"].float(),
    }
    place = folder / "resid_post" / f"layer_{layer}_width_16k_l0_medium"
    place.mkdir(parents=True)
    config = {
        "architecture": "jump_relu",
        "model_name": model_name,
        "hf_hook_point_in": f"model.layers.{layer}.output",
    }
    hub_repos._write_json(place / "config.json", config)
    save_file({name: t.contiguous() for name, t in tensors.items()}, place / "params.safetensors")
    hub_repos._write_card(folder, "library_name: saelens")
    return folder


def pile_10k(folder: Path, documents: int, seed: int = 0) -> Path:
    """Text of the embedded model's grammar with one word in sixteen replaced, which puts its cross-entropy
    where the registry expects a real model's on the Pile."""
    source = grammar.documents(seed, "heldout")
    dice = random.Random(seed)
    texts = []
    for _ in range(documents):
        words = " ".join(itertools.islice(source, 4)).split(" ")
        texts.append(" ".join(dice.choice(words) if dice.random() < 1 / 16 else word for word in words))
    metas = [{"pile_set_name": "Pile-CC"} for _ in texts]
    meta = pa.struct([("pile_set_name", pa.string())])
    table = pa.table({"text": pa.array(texts, pa.string()), "meta": pa.array(metas, meta)})
    hub_repos._write_parquet(table, folder / "data" / "train-00000-of-00001.parquet")
    hub_repos._write_card(folder, "license: other")
    return folder
