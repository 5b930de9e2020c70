"""Load a checkpoint that is quantized already: GPTQ, AWQ, compressed-tensors, AutoRound, or a GGUF file.

The entry names one for each model. transformers reads what its config says; a GGUF is dequantized when it
is loaded, so that only its quality can be measured, not its speed or memory.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from qsae_bench.errors import QsaeError
from qsae_bench.models.architecture import read_config
from qsae_bench.models.backends import LoadRequest, require_modules, simulates
from qsae_bench.models.backends.unquantized import load_published
from qsae_bench.models.hub import fetch_file
from qsae_bench.models.log_filters import no_progress_bars
from qsae_bench.registry.specs import Cell, CheckpointSpec, local_folder

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def load(request: LoadRequest) -> PreTrainedModel:
    """Load the checkpoint's model, quantized as it is stored; one that is not quantized is refused."""
    cell = Cell(request.model, request.quantization)
    assert cell.checkpoint is not None  # a cell without one is refused before it is loaded
    if cell.checkpoint.file is not None:
        return _gguf(request, cell.checkpoint)
    published = LoadRequest(cell.published, request.quantization, request.device, request.dtype)
    found = getattr(read_config(cell.published), "quantization_config", None)
    if found is None:
        raise QsaeError(
            f"{cell.id}: {cell.published.source} is not quantized: its config has no quantization_config"
        )
    require_modules(request.quantization, str(found.get("quant_method", "")))
    with no_progress_bars():
        return load_published(published)


def _gguf(request: LoadRequest, checkpoint: CheckpointSpec) -> PreTrainedModel:
    """Load a GGUF; shape and names come from the model's own config, as the file holds only the weights."""
    cell = Cell(request.model, request.quantization)
    assert checkpoint.file is not None
    folder = local_folder(cell.published.source)
    path = folder / checkpoint.file if folder else fetch_file(cell.published, checkpoint.file)
    with no_progress_bars():
        model = load_published(request, cell.published, gguf_file=checkpoint.file, **_dequantized())
    found = stored_in(path)
    for name, module in model.named_modules():
        if name in found and (weight := getattr(module, "weight", None)) is not None:
            simulates(weight, found[name])
    return model


def stored_in(path: Path) -> dict[str, int]:
    """Return for each of transformers' modules the bits of its weight in the GGUF, block scales included.

    Raises:
        QsaeError: the file is not a GGUF, or of an architecture without a list of names.
    """
    import gguf

    try:
        reader = gguf.GGUFReader(path)
        field = reader.fields["general.architecture"]
        architecture = str(bytes(field.parts[field.data[0]]), encoding="utf-8")
        blocks = int(reader.fields[f"{architecture}.block_count"].parts[-1][0])
        arch = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    except (ValueError, KeyError, IndexError, StopIteration) as error:
        raise QsaeError(f"{path.name}: not a GGUF of a known architecture: {error}") from None
    bits = {tensor.name: 8 * int(tensor.n_bytes) for tensor in reader.tensors}
    names = gguf.get_tensor_name_map(arch, blocks).mapping
    return {
        name: bits[f"{tensor}.weight"] for name, (_, tensor) in names.items() if f"{tensor}.weight" in bits
    }


def _dequantized() -> dict[str, Any]:
    """Ask for floats: newer releases of transformers keep blocks packed if they have kernels."""
    try:
        from transformers import GgufConfig
    except ImportError:
        return {}
    return {"quantization_config": GgufConfig(dequantize=True)}
