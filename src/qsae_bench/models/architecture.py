"""Read a model's config, and describe its unquantized decoder: the shapes of its matrices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from qsae_bench.errors import QsaeError
from qsae_bench.models import damage
from qsae_bench.models.taps import decoder_layers
from qsae_bench.registry.specs import ModelSpec, local_folder, source_path

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

Shape = tuple[int, ...]


def config_of(model: ModelSpec) -> PretrainedConfig:
    """Return the config that the model is loaded with: of its files, or if it is synthetic of its entry."""
    return synthetic_config(model) if model.synthetic else read_config(model)


def read_files(kind: Any, model: ModelSpec) -> Any:
    """Read a transformers class from the model's files: without network, and without code from them."""
    return kind.from_pretrained(
        source_path(model), revision=model.revision or "main", trust_remote_code=False,
        local_files_only=True,
    )  # fmt: skip


def read_config(model: ModelSpec) -> PretrainedConfig:
    """Return the config of the model's files, which have been fetched before.

    Raises:
        QsaeError: it can't be read, or its layers or width are not the registry's: another model's SAEs
            would be used.
    """
    from transformers import AutoConfig

    try:
        config = read_files(AutoConfig, model)
        text = config.get_text_config()
        found = (text.num_hidden_layers, text.hidden_size)
    except QsaeError:
        raise
    except Exception as error:  # a config is checked by code of each architecture's own
        why = damage.reason(error, local_folder(model.source), damage.CONFIG_FILES)
        raise QsaeError(f"{model.name}: config of {model.source} can't be read: {why}") from None
    if found != (model.n_layers, model.d_model):
        where = "local" if local_folder(model.source) else "hub"
        raise QsaeError(
            f"model {model.name!r}: {model.source} ({where}) has (layers, width) {found}, "
            f"the registry says {(model.n_layers, model.d_model)}"
        )
    return config


def quantization_of(config: PretrainedConfig) -> str | None:
    """Return the method by which a checkpoint's weights are quantized, None if its config names none."""
    for part in (config, config.get_text_config()):
        for key in ("quantization_config", "compression_config"):  # the latter: older compressed-tensors
            if (found := getattr(part, key, None)) is not None:
                named = found if isinstance(found, Mapping) else found.to_dict()
                return str(named.get("quant_method") or named.get("format") or "by its config")
    return None


def synthetic_config(model: ModelSpec) -> PretrainedConfig:
    """Return transformers' config of the registry's architecture."""
    from transformers import AutoConfig

    values = dict(model.architecture)
    return AutoConfig.for_model(
        values.pop("model_type"), num_hidden_layers=model.n_layers, hidden_size=model.d_model, **values
    )


@dataclass(frozen=True)
class DecoderShapes:
    """Hold the shapes of an unquantized causal language model's decoder."""

    vocabulary: int
    """rows of the input embedding"""
    matrices: tuple[Mapping[str, Mapping[str, Shape]], ...]
    """for each decoder block: module -> parameter of at least two dimensions -> its shape"""
    inputs: tuple[Mapping[str, int], ...]
    """for each block: module that is a linear layer -> width of its input"""
    others: frozenset[str]
    """modules of a block without a matrix: norms, rotary tables, activations"""

    @classmethod
    def of(cls, model: PreTrainedModel) -> DecoderShapes:
        """Return the shapes of a model whose weights may be on the meta device."""
        import torch
        from transformers.pytorch_utils import Conv1D  # GPT-2's linear layers, transposed

        blocks, inputs, others = [], [], set()
        for block in decoder_layers(model):
            found: dict[str, dict[str, Shape]] = {}
            widths: dict[str, int] = {}
            for path, module in block.named_modules():
                own = dict(module.named_parameters(recurse=False))
                if matrices := {k: tuple(p.shape) for k, p in own.items() if p.ndim >= 2}:
                    found[path] = matrices
                    if isinstance(module, Conv1D):
                        widths[path] = own["weight"].shape[0]
                    elif isinstance(module, torch.nn.Linear):
                        widths[path] = own["weight"].shape[1]
                elif not list(module.children()):
                    others.add(path)
            blocks.append(found)
            inputs.append(widths)
        vocabulary = model.get_input_embeddings().weight.shape[0]
        return cls(vocabulary, tuple(blocks), tuple(inputs), frozenset(others))


@lru_cache(maxsize=4)
def decoder_shapes(model: ModelSpec) -> DecoderShapes:
    """Return the shapes of the model as published, from its config alone."""
    import torch
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    config = config_of(model).get_text_config()
    with torch.device("meta"):
        return DecoderShapes.of(MODEL_FOR_CAUSAL_LM_MAPPING[type(config)](config))
