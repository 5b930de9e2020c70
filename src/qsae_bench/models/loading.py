"""Model spec + quantization spec -> a model ready on a device, or one line why not."""

from __future__ import annotations

import contextlib
import importlib
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from qsae_bench.errors import CannotRun, QsaeError
from qsae_bench.models import hub
from qsae_bench.models import validation as guards
from qsae_bench.models.architecture import blueprint
from qsae_bench.models.backends import LoadRequest, load_with, require_modules
from qsae_bench.models.hub_errors import without_secrets
from qsae_bench.models.log_filters import hush, without_bars
from qsae_bench.models.memory import give_back, is_out_of_memory
from qsae_bench.models.taps import Subject, hidden_states
from qsae_bench.progress import progress_of
from qsae_bench.registry.sae_releases import check_release
from qsae_bench.registry.specs import Cell, ModelSpec, local_folder, source_path

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from qsae_bench.models.memory import Held


@dataclass
class Loaded:
    """A model on its device; ``model`` is dropped by :func:`release`."""

    cell: Cell
    model: PreTrainedModel
    load_seconds: float
    born: list[Held] = field(default_factory=list)
    """storages that came to be while it was loaded and first run, the model's own among them"""

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


def dtype_of(cell: Cell, device: str) -> torch.dtype:
    """What a cell computes in: as its reference, but for a recipe whose kernels refuse that on a GPU."""
    import torch

    own = cell.quantization.gpu_dtype
    return getattr(torch, own) if own and device != "cpu" else default_dtype(device)


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
    require_modules(cell.quantization)
    _require_checkpoint(cell)
    check_release(model)
    if model.gated and not model.synthetic:
        _require_access(model)


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

    transformers_logging.disable_progress_bar()
    hush()
    _fetch(cell)
    warm_up(cell)
    started = time.perf_counter()
    try:
        with progress_of(f"{cell.id}: loading"):
            model = load_with(LoadRequest(cell.model, cell.quantization, device, dtype))
    except OSError as error:
        first = str(error).strip().splitlines()[0]
        raise CannotRun(
            f"{cell.model.name}: {cell.model.source} can't be loaded: {without_secrets(first)}"
        ) from None
    except QsaeError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        if device == "auto" and "dispatched on the CPU" in str(error):
            raise CannotRun(_too_large(cell)) from None
        if type(error).__name__ == "SafetensorError":
            raise QsaeError(
                f"{cell.model.name}: a weight file of {cell.published.source} is damaged ({error}); "
                "remove it from the cache and run again"
            ) from None
        raise QsaeError(f"{cell.id}: backend {cell.quantization.backend} failed: {_said(error)}") from None
    model.eval()
    model.requires_grad_(False)
    if device != "cpu":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - started
    places = {str(place) for place in getattr(model, "hf_device_map", {}).values()}
    if device == "auto" and places & {"cpu", "disk"}:
        raise CannotRun(_too_large(cell))
    with _named(cell):
        guards.check_model(model, blueprint(cell.model), cell.model.d_model, device, dtype)
        _check_tokenizer(cell)
    return Loaded(cell, model, seconds)


def _fetch(cell: Cell) -> None:
    """The files of the model, or of its quantized checkpoint."""
    from qsae_bench.models.backends.unquantized import read_config

    if is_remote(cell.model):
        hub.fetch(cell.model, weights=False)
        read_config(cell.model)  # another model's shape shows before its weights are fetched
    if not is_remote(cell.published):
        return
    if cell.checkpoint is not None and cell.checkpoint.file is not None:
        hub.fetch_file(cell.published, cell.checkpoint.file)
        return
    hub.fetch(cell.published, weights=True)


def _check_tokenizer(cell: Cell) -> None:
    """A checkpoint's ids must be the model's, as far as it says what they mean."""
    if cell.checkpoint is None or cell.checkpoint.file is not None:
        return
    folder = local_folder(cell.published.source) or hub.fetched(cell.published, weights=True)
    if folder is None or not any((folder / name).is_file() for name in hub.TOKENIZERS):
        return
    own, other = load_tokenizer(cell.model), _read_tokenizer(cell.published)
    guards.check_tokenizer(own, other, blueprint(cell.model).vocabulary)


@contextlib.contextmanager
def _named(cell: Cell) -> Iterator[None]:
    """Say which cell an error is about."""
    try:
        yield
    except QsaeError as error:
        raise type(error)(f"{cell.id}: {error}") from None


def _said(error: BaseException) -> str:
    """What a library or a user's function raised, and where: one line."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    return f"{type(error).__name__}: {without_secrets(first)}{where}"


def first_forward(loaded: Loaded, dtype: torch.dtype) -> None:
    """One token through the whole model, and what that took given back.

    Some libraries finish their work only now: bitsandbytes repacks 4-bit weights for a CPU at their first
    product, at eight times their size; compressed-tensors unpacks in a hook of the whole model, which a
    pass of the decoder alone would not call. That is neither the pass's time nor its memory.

    Raises:
        QsaeError: it fails, or computes in other numbers than the reference.
    """
    import torch

    try:
        with (
            torch.inference_mode(),
            without_bars(),
            progress_of(f"{loaded.cell.id}: first forward"),
        ):  # a checkpoint may be unpacked now, with bars
            token = torch.zeros((1, 1), dtype=torch.int64, device=loaded.device)
            loaded.model(input_ids=token, use_cache=False)
            found = hidden_states(loaded.model.get_decoder(), token).dtype
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise QsaeError(f"{loaded.cell.id}: its first forward failed: {_said(error)}") from None
    if found != dtype:
        raise QsaeError(f"{loaded.cell.id}: computes in {found}, the reference in {dtype}")
    give_back()


def _too_large(cell: Cell) -> str:
    return f"{cell.id}: does not fit on the GPUs that are visible: more or larger ones; see qsae-bench plan"


def is_remote(model: ModelSpec) -> bool:
    """Whether the model's files come from the hub."""
    return local_folder(model.source) is None and not model.synthetic


def warm_up(cell: Cell) -> None:
    """Import what loading will import, so that ``load_seconds`` is not the first import's time."""
    import transformers

    from qsae_bench.models.backends.unquantized import read_config
    from qsae_bench.models.synthetic import config_of

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
    if is_remote(model):
        hub.fetch(model, weights=False)
    return _read_tokenizer(model)


def _read_tokenizer(model: ModelSpec) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

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


def release(loaded: Loaded) -> int:
    """Drop the model and give its memory back before the next one comes.

    Returns the bytes that came to be while it was loaded and that something still holds: the peaks of
    the cells after it include them.
    """
    del loaded.model
    give_back()
    return sum(storage.nbytes() for held in loaded.born if (storage := held()) is not None)
