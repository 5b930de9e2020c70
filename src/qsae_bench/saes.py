"""SAE spec -> SAE, through sae-lens, with guards against SAEs of another model."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from qsae_bench.errors import CannotRun, QsaeError
from qsae_bench.specs import ModelSpec, local_folder

if TYPE_CHECKING:
    from sae_lens import SAE


def load_saes(model: ModelSpec, device: str) -> dict[int, SAE[Any]]:
    """The SAE of every tapped layer, in float32 on ``device``, in eval mode.

    Raises:
        QsaeError: an SAE is missing, or was trained on another width or another layer.
        CannotRun: it would have to be downloaded and can't be.
    """
    saes = {layer: _load(model, layer, device) for layer in model.layers}
    for layer, sae in saes.items():
        sae.eval()
        sae.requires_grad_(False)
        _check(sae, model, layer)
    return saes


def _load(model: ModelSpec, layer: int, device: str) -> SAE[Any]:
    sae_id = model.sae.sae_id(layer)
    with quiet_import():
        from sae_lens import SAE
    if model.sae.folder is not None:
        folder = local_folder(model.sae.folder)
        if folder is None or not (folder / sae_id / "cfg.json").is_file():
            raise QsaeError(f"model {model.name!r}: no SAE of layer {layer} at {model.sae.folder}/{sae_id}")
        return SAE.load_from_disk(folder / sae_id, device=device, dtype="float32")
    assert model.sae.release is not None
    try:
        return SAE.from_pretrained(model.sae.release, sae_id, device=device, dtype="float32")
    except ValueError as error:  # sae-lens's word for an unknown release or id
        raise QsaeError(f"model {model.name!r}: {error}") from None
    except OSError as error:
        raise CannotRun(
            f"model {model.name!r}: SAE {model.sae.release}/{sae_id} can't be downloaded: {error}"
        ) from None


def _check(sae: SAE[Any], model: ModelSpec, layer: int) -> None:
    if sae.cfg.d_in != model.d_model:
        raise QsaeError(
            f"model {model.name!r}: the SAE of layer {layer} has d_in {sae.cfg.d_in}, the model's "
            f"width is {model.d_model}: this SAE was trained on another model"
        )
    hook = sae.cfg.metadata.hook_name or ""
    expected = f"blocks.{layer}.hook_resid_post"
    if hook and hook != expected:
        raise QsaeError(
            f"model {model.name!r}: the SAE given for layer {layer} reads {hook!r}, not {expected!r}"
        )


@contextlib.contextmanager
def quiet_import() -> Iterator[None]:
    """sae-lens imports libraries that print at import; errors still surface as exceptions."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(level)
