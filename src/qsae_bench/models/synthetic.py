"""Make a random model and random SAEs of real architecture and size, which ``--synthetic`` measures.

Every cell of a model draws the same weights, so that quantizing them is what differs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qsae_bench.models.architecture import synthetic_config
from qsae_bench.models.backends import LoadRequest, device_map
from qsae_bench.models.log_filters import silenced
from qsae_bench.registry.specs import ModelSpec

if TYPE_CHECKING:
    from sae_lens import SAE
    from transformers import PreTrainedModel

WEIGHTS_SEED = 0

ACTIVE_SHARE = 0.005
"""share of features active on random residuals; a dense SAE's speed does not depend on it"""


def random_model(request: LoadRequest, **keywords: Any) -> PreTrainedModel:
    """Draw the registry's architecture on the request's device, without the request's quantization.

    ``keywords`` go to ``from_pretrained``: a ``quantization_config`` quantizes the weights as it would a
    checkpoint's.
    """
    import torch
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    config = synthetic_config(request.model)
    model_class = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    device = "cuda:0" if request.device == "auto" else request.device
    torch.manual_seed(WEIGHTS_SEED)
    with torch.device(device):
        model = model_class._from_config(config, dtype=request.dtype)
    if not keywords and request.device != "auto":
        return model
    weights = model.state_dict()
    del model
    return model_class.from_pretrained(
        None, config=config, state_dict=weights, dtype=request.dtype,
        device_map=device_map(request.device), **keywords,
    )  # fmt: skip


def random_saes(model: ModelSpec, device: str) -> dict[int, SAE[Any]]:
    """Return a random JumpReLU SAE of the real width for every tapped layer, float32 on ``device``."""
    return {layer: _random_sae(model, layer, device) for layer in model.layers}


def _random_sae(model: ModelSpec, layer: int, device: str) -> SAE[Any]:
    import torch
    from scipy.stats import norm

    with silenced():
        from sae_lens import SAE
        from sae_lens.saes.jumprelu_sae import JumpReLUSAEConfig
    width = model.sae.features
    config = JumpReLUSAEConfig(d_in=model.d_model, d_sae=width, dtype="float32", device=device)
    config.metadata.hook_name = f"blocks.{layer}.hook_resid_post"
    sae: SAE[Any] = SAE.from_dict(config.to_dict())
    generator = torch.Generator(device=device).manual_seed(WEIGHTS_SEED + 1 + layer)
    with torch.no_grad():
        sae.W_enc.normal_(std=model.d_model**-0.5, generator=generator)
        sae.W_dec.normal_(std=width**-0.5, generator=generator)
        sae.b_enc.zero_()
        sae.b_dec.zero_()
        sae.threshold.fill_(float(norm.isf(ACTIVE_SHARE)))
    return sae


def special_ids(model: ModelSpec) -> tuple[int, tuple[int, ...]]:
    """Return the id of BOS, and every special id, which random tokens leave out."""
    named = [model.architecture.get(f"{name}_token_id") for name in ("bos", "eos", "pad")]
    return int(model.architecture["bos_token_id"]), tuple(sorted({i for i in named if i is not None}))
