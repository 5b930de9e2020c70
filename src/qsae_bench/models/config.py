"""Reads a model's config, from its files or from the registry's architecture."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qsae_bench.errors import QsaeError, first_line
from qsae_bench.registry.sources import local_folder, source_path
from qsae_bench.registry.specs import ModelSpec

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def config_of(model: ModelSpec) -> PretrainedConfig:
    """Return the config that the model is loaded with: of its files, or if it is synthetic of its entry.

    Raises:
        QsaeError: as :func:`read_config`.
    """
    return synthetic_config(model) if model.synthetic else read_config(model)


def read_config(model: ModelSpec) -> PretrainedConfig:
    """Return the config of the model's files, which have been fetched before.

    Raises:
        QsaeError: it can't be read, or its layers or width are not the registry's: another model's SAEs
            would be used.
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
        raise QsaeError(
            f"{model.name}: config of {model.source} can't be read: {first_line(error)}"
        ) from None
    text = config.get_text_config()
    found = (text.num_hidden_layers, text.hidden_size)
    if found != (model.n_layers, model.d_model):
        where = "local" if local_folder(model.source) else "hub"
        raise QsaeError(
            f"model {model.name!r}: {model.source} ({where}) has (layers, width) {found}, "
            f"the registry says {(model.n_layers, model.d_model)}"
        )
    return config


def synthetic_config(model: ModelSpec) -> PretrainedConfig:
    """Return transformers' config of the registry's architecture."""
    from transformers import AutoConfig

    values = dict(model.architecture)
    return AutoConfig.for_model(
        values.pop("model_type"), num_hidden_layers=model.n_layers, hidden_size=model.d_model, **values
    )
