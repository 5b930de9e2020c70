"""The model as published: what every quantized cell is compared with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qsae_bench.backends import LoadRequest
from qsae_bench.specs import local_folder, source_path

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def load(request: LoadRequest, **keywords: Any) -> PreTrainedModel:
    """``AutoModelForCausalLM.from_pretrained``, safetensors only, no remote code."""
    from transformers import AutoModelForCausalLM

    folder = local_folder(request.model.source)
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        source_path(request.model),
        revision=request.model.revision or "main",
        dtype=request.dtype,
        device_map="auto" if request.device == "auto" else {"": request.device},
        attn_implementation="sdpa",
        use_safetensors=True,
        trust_remote_code=False,
        local_files_only=folder is not None,
        **keywords,
    )
    return model
