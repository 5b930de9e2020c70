"""Load a cell's model onto a device, quantized, or say in one line why that is not possible."""

from __future__ import annotations

import contextlib
import importlib
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from qsae_bench.errors import CannotRun, QsaeError, first_line
from qsae_bench.models import damage, hub, validation
from qsae_bench.models.architecture import (
    config_of,
    decoder_shapes,
    quantization_of,
    read_config,
    read_files,
)
from qsae_bench.models.backends import LoadRequest, load_with, require_modules
from qsae_bench.models.backends.checkpoint import compare_config
from qsae_bench.models.hub_errors import mask_tokens
from qsae_bench.models.log_filters import install_log_filters, no_progress_bars
from qsae_bench.models.memory import free_memory, is_out_of_memory
from qsae_bench.models.taps import Subject, hidden_states
from qsae_bench.progress import progress_of
from qsae_bench.registry.sae_releases import check_release
from qsae_bench.registry.specs import Cell, ModelSpec, local_folder

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from qsae_bench.models.memory import StorageRef


@dataclass
class Loaded:
    """Hold a loaded model; :func:`release` drops it."""

    cell: Cell
    model: PreTrainedModel
    load_seconds: float
    notes: list[str] = field(default_factory=list)
    """what a reader of its numbers must know of it, such as a config that differs on purpose"""
    storages: list[StorageRef] = field(default_factory=list)
    """storages that were created by loading and the first forward, the model's own among them"""

    @property
    def device(self) -> torch.device:
        """Device of the input embedding, where token ids go."""
        return self.model.get_input_embeddings().weight.device

    @property
    def subject(self) -> Subject:
        """The model as a pass takes it."""
        return Subject(self.model, self.device, self.cell.model.sae.centered)


def default_device(asked: str = "") -> str:
    """Return ``"cuda"``, ``"auto"`` (spread over several GPUs) or ``"cpu"``.

    ``asked`` is ``"cpu"`` or ``"cuda"`` if the user named one; otherwise a GPU is used if there is one.
    """
    import torch

    if asked == "cuda" and not torch.cuda.is_available():
        raise QsaeError("--device cuda: torch sees no GPU; check the driver and torch's build")
    if asked == "cpu" or not torch.cuda.is_available():
        return "cpu"
    torch.cuda.init()  # the allocator's statistics can't be reset before
    return "auto" if torch.cuda.device_count() > 1 else "cuda"


def default_dtype(device: str) -> torch.dtype:
    """Return bf16, as models are published, on a GPU; fp32 on a CPU, where bf16 is several times slower."""
    import torch

    return torch.float32 if device == "cpu" else torch.bfloat16


def dtype_of(cell: Cell, device: str) -> torch.dtype:
    """Return the dtype that a cell computes in: its reference's, unless its kernels refuse that."""
    import torch

    own = cell.quantization.gpu_dtype
    return getattr(torch, own) if own and device != "cpu" else default_dtype(device)


def compute_device(device: str) -> str:
    """Return the device on which SAEs and metrics are computed."""
    return "cuda:0" if device == "auto" else device


def require(cell: Cell, device: str, device_named: bool = False) -> None:
    """Check, before anything is loaded or downloaded, that this machine can run the cell.

    If the user named the device, whether it is large and fast enough is not checked.

    Raises:
        CannotRun: it can't; says what is missing and what to do.
        QsaeError: its SAEs were trained on another model.
    """
    import torch
    from huggingface_hub import get_token

    model = cell.model
    if device == "cpu" and cell.quantization.needs_gpu:
        raise CannotRun(f"quantization {cell.quantization.name!r} needs a CUDA GPU; none is in use")
    if device == "cpu" and model.needs_gpu and not device_named:
        raise CannotRun(
            f"{model.name} needs a CUDA GPU with {model.min_gpu_gib:g} GiB; none is visible: run it on a "
            "GPU machine, or slowly with --device cpu"
        )
    if device != "cpu" and model.min_gpu_gib and not device_named:
        found = sum(
            torch.cuda.get_device_properties(i).total_memory for i in range(torch.cuda.device_count())
        )
        if found < model.min_gpu_gib * 2**30:
            raise CannotRun(
                f"{model.name} needs {model.min_gpu_gib:g} GiB of GPU memory; "
                f"{found / 2**30:.0f} GiB are here: use a larger GPU or several; see qsae-bench plan"
            )
    require_modules(cell.quantization)
    _require_checkpoint(cell)
    check_release(model)
    needs_token = model.gated and not model.synthetic and get_token() is None
    if needs_token and hub.cached_snapshot(model, weights=True) is None:
        raise CannotRun(
            f"{model.name}: {model.source} is gated: accept its licence on the hub and set HF_TOKEN"
        )


def _require_checkpoint(cell: Cell) -> None:
    if cell.quantization.backend != "checkpoint":
        return
    if cell.model.synthetic:
        raise CannotRun(f"{cell.id}: a checkpoint has weights of its own: leave out --synthetic")
    if cell.checkpoint is None:
        named = ", ".join(cell.quantization.checkpoints)
        raise CannotRun(
            f"quantization {cell.quantization.name!r} names no checkpoint of {cell.model.name}, only of "
            f"{named}: add one under checkpoints, in an entry of your own (--registry)"
        )


def load(cell: Cell, device: str, dtype: torch.dtype) -> Loaded:
    """Fetch, load and quantize a cell's model.

    ``load_seconds`` of the result is the time from the files being in the cache to the model being ready.

    Raises:
        CannotRun: files are missing here and can't be downloaded, or the GPUs are too small.
        QsaeError: the quantization or the model's files are wrong.
    """
    import torch
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    install_log_filters()
    _fetch(cell)
    notes = _compare_configs(cell)
    import_libraries(cell)
    started = time.perf_counter()
    try:
        with progress_of(f"{cell.id}: loading"):
            model = load_with(LoadRequest(cell.model, cell.quantization, device, dtype))
    except OSError as error:
        line = mask_tokens(first_line(error))
        raise CannotRun(f"{cell.model.name}: {cell.published.source} can't be loaded: {line}") from None
    except QsaeError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        if device == "auto" and "dispatched on the CPU" in str(error):
            raise CannotRun(_too_large(cell)) from None
        source = cell.published.source
        folder = local_folder(source) or hub.snapshot_folder(cell.published)
        if found := damage.damaged_file(folder, hub.WEIGHT_FILES):
            raise QsaeError(
                f"{cell.model.name}: {source}: {found}; remove it and fetch or write it again"
            ) from None
        raise QsaeError(
            f"{cell.id}: backend {cell.quantization.backend} failed on {source}: {damage.described(error)}"
        ) from None
    model.eval()
    model.requires_grad_(False)
    if device != "cpu":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - started
    places = {str(place) for place in getattr(model, "hf_device_map", {}).values()}
    if device == "auto" and places & {"cpu", "disk"}:
        raise CannotRun(_too_large(cell))
    try:
        validation.check_model(model, decoder_shapes(cell.model), cell.model.d_model, device, dtype)
        _check_tokenizer(cell)
    except QsaeError as error:
        raise type(error)(f"{cell.id}: {error}") from None
    return Loaded(cell, model, seconds, notes)


def _fetch(cell: Cell) -> None:
    """Fetch the files of the model, or of its quantized checkpoint."""
    if is_on_hub(cell.model):
        hub.fetch(cell.model, weights=False)
        read_config(cell.model)  # refuses another model's shape before its weights are fetched
    if not is_on_hub(cell.published):
        return
    if cell.checkpoint is not None and cell.checkpoint.file is not None:
        hub.fetch_file(cell.published, cell.checkpoint.file)
        return
    hub.fetch(cell.published, weights=True)


def _compare_configs(cell: Cell) -> list[str]:
    """Refuse a reference that is quantized itself, and a checkpoint that computes something else.

    Returns lines on what the checkpoint's entry allows to differ.
    """
    if cell.model.synthetic:
        return []
    if (method := quantization_of(read_config(cell.model))) is not None:
        raise QsaeError(
            f"model {cell.model.name!r}: {cell.model.source} is quantized ({method}): a reference must not "
            "be, or nothing differs from it; make source the unquantized model, and name this one in a "
            f'quantization: backend = "checkpoint", checkpoints = {{ {cell.model.name} = "…" }}'
        )
    if cell.checkpoint is None:
        return []
    try:
        return compare_config(cell)
    except QsaeError as error:
        raise type(error)(f"{cell.id}: {cell.published.source}: {error}") from None


def _check_tokenizer(cell: Cell) -> None:
    """Compare a checkpoint's token ids with the model's, if it has a tokenizer."""
    if cell.checkpoint is None or cell.checkpoint.file is not None:
        return
    folder = local_folder(cell.published.source) or hub.cached_snapshot(cell.published, weights=True)
    if folder is None or not any((folder / name).is_file() for name in hub.TOKENIZER_FILES):
        return
    own, other = load_tokenizer(cell.model), _read_tokenizer(cell.published)
    validation.check_tokenizer(own, other, decoder_shapes(cell.model).vocabulary)


def run_first_forward(loaded: Loaded, dtype: torch.dtype) -> None:
    """Run one token through the whole model, and free the memory that this took.

    Some libraries finish their work only now: bitsandbytes repacks 4-bit weights for a CPU at their first
    product, at eight times their size; compressed-tensors unpacks in a hook of the whole model, which a
    pass of the decoder alone would not call. Neither belongs to the time and memory of a pass.

    Raises:
        QsaeError: it fails, or the hidden states have another dtype than the reference's.
    """
    import torch

    try:
        with (
            torch.inference_mode(),
            no_progress_bars(),
            progress_of(f"{loaded.cell.id}: first forward"),
        ):  # unpacking a checkpoint draws progress bars
            token = torch.zeros((1, 1), dtype=torch.int64, device=loaded.device)
            loaded.model(input_ids=token, use_cache=False)
            found = hidden_states(loaded.model.get_decoder(), token).dtype
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise QsaeError(f"{loaded.cell.id}: its first forward failed: {damage.described(error)}") from None
    if found != dtype:
        raise QsaeError(f"{loaded.cell.id}: computes in {found}, the reference in {dtype}")
    free_memory()


def _too_large(cell: Cell) -> str:
    return f"{cell.id}: does not fit on the GPUs that are visible: more or larger ones; see qsae-bench plan"


def is_on_hub(model: ModelSpec) -> bool:
    """Return whether the model's files come from the hub."""
    return local_folder(model.source) is None and not model.synthetic


def import_libraries(cell: Cell) -> None:
    """Import what loading will import, so that ``load_seconds`` does not include a first import."""
    import transformers

    for package in ("accelerate", *cell.quantization.requires):
        with contextlib.suppress(ImportError):
            importlib.import_module(package)
    # the load itself reports what is wrong with the files
    with contextlib.suppress(OSError, ValueError, KeyError, QsaeError):
        transformers.MODEL_FOR_CAUSAL_LM_MAPPING[type(config_of(cell.model).get_text_config())]


def load_tokenizer(model: ModelSpec) -> PreTrainedTokenizerBase:
    """Load the model's own tokenizer; CannotRun if its files are not here and can't be downloaded."""
    if is_on_hub(model):
        hub.fetch(model, weights=False)
    return _read_tokenizer(model)


def _read_tokenizer(model: ModelSpec) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    try:
        tokenizer: PreTrainedTokenizerBase = read_files(AutoTokenizer, model)
    except QsaeError:
        raise
    except Exception as error:  # tokenizers raises plain ones
        folder = local_folder(model.source) or hub.snapshot_folder(model)
        why = damage.reason(error, folder, damage.TOKENIZER_PARTS)
        is_damaged = damage.damaged_file(folder, damage.TOKENIZER_PARTS) or not isinstance(
            error, damage.SETTLED
        )
        kind = QsaeError if is_damaged else CannotRun
        raise kind(f"{model.name}: tokenizer of {model.source} can't be loaded: {why}") from None
    return tokenizer


def release(loaded: Loaded) -> int:
    """Drop the model and free its memory before the next one is loaded.

    Returns the bytes that were allocated while it was loaded and that something still references: the peak
    memory of the cells after it includes them.
    """
    del loaded.model
    free_memory()
    return sum(alive.nbytes() for storage in loaded.storages if (alive := storage()) is not None)
