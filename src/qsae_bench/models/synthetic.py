"""Random SAEs and a random model's config, of real architecture and size: what ``--synthetic`` runs.

The model itself comes from :mod:`qsae_bench.models.backends.random_weights`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qsae_bench.models.log_filters import quietly
from qsae_bench.registry.specs import ModelSpec

if TYPE_CHECKING:
    from sae_lens import SAE
    from transformers import PretrainedConfig

SEED = 0

ACTIVE_SHARE = 0.005
"""of random features on random residuals; a dense SAE's speed does not depend on it"""


def config_of(model: ModelSpec) -> PretrainedConfig:
    """transformers' config of the registry's architecture."""
    from transformers import AutoConfig

    values = dict(model.architecture)
    return AutoConfig.for_model(
        values.pop("model_type"), num_hidden_layers=model.n_layers, hidden_size=model.d_model, **values
    )


def random_saes(model: ModelSpec, device: str) -> dict[int, SAE[Any]]:
    """A random JumpReLU SAE of the real width for every tapped layer, float32 on ``device``."""
    return {layer: _random_sae(model, layer, device) for layer in model.layers}


def _random_sae(model: ModelSpec, layer: int, device: str) -> SAE[Any]:
    import torch
    from scipy.stats import norm

    with quietly():
        from sae_lens import SAE
        from sae_lens.saes.jumprelu_sae import JumpReLUSAEConfig
    width = model.sae.features
    config = JumpReLUSAEConfig(d_in=model.d_model, d_sae=width, dtype="float32", device=device)
    config.metadata.hook_name = f"blocks.{layer}.hook_resid_post"
    sae: SAE[Any] = SAE.from_dict(config.to_dict())
    generator = torch.Generator(device=device).manual_seed(SEED + 1 + layer)
    with torch.no_grad():
        sae.W_enc.normal_(std=model.d_model**-0.5, generator=generator)
        sae.W_dec.normal_(std=width**-0.5, generator=generator)
        sae.b_enc.zero_()
        sae.b_dec.zero_()
        sae.threshold.fill_(float(norm.isf(ACTIVE_SHARE)))
    return sae


def special_ids(model: ModelSpec) -> tuple[int, tuple[int, ...]]:
    """BOS, and every id that random tokens leave out."""
    named = [model.architecture.get(f"{name}_token_id") for name in ("bos", "eos", "pad")]
    return int(model.architecture["bos_token_id"]), tuple(sorted({i for i in named if i is not None}))
