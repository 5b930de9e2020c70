"""Random small SAEs of every architecture, in sae-lens's format, and what sae-lens itself measures of them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from safetensors.torch import save_file

import stand_ins
from qsae_bench.registry.sae_spec import SaeSpec
from qsae_bench.registry.specs import ModelSpec

LAYER, WIDTH, FEATURES = 1, 48, 64
HERE = f"blocks.{LAYER}.hook_resid_post"

LOADED = (
    "standard", "gated", "jumprelu", "topk", "abstopk", "matching_pursuit", "temporal", "transcoder",
    "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder",
)  # fmt: skip
"""what sae-lens 6.54 loads; a test holds this list to it"""
TRAINED = ("batchtopk", "matryoshka_batchtopk")


def config(architecture: str, **fields: Any) -> dict[str, Any]:
    """A config that is honoured, with other or more fields; None leaves one out."""
    made: dict[str, Any] = {
        "architecture": architecture, "d_in": WIDTH, "d_sae": FEATURES, "dtype": "float32", "device": "cpu",
        "apply_b_dec_to_input": "transcoder" not in architecture, "normalize_activations": "none",
        "reshape_activations": "none", "sae_lens_version": "6.54.0", "metadata": {"hook_name": HERE},
    }  # fmt: skip
    if "transcoder" in architecture:
        made["d_out"] = WIDTH
    if architecture in ("topk", "abstopk", *TRAINED):
        made["k"] = 7
    if architecture == "matching_pursuit":
        made["max_iterations"] = 4
    if architecture == "temporal":
        made |= {"n_heads": 2, "bottleneck_factor": 4, "kval_topk": 7}
    given = {key: value for key, value in (made | fields).items() if value is not None}
    given["metadata"] = made["metadata"] | fields.get("metadata", {})
    return given


def weights(given: dict[str, Any], seed: int = 0) -> dict[str, torch.Tensor]:
    """Random weights; a decoder's rows have norms about 1, or 1 where the encoder is the decoder."""
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int, scale: float = 1.0) -> torch.Tensor:
        return scale * torch.randn(*shape, generator=draw)

    architecture = given["architecture"]
    decoder = normal(FEATURES, WIDTH, scale=WIDTH**-0.5)
    if architecture == "matching_pursuit":
        return {"W_dec": decoder / decoder.norm(dim=1, keepdim=True), "b_dec": normal(WIDTH, scale=0.3)}
    made = {"W_dec": decoder, "b_dec": normal(WIDTH, scale=0.3)}
    if architecture == "temporal":
        from sae_lens import SAE

        fresh = SAE.from_dict(config("temporal")).state_dict()
        return {key: made[key] if key in made else normal(*v.shape, scale=0.2) for key, v in fresh.items()}
    made["W_enc"] = normal(WIDTH, FEATURES, scale=WIDTH**-0.5)
    if architecture == "gated":
        made |= {key: normal(FEATURES, scale=0.3) for key in ("b_gate", "b_mag", "r_mag")}
    else:
        made["b_enc"] = normal(FEATURES, scale=0.3)
    if "jumprelu" in architecture:
        made["threshold"] = normal(FEATURES, scale=0.3)
    if "skip" in architecture:
        made["W_skip"] = normal(WIDTH, WIDTH, scale=0.1)
    return made


def write(
    root: Path, given: Any, tensors: dict[str, torch.Tensor], scale: float | None = None, layer: int = LAYER
) -> Path:
    """The folder of one layer's SAE; ``given`` is its config."""
    folder = root / f"layer{layer}"
    folder.mkdir(parents=True, exist_ok=True)
    text = given if isinstance(given, str) else json.dumps(given)
    (folder / "cfg.json").write_text(text, encoding="utf-8")
    save_file(
        {key: value.contiguous() for key, value in tensors.items()}, folder / "sae_weights.safetensors"
    )
    if scale is not None:
        (folder / "activation_scaler.json").write_text(json.dumps({"scaling_factor": scale}))
    return folder


def spec(root: Path, **sae: Any) -> ModelSpec:
    """A model of which only the tapped layer and the SAEs' folder are asked."""
    model = stand_ins.cell(width=WIDTH).model
    return replace(model, layers=(LAYER,), sae=SaeSpec(WIDTH, folder=str(root), **sae))


def by_sae_lens(
    folder: Path, x: torch.Tensor, valid: np.ndarray, scale: float | None
) -> tuple[float, float]:
    """FVU and L0 over valid positions: sae-lens's own forward and features, in float64."""
    from sae_lens import SAE

    sae = SAE.load_from_disk(folder, dtype="float64").eval()
    if sae.cfg.normalize_activations == "expected_average_only_in":
        assert scale is not None
        sae.fold_activation_norm_scaling_factor(scale)
    with torch.no_grad():
        x_hat, f = (made.double().numpy()[valid] for made in (sae(x.double()), sae.encode(x.double())))
    x = x.double().numpy()[valid]
    error = ((x - x_hat) ** 2).sum()
    return error / ((x - x.mean(0)) ** 2).sum(), (f != 0).sum(1).mean()


@st.composite
def configs(draw: st.DrawFn) -> dict[str, Any]:
    """Configs with flags that are honoured and flags that are not, as many of the ones as of the others."""

    def mostly(value: Any, *others: Any) -> Any:
        return draw(st.sampled_from([*[value] * (7 * len(others)), *others]))

    architecture = draw(st.sampled_from([*LOADED * 4, *TRAINED, "unheard_of"]))
    given = config(
        architecture,
        normalize_activations=draw(
            st.sampled_from(
                [*["none"] * 6, None, "layer_norm", "constant_norm_rescale", "constant_scalar_rescale",
                 "expected_average_only_in", "expected_average_only_in", "covariance_whitening", "other"]
            )
        ),
        reshape_activations=mostly("none", "hook_z", "other"),
        dtype=draw(st.sampled_from(["float32", "float64", "torch.bfloat16"])),
        activation_fn=mostly(None, "relu", "topk", "tanh-relu"),
        finetuning_scaling_factor=mostly(None, False, True),
        use_error_term=mostly(None, True),
        metadata={
            "hook_name": mostly(HERE, f"blocks.{LAYER + 1}.hook_resid_pre", "blocks.1.hook_mlp_out"),
            "hook_name_out": mostly(None, HERE, "blocks.1.hook_mlp_out"),
            "hook_head_index": mostly(None, 3),
            "context_size": draw(st.sampled_from([None, 8, 1024])),
        },
    )  # fmt: skip
    if "transcoder" not in architecture:
        given["apply_b_dec_to_input"] = draw(st.booleans())
    if architecture in ("topk", "abstopk"):
        given["rescale_acts_by_decoder_norm"] = draw(st.booleans())
        given["k"] = mostly(7, 1, FEATURES, FEATURES + 1)
    if architecture == "temporal":
        given["activation_normalization_factor"] = draw(st.sampled_from([0.3, 1.0]))
        given["sae_diff_type"] = mostly("topk", "relu", "other")
    return given
