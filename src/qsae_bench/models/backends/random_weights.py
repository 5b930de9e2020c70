"""The registry's architecture with random weights, for ``--synthetic``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qsae_bench.models.backends import LoadRequest, device_map
from qsae_bench.models.synthetic import SEED, config_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def load(request: LoadRequest, **keywords: Any) -> PreTrainedModel:
    """Drawn on the device from one seed, so that every cell of a model quantizes the same weights.

    ``keywords`` such as a ``quantization_config`` go through ``from_pretrained``, as a checkpoint does.
    """
    import torch
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    config = config_of(request.model)
    model_class = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    place = "cuda:0" if request.device == "auto" else request.device
    torch.manual_seed(SEED)
    with torch.device(place):
        model = model_class._from_config(config, dtype=request.dtype)
    if not keywords and request.device != "auto":
        return model
    weights = model.state_dict()
    del model
    return model_class.from_pretrained(
        None, config=config, state_dict=weights, dtype=request.dtype,
        device_map=device_map(request.device), **keywords,
    )  # fmt: skip
