"""Load the model as published, which every quantized cell is compared with."""

from __future__ import annotations

import re
import warnings
from typing import TYPE_CHECKING, Any

from qsae_bench.errors import QsaeError, plain
from qsae_bench.models.architecture import read_config
from qsae_bench.models.backends import LoadRequest, device_map
from qsae_bench.registry.specs import ModelSpec, source_path

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TEXT_DECODER_NAMES = {
    r"^(?:model\.)?language_model\.lm_head": "lm_head",
    r"^(?:model\.)?language_model\.(?:model\.)?(?!lm_head)": "model.",
}
"""a multimodal checkpoint's names of its text decoder (both layouts in use) -> the text model's own"""

NOT_TEXT = re.compile(r"vision|visual|image|audio|multi_modal")
"""in the name of a multimodal checkpoint's weight: it belongs to what is not loaded"""

TEXT_DECODER_PATTERNS = {
    r"^(\^?)(?:model\\?\.)?language_model\\?\.lm_head": r"\1lm_head",
    r"^(\^?)(?:model\\?\.)?language_model\\?\.(?:model\\?\.)?": r"\1model.",
}
"""as :data:`TEXT_DECODER_NAMES`, for a regular expression that names modules"""


def load_published(
    request: LoadRequest, weights: ModelSpec | None = None, **keywords: Any
) -> PreTrainedModel:
    """Load a causal language model: safetensors only, no remote code, nothing but the text decoder.

    Of a multimodal checkpoint the vision tower is left on disk: no metric needs it, and quantizing it would
    take time and memory. The request's quantization is not applied here. ``weights`` names the files of the
    weights, if they are not the model's own; ``keywords``, such as a ``quantization_config``, go to
    ``from_pretrained``.

    Raises:
        QsaeError: the checkpoint lacks weights that the architecture has, or has some of other shapes.
    """
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    if request.model.synthetic:
        from qsae_bench.models.synthetic import random_model

        return random_model(request, **keywords)
    whole = read_config(request.model)
    config = whole.get_text_config()
    if (quantized := getattr(whole, "quantization_config", None)) is not None:
        config.quantization_config = quantized if config is whole else text_names(quantized)
    model_class = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    files = weights or request.model
    model, report = model_class.from_pretrained(
        source_path(files),
        config=config,
        revision=files.revision or "main",
        dtype=request.dtype,
        device_map=device_map(request.device),
        key_mapping=None if config is whole else TEXT_DECODER_NAMES,
        use_safetensors=True,
        local_files_only=True,  # fetched before
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # refused below, by name
        **keywords,
    )
    if mismatched := sorted(report["mismatched_keys"]):
        name, found, expected = mismatched[0]
        raise QsaeError(
            f"{request.model.name}: {files.source} has {plain(name)} of shape {tuple(found)}, and "
            f"{model_class.__name__} takes {tuple(expected)} by its config"
            + (f" ({len(mismatched) - 1} more don't fit)" if len(mismatched) > 1 else "")
        )
    if missing := sorted(report["missing_keys"]):
        raise QsaeError(
            f"{request.model.name}: {files.source} lacks {len(missing)} weights that "
            f"{model_class.__name__} has, {missing[0]} among them: they would be random"
        )
    unused = sorted(key for key in report["unexpected_keys"] if config is whole or not NOT_TEXT.search(key))
    if unused:
        warnings.warn(
            f"{request.model.name}: {files.source} has {len(unused)} weights that {model_class.__name__} "
            f"does not use, {plain(unused[0])} among them",
            stacklevel=2,
        )
    return model


def text_names(quantized: dict[str, Any]) -> dict[str, Any]:
    """Rename the modules in a multimodal checkpoint's quantization config to the text decoder's names."""

    def renamed(thing: Any) -> Any:
        if isinstance(thing, dict):
            return {key: renamed(value) for key, value in thing.items()}
        if isinstance(thing, list):
            return [renamed(value) for value in thing]
        if not isinstance(thing, str):
            return thing
        regex, name = ("re:", thing[3:]) if thing.startswith("re:") else ("", thing)
        for pattern, own in TEXT_DECODER_PATTERNS.items() if regex else TEXT_DECODER_NAMES.items():
            name = re.sub(pattern, own, name)
        return regex + name

    return renamed(quantized)
