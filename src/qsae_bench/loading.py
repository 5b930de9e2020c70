"""Model spec + quantization spec -> a model ready on a device, or one line why not."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qsae_bench import hub
from qsae_bench.backends import LoadRequest, load_with
from qsae_bench.errors import CannotRun, QsaeError
from qsae_bench.memory import give_back
from qsae_bench.sae_releases import check_release
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
        return Subject(self.model, self.device, self.cell.model.sae.centered)


def default_device(asked: str = "") -> str:
    """``"cuda"``, ``"auto"`` with several GPUs, or ``"cpu"``; ``asked`` decides where it is given.

    Raises:
        QsaeError: a GPU is asked for and none is visible.
    """
    import torch

    if asked == "cuda" and not torch.cuda.is_available():
        raise QsaeError("--device cuda: torch sees no GPU; check the driver and torch's build")
    if asked == "cpu" or not torch.cuda.is_available():
        return "cpu"
    torch.cuda.init()  # the allocator's statistics can't be reset before
    return "auto" if torch.cuda.device_count() > 1 else "cuda"


def default_dtype(device: str) -> torch.dtype:
    """bf16 as published on a GPU; fp32 on a CPU, where bf16 is several times slower."""
    import torch

    return torch.float32 if device == "cpu" else torch.bfloat16


def compute_device(device: str) -> str:
    """The one device on which SAEs and metrics live."""
    return "cuda:0" if device == "auto" else device


def require(cell: Cell, device: str, told: bool = False) -> None:
    """Raise CannotRun, before anything is loaded or downloaded, if this machine can't run the cell.

    ``told``: the device was named by the user, who then decides what it is good for.
    """
    import torch

    model = cell.model
    if device == "cpu" and cell.quantization.needs_gpu:
        raise CannotRun(f"quantization {cell.quantization.name!r} needs a CUDA GPU; none is in use")
    if device == "cpu" and model.needs_gpu and not told:
        raise CannotRun(
            f"{model.name} needs a CUDA GPU with {model.min_gpu_gib:g} GiB; none is visible: run it on a "
            "GPU machine, or slowly with --device cpu"
        )
    if device != "cpu" and model.min_gpu_gib and not told:
        found = sum(
            torch.cuda.get_device_properties(i).total_memory for i in range(torch.cuda.device_count())
        )
        if found < model.min_gpu_gib * 2**30:
            raise CannotRun(
                f"{model.name} needs {model.min_gpu_gib:g} GiB of GPU memory; "
                f"{found / 2**30:.0f} GiB are here: use a larger GPU or several; see qsae-bench plan"
            )
    for package in cell.quantization.requires:
        if importlib.util.find_spec(package) is None:
            raise CannotRun(
                f"quantization {cell.quantization.name!r} needs {package}: pip install {package}"
            )
    check_release(model)
    if model.gated and not model.synthetic:
        _require_access(model)


def _require_access(model: ModelSpec) -> None:
    from huggingface_hub import get_token

    if get_token() is None and hub.fetched(model, weights=True) is None:
        raise CannotRun(
            f"{model.name}: {model.source} is gated: accept its licence on the hub and set HF_TOKEN"
        )


def load(cell: Cell, device: str, dtype: torch.dtype) -> Loaded:
    """Load and quantize; ``load_seconds`` runs from the files being here to the model being ready.

    Raises:
        CannotRun: files are missing here and can't be downloaded.
        QsaeError: the recipe or the model's files are wrong.
    """
    import torch
    from transformers.utils import logging as transformers_logging

    from qsae_bench.backends.none import read_config

    transformers_logging.disable_progress_bar()
    if is_remote(cell.model):
        hub.fetch(cell.model, weights=False)
        read_config(cell.model)  # another model's shape shows before its weights are fetched
        hub.fetch(cell.model, weights=True)
    warm_up(cell)
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # it warns of the vision tower that we leave on disk
    started = time.perf_counter()
    try:
        model = load_with(LoadRequest(cell.model, cell.quantization, device, dtype))
    except OSError as error:
        first = str(error).strip().splitlines()[0]
        raise CannotRun(
            f"{cell.model.name}: {cell.model.source} can't be loaded: {hub.without_secrets(first)}"
        ) from None
    except Exception as error:
        if device == "auto" and "dispatched on the CPU" in str(error):
            raise CannotRun(_too_large(cell)) from None
        if type(error).__name__ != "SafetensorError":
            raise
        raise QsaeError(
            f"{cell.model.name}: a weight file of {cell.model.source} is damaged ({error}); remove it from "
            "the cache and run again"
        ) from None
    finally:
        transformers_logging.set_verbosity(verbosity)
    model.eval()
    model.requires_grad_(False)
    if device != "cpu":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - started
    places = {str(place) for place in getattr(model, "hf_device_map", {}).values()}
    if device == "auto" and places & {"cpu", "disk"}:
        raise CannotRun(_too_large(cell))
    give_back()  # what loading and quantizing took beyond the model
    return Loaded(cell, model, seconds)


def _too_large(cell: Cell) -> str:
    return f"{cell.id}: does not fit on the GPUs that are visible: more or larger ones; see qsae-bench plan"


def is_remote(model: ModelSpec) -> bool:
    """Whether the model's files come from the hub."""
    return local_folder(model.source) is None and not model.synthetic


def warm_up(cell: Cell) -> None:
    """Import what loading will import, so that ``load_seconds`` is not the first import's time."""
    import transformers

    from qsae_bench.backends.none import read_config
    from qsae_bench.synthetic import config_of

    for package in ("accelerate", *cell.quantization.requires):
        with contextlib.suppress(ImportError):
            importlib.import_module(package)
    # what is wrong with the files is for the load itself to say
    with contextlib.suppress(OSError, ValueError, KeyError, QsaeError):
        config = config_of(cell.model) if cell.model.synthetic else read_config(cell.model)
        transformers.MODEL_FOR_CAUSAL_LM_MAPPING[type(config.get_text_config())]


def load_tokenizer(model: ModelSpec) -> PreTrainedTokenizerBase:
    """The model's own tokenizer, no remote code.

    Raises:
        CannotRun: its files are missing here and can't be downloaded.
    """
    from transformers import AutoTokenizer

    if is_remote(model):
        hub.fetch(model, weights=False)
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            source_path(model),
            revision=model.revision or "main",
            trust_remote_code=False,
            local_files_only=True,
        )
    except (OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise CannotRun(f"{model.name}: tokenizer of {model.source} can't be loaded: {first}") from None
    return tokenizer


def release(loaded: Loaded) -> None:
    """Drop the model and give its memory back before the next one comes."""
    del loaded.model
    give_back()
