"""Quantizes with torchao's ``quantize_`` and a named config.

``options = { config = "Int8WeightOnlyConfig", … }``: the name of a class of ``torchao.quantization`` and
its arguments. A granularity is given by the name of its class.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qsae_bench.errors import QsaeError, did_you_mean
from qsae_bench.models.backends import LoadRequest
from qsae_bench.models.backends.unquantized import load_published
from qsae_bench.models.log_filters import silenced
from qsae_bench.models.taps import decoder_layers

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def load(request: LoadRequest) -> PreTrainedModel:
    """Load the model and quantize the linear layers of its decoder blocks in place.

    Raises:
        QsaeError: torchao has no such config, or it refuses the options.
    """
    with silenced():
        from torchao.quantization import quantize_

        config = named_config(request.quantization.name, dict(request.quantization.options))
    model = load_published(request)
    for block in decoder_layers(model):
        quantize_(block, config)
    return model


def named_config(name: str, options: dict[str, Any]) -> Any:
    """Build the config object that the options describe.

    Args:
        name: the quantization's, for messages.
        options: ``config`` and its arguments.

    Raises:
        QsaeError: there is no such config, or it does not take these options.
    """
    from torchao import quantization as ao
    from torchao.core.config import AOBaseConfig
    from torchao.quantization.granularity import Granularity

    asked = str(options.pop("config", ""))
    known = {
        key: value for key, value in vars(ao).items()
        if isinstance(value, type) and issubclass(value, AOBaseConfig)
    }  # fmt: skip
    if asked not in known:
        hint = did_you_mean(asked, known)
        raise QsaeError(f"quantization {name!r}: torchao has no config {asked!r}{hint}")
    for key, value in options.items():
        named = getattr(ao, value, None) if isinstance(value, str) else None
        if isinstance(named, type) and issubclass(named, Granularity):
            options[key] = named()
    try:
        return known[asked](**options)
    except (TypeError, ValueError, AssertionError) as error:
        raise QsaeError(f"quantization {name!r}: {asked} does not take {options}: {error}") from None
