"""Quantize through the interfaces of transformers, hqq, optimum-quanto and torchao.

An entry's options are passed on to the library; what it refuses is reported in one line.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from qsae_bench.errors import QsaeError, did_you_mean
from qsae_bench.models.backends import LoadRequest, replace_linears
from qsae_bench.models.backends.unquantized import load_published
from qsae_bench.models.log_filters import silenced
from qsae_bench.models.taps import decoder_layers

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

QUANTO_OPTIONS = ("weights", "include", "exclude")


def load_with_transformers(request: LoadRequest) -> PreTrainedModel:
    """Quantize while loading, by any ``quantization_config`` that the installed transformers accepts.

    4-bit bitsandbytes computes in the request's dtype unless the entry says otherwise: that is the
    reference's own dtype, so that nothing but the rounding of the weights is compared.
    """
    from transformers.quantizers.auto import AutoQuantizationConfig

    options: dict[str, Any] = dict(request.quantization.options)
    if options.get("quant_method") == "hqq":
        raise QsaeError(f'{_where(request)}: transformers refuses hqq: use backend = "hqq"')
    if options.get("load_in_4bit"):
        options.setdefault("bnb_4bit_compute_dtype", str(request.dtype).removeprefix("torch."))
    with _refusals(_where(request)):
        config = AutoQuantizationConfig.from_dict(options)
    return load_published(request, quantization_config=config)


def load_with_hqq(request: LoadRequest) -> PreTrainedModel:
    """Replace each linear layer of the decoder blocks by an ``HQQLinear`` on its own device.

    HQQ's own interface is used because transformers lists HQQ and refuses it. Options are those of
    ``hqq.core.quantize.BaseQuantizeConfig``: ``{ nbits = 4, group_size = 64 }``.
    """
    with silenced():
        from hqq.core.quantize import BaseQuantizeConfig, HQQLinear

    options = dict(request.quantization.options)
    with _refusals(f"{_where(request)}: hqq does not take {options}"):
        config = BaseQuantizeConfig(**options)

    def made(linear: torch.nn.Linear) -> torch.nn.Module:
        # HQQLinear changes the config that it is given
        own = {key: dict(part) if isinstance(part, dict) else part for key, part in config.items()}
        return HQQLinear(linear, own, compute_dtype=request.dtype, device=str(linear.weight.device))

    return replace_linears(load_published(request), made)


def load_with_quanto(request: LoadRequest) -> PreTrainedModel:
    """Quantize and freeze the decoder blocks.

    Options are those of ``optimum.quanto.quantize``, ``{ weights = "qint8" }``, but for ``activations``,
    whose scales take calibration.
    """
    with silenced():
        from optimum.quanto import freeze, qtypes, quantize

    options = dict(request.quantization.options)
    for key, value in options.items():
        if key == "activations":
            raise QsaeError(
                f"{_where(request)}: quanto rounds activations by scales that it learns from text, which "
                "this backend gives it none of (each would stay 1): leave activations out, or calibrate "
                'in a function of your own (backend = "python")'
            )
        if key not in QUANTO_OPTIONS:
            hint = did_you_mean(key, QUANTO_OPTIONS)
            raise QsaeError(f"{_where(request)}: quanto has no option {key!r}{hint}")
        if key == "weights" and value not in qtypes:
            hint = did_you_mean(str(value), qtypes)
            raise QsaeError(f"{_where(request)}: quanto has no type {value!r}{hint}")
    model = load_published(request)
    for block in decoder_layers(model):
        quantize(block, **options)
        freeze(block)
    return model


def load_with_torchao(request: LoadRequest) -> PreTrainedModel:
    """Quantize the linear layers of the decoder blocks in place with torchao's ``quantize_``."""
    with silenced():
        from torchao.quantization import quantize_

        config = torchao_config(_where(request), dict(request.quantization.options))
    model = load_published(request)
    for block in decoder_layers(model):
        quantize_(block, config)
    return model


def torchao_config(where: str, options: dict[str, Any]) -> Any:
    """Build the config object that ``{ config = "Int8WeightOnlyConfig", … }`` describes.

    ``config`` is the name of a class of ``torchao.quantization``, the other options are its arguments. A
    granularity is given by the name of its class.
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
        raise QsaeError(f"{where}: torchao has no config {asked!r}{did_you_mean(asked, known)}")
    for key, value in options.items():
        named = getattr(ao, value, None) if isinstance(value, str) else None
        if isinstance(named, type) and issubclass(named, Granularity):
            options[key] = named()
    with _refusals(f"{where}: {asked} does not take {options}"):
        return known[asked](**options)


def _where(request: LoadRequest) -> str:
    return f"quantization {request.quantization.name!r}"


@contextlib.contextmanager
def _refusals(where: str) -> Iterator[None]:
    """Report what a library's config class raises for options that it does not accept."""
    try:
        yield
    except (TypeError, ValueError, AssertionError) as error:
        raise QsaeError(f"{where}: {error}") from None
