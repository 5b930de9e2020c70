"""Quantizes with optimum-quanto through ``quantize`` and ``freeze``.

Options are those of ``optimum.quanto.quantize``: ``{ weights = "qint8" }``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from qsae_bench.errors import QsaeError, did_you_mean
from qsae_bench.models.backends import LoadRequest
from qsae_bench.models.backends.unquantized import load_published
from qsae_bench.models.log_filters import silenced
from qsae_bench.models.taps import decoder_layers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

QUANTIZE_OPTIONS = ("weights", "activations", "include", "exclude")


def load(request: LoadRequest) -> PreTrainedModel:
    """Load the model, quantize and freeze its decoder blocks.

    Raises:
        QsaeError: quanto has no such option or type.
    """
    with silenced():
        from optimum.quanto import freeze, qtypes, quantize

    options = dict(request.quantization.options)
    where = f"quantization {request.quantization.name!r}"
    for key, value in options.items():
        if key not in QUANTIZE_OPTIONS:
            raise QsaeError(f"{where}: quanto has no option {key!r}{did_you_mean(key, QUANTIZE_OPTIONS)}")
        if key in QUANTIZE_OPTIONS[:2] and value not in qtypes:
            raise QsaeError(f"{where}: quanto has no type {value!r}{did_you_mean(str(value), qtypes)}")
    model = load_published(request)
    for block in decoder_layers(model):
        quantize(block, **options)
        freeze(block)
    return model
