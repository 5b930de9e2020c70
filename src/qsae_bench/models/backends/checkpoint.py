"""Load a checkpoint that is quantized already: GPTQ, AWQ, compressed-tensors, AutoRound, or a GGUF file.

The entry names one for each model. transformers reads what its config says; a GGUF is dequantized when it
is loaded, so that only its quality can be measured, not its speed or memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qsae_bench.errors import QsaeError
from qsae_bench.models import config_difference
from qsae_bench.models.architecture import quantization_of, read_config
from qsae_bench.models.backends import LoadRequest, gguf_file, require_modules, simulates
from qsae_bench.models.backends.unquantized import load_published
from qsae_bench.models.hub import fetch_file
from qsae_bench.models.log_filters import no_progress_bars
from qsae_bench.registry.specs import Cell, CheckpointSpec, local_folder

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedModel

NOT_LLAMA_CPPS = "llama.cpp also rounds activations, which at 8 bits is most of the error"
"""what a dequantized GGUF leaves out; docs/backends.md has numbers"""


def load(request: LoadRequest) -> PreTrainedModel:
    """Load the checkpoint's model, quantized as it is stored; one that is not quantized is refused."""
    cell = Cell(request.model, request.quantization)
    assert cell.checkpoint is not None  # a cell without one is refused before it is loaded
    if cell.checkpoint.file is not None:
        return _gguf(request, cell.checkpoint)
    published = LoadRequest(cell.published, request.quantization, request.device, request.dtype)
    method = quantization_of(read_config(cell.published))
    if method is None:
        raise QsaeError(
            f"{cell.id}: {cell.published.source} is not quantized: its config has no quantization_config"
        )
    require_modules(request.quantization, method)
    with no_progress_bars():
        return load_published(published)


def compare_config(cell: Cell) -> list[str]:
    """Compare the config of the cell's checkpoint with its model's, before either's weights are read.

    Returns:
        A line on the differences that the entry allows, if there are any.

    Raises:
        QsaeError: it computes something else than the model does, as :mod:`..config_difference` has it.
    """
    assert cell.checkpoint is not None
    reference = read_config(cell.model).get_text_config().to_dict()
    if cell.checkpoint.file is not None:
        found = gguf_file.differences(_gguf_path(cell, cell.checkpoint.file), reference)
    else:
        own = read_config(cell.published).get_text_config().to_dict()
        found = config_difference.differences(own, reference)
    return config_difference.refuse_or_allow(found, cell.checkpoint.differs, reference)


def _gguf_path(cell: Cell, file: str) -> Path:
    folder = local_folder(cell.published.source)
    return folder / file if folder else fetch_file(cell.published, file)


def _gguf(request: LoadRequest, checkpoint: CheckpointSpec) -> PreTrainedModel:
    """Load a GGUF; shape and names come from the model's own config, as the file holds only the weights."""
    cell = Cell(request.model, request.quantization)
    assert checkpoint.file is not None
    path = _gguf_path(cell, checkpoint.file)
    with no_progress_bars():
        model = load_published(request, cell.published, gguf_file=checkpoint.file, **_dequantized())
    found = gguf_file.stored_in(path)
    for name, module in model.named_modules():
        if name in found and (weight := getattr(module, "weight", None)) is not None:
            simulates(weight, found[name], without=NOT_LLAMA_CPPS)
    return model


def _dequantized() -> dict[str, Any]:
    """Ask for floats: newer releases of transformers keep blocks packed if they have kernels."""
    try:
        from transformers import GgufConfig
    except ImportError:
        return {}
    return {"quantization_config": GgufConfig(dequantize=True)}
