"""The model as published: what every quantized cell is compared with."""

from __future__ import annotations

import re
import warnings
from typing import TYPE_CHECKING, Any

from qsae_bench.errors import QsaeError, plain
from qsae_bench.models.backends import LoadRequest, device_map
from qsae_bench.registry.specs import ModelSpec, local_folder, source_path

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

TEXT_ONLY = {
    r"^(?:model\.)?language_model\.lm_head": "lm_head",
    r"^(?:model\.)?language_model\.(?:model\.)?(?!lm_head)": "model.",
}
"""a multimodal checkpoint's names of its text decoder (both layouts in use) -> the text model's own"""

NOT_TEXT = re.compile(r"vision|visual|image|audio|multi_modal")
"""in the name of a multimodal checkpoint's weight: of what is left on disk"""

TEXT_REGEX = {
    r"^(\^?)(?:model\\?\.)?language_model\\?\.lm_head": r"\1lm_head",
    r"^(\^?)(?:model\\?\.)?language_model\\?\.(?:model\\?\.)?": r"\1model.",
}
"""the same for a pattern that names modules"""


def load(request: LoadRequest, weights: ModelSpec | None = None, **keywords: Any) -> PreTrainedModel:
    """The causal language model: safetensors only, no remote code, nothing but the text decoder.

    Of a multimodal checkpoint the vision tower is left on disk: nothing here runs it, and a quantizer
    would spend time and memory on it. ``weights`` says where they lie, if not with the model's config.

    Raises:
        QsaeError: the checkpoint lacks weights that the architecture has.
    """
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    if request.model.synthetic:
        from qsae_bench.models.backends import random_weights

        return random_weights.load(request, **keywords)
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
        key_mapping=None if config is whole else TEXT_ONLY,
        use_safetensors=True,
        local_files_only=True,  # fetched beforehand
        output_loading_info=True,
        **keywords,
    )
    if missing := sorted(report["missing_keys"]):
        raise QsaeError(
            f"{request.model.name}: {files.source} lacks {len(missing)} weights that "
            f"{model_class.__name__} has, {missing[0]} among them: they would be random"
        )
    left = sorted(key for key in report["unexpected_keys"] if config is whole or not NOT_TEXT.search(key))
    if left:
        warnings.warn(
            f"{request.model.name}: {files.source} has {len(left)} weights that {model_class.__name__} "
            f"does not use, {plain(left[0])} among them",
            stacklevel=2,
        )
    return model


def text_names(quantized: dict[str, Any]) -> dict[str, Any]:
    """A multimodal checkpoint's quantization config, its modules under the text decoder's own names."""

    def renamed(thing: Any) -> Any:
        if isinstance(thing, dict):
            return {key: renamed(value) for key, value in thing.items()}
        if isinstance(thing, list):
            return [renamed(value) for value in thing]
        if not isinstance(thing, str):
            return thing
        regex, name = ("re:", thing[3:]) if thing.startswith("re:") else ("", thing)
        for pattern, own in TEXT_ONLY.items() if not regex else TEXT_REGEX.items():
            name = re.sub(pattern, own, name)
        return regex + name

    return renamed(quantized)


def read_config(model: ModelSpec) -> PretrainedConfig:
    """The checkpoint's config.

    Raises:
        QsaeError: its layers or width are not what the registry says: another model's SAEs would be used.
    """
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(
            source_path(model),
            revision=model.revision or "main",
            trust_remote_code=False,
            local_files_only=True,
        )
    except (OSError, ValueError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise QsaeError(f"{model.name}: config of {model.source} can't be read: {first}") from None
    text = config.get_text_config()
    found = (text.num_hidden_layers, text.hidden_size)
    if found != (model.n_layers, model.d_model):
        where = "local" if local_folder(model.source) else "hub"
        raise QsaeError(
            f"model {model.name!r}: {model.source} ({where}) has (layers, width) {found}, "
            f"the registry says {(model.n_layers, model.d_model)}"
        )
    return config
