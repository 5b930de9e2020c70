"""Model spec + quantization spec -> a model ready on a device, or one line why not."""

from __future__ import annotations

import contextlib
import gc
import importlib
import importlib.util
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qsae_bench.backends import LoadRequest, load_with
from qsae_bench.errors import CannotRun, QsaeError
from qsae_bench.specs import Cell, ModelSpec, local_folder, source_path
from qsae_bench.taps import Subject

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass
class Loaded:
    """A model on its device; ``model`` is dropped by :func:`release`."""

    cell: Cell
    model: PreTrainedModel
    load_seconds: float

    @property
    def device(self) -> torch.device:
        """Where token ids go: the device of the input embedding."""
        return self.model.get_input_embeddings().weight.device

    @property
    def subject(self) -> Subject:
        """What a pass runs."""
        return Subject(self.model, self.device)


def default_device() -> str:
    """``"cuda"``, ``"auto"`` with several GPUs, or ``"cpu"``."""
    import torch

    if not torch.cuda.is_available():
        return "cpu"
    return "auto" if torch.cuda.device_count() > 1 else "cuda"


def default_dtype(device: str) -> torch.dtype:
    """bf16 as published on a GPU; fp32 on a CPU, where bf16 is several times slower."""
    import torch

    return torch.float32 if device == "cpu" else torch.bfloat16


def compute_device(device: str) -> str:
    """The one device on which SAEs and metrics live."""
    return "cuda:0" if device == "auto" else device


def require(cell: Cell, device: str) -> None:
    """Raise CannotRun, before anything is loaded or downloaded, if this machine can't run the cell."""
    import torch

    needs_gpu = cell.model.needs_gpu or cell.quantization.needs_gpu
    if needs_gpu and device == "cpu":
        size = f" with {cell.model.min_gpu_gib:g} GiB" if cell.model.min_gpu_gib else ""
        raise CannotRun(
            f"{cell.model.name} needs a CUDA GPU{size}; none is visible: run it on a GPU machine"
        )
    if device != "cpu" and cell.model.min_gpu_gib:
        found = sum(
            torch.cuda.get_device_properties(i).total_memory for i in range(torch.cuda.device_count())
        )
        if found < cell.model.min_gpu_gib * 2**30:
            raise CannotRun(
                f"{cell.model.name} needs {cell.model.min_gpu_gib:g} GiB of GPU memory; "
                f"{found / 2**30:.0f} GiB are here: use a larger GPU or several"
            )
    for package in cell.quantization.requires:
        if importlib.util.find_spec(package) is None:
            raise CannotRun(
                f"quantization {cell.quantization.name!r} needs {package}: pip install {package}"
            )
    if cell.model.gated:
        _require_access(cell.model)


def _require_access(model: ModelSpec) -> None:
    from huggingface_hub import get_token, try_to_load_from_cache

    cached = try_to_load_from_cache(model.source, "config.json", revision=model.revision)
    if get_token() is None and not isinstance(cached, str):
        raise CannotRun(
            f"{model.name}: {model.source} is gated: accept its licence on the hub and set HF_TOKEN"
        )


def load(cell: Cell, device: str, dtype: torch.dtype) -> Loaded:
    """Load and quantize; ``load_seconds`` runs from this call to the model being ready.

    Raises:
        CannotRun: files are missing here and can't be downloaded.
        QsaeError: the recipe or the model's files are wrong.
    """
    import torch
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    warm_up(cell)
    started = time.perf_counter()
    try:
        model = load_with(LoadRequest(cell.model, cell.quantization, device, dtype))
    except OSError as error:
        first = str(error).strip().splitlines()[0]
        raise CannotRun(f"{cell.model.name}: {cell.model.source} can't be loaded: {first}") from None
    model.eval()
    model.requires_grad_(False)
    if device != "cpu":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - started
    _check(model, cell)
    return Loaded(cell, model, seconds)


def warm_up(cell: Cell) -> None:
    """Import what loading will import, so that ``load_seconds`` is not the first import's time."""
    import transformers

    for package in ("accelerate", *cell.quantization.requires):
        with contextlib.suppress(ImportError):
            importlib.import_module(package)
    folder = local_folder(cell.model.source)
    # what is wrong with the files is for the load itself to say
    with contextlib.suppress(OSError, ValueError, KeyError):
        config = transformers.AutoConfig.from_pretrained(
            source_path(cell.model), revision=cell.model.revision or "main",
            trust_remote_code=False, local_files_only=folder is not None,
        )  # fmt: skip
        transformers.MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]


def _check(model: PreTrainedModel, cell: Cell) -> None:
    config = model.config.get_text_config()
    found = (config.num_hidden_layers, config.hidden_size)
    expected = (cell.model.n_layers, cell.model.d_model)
    if found != expected:
        raise QsaeError(
            f"model {cell.model.name!r}: {cell.model.source} has (layers, width) {found}, "
            f"the registry says {expected}"
        )


def load_tokenizer(model: ModelSpec) -> PreTrainedTokenizerBase:
    """The model's own tokenizer, no remote code."""
    from transformers import AutoTokenizer

    folder = local_folder(model.source)
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            source_path(model),
            revision=model.revision or "main",
            trust_remote_code=False,
            local_files_only=folder is not None,
        )
    except (OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise CannotRun(f"{model.name}: tokenizer of {model.source} can't be loaded: {first}") from None
    return tokenizer


def release(loaded: Loaded) -> None:
    """Drop the model and give its memory back before the next one comes."""
    import torch

    del loaded.model
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
