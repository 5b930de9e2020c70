"""Load SAEs through sae-lens, and refuse those that were trained on another model.

After its first load a released SAE is stored as a copy in sae-lens's own format, with its source and
checksums: sae-lens asks the hub for tensor shapes even when the weights are cached, so that a machine
without network could not load an SAE that it has.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qsae_bench.errors import CannotRun, QsaeError, first_line
from qsae_bench.files import os_errors, sha256_of
from qsae_bench.models.hub import cached_bytes, verify_downloads, with_timeout
from qsae_bench.models.hub_errors import explain, is_hub_error, mask_tokens
from qsae_bench.models.log_filters import silenced
from qsae_bench.progress import progress_of
from qsae_bench.registry.sae_releases import check_release, find_release
from qsae_bench.registry.specs import ModelSpec, local_folder

if TYPE_CHECKING:
    from sae_lens import SAE

SOURCE = "source.json"
"""file of a copy with release, id, repository and sha256 of the other files"""


def load_saes(
    model: ModelSpec, device: str, copies: Path | None = None, warn: Callable[[str], None] = print
) -> dict[int, SAE[Any]]:
    """Load the SAE of every tapped layer.

    They are in float32 and in eval mode. Copies of released SAEs are stored in the folder ``copies``, if
    there is one; ``warn`` is called with a line if one is damaged.

    Raises:
        QsaeError: an SAE is missing, or was trained on another model, width or layer.
        CannotRun: an SAE has to be downloaded and can't be.
    """
    if model.synthetic:
        from qsae_bench.models.synthetic import random_saes

        saes = random_saes(model, device)
    else:
        check_release(model)
        saes = {}
        for layer in model.layers:
            with progress_of(f"{model.name}: SAE of layer {layer}"):
                saes[layer] = _load(model, layer, device, copies, warn)
    for layer, sae in saes.items():
        sae.eval()
        sae.requires_grad_(False)
        _check_pairing(sae, model, layer)
    return saes


def _load(
    model: ModelSpec, layer: int, device: str, copies: Path | None, warn: Callable[[str], None]
) -> SAE[Any]:
    sae_id = model.sae.sae_id(layer)
    with silenced():
        from sae_lens import SAE
    if model.sae.folder is not None:
        folder = local_folder(model.sae.folder)
        if folder is None or not (folder / sae_id / "cfg.json").is_file():
            raise QsaeError(f"model {model.name!r}: no SAE of layer {layer} at {model.sae.folder}/{sae_id}")
        return SAE.load_from_disk(folder / sae_id, device=device, dtype="float32")
    release = model.sae.release_name()
    copy = copies / release / sae_id.replace("/", "--") if copies is not None else None
    if copy is not None and copy.is_dir():
        if _intact(copy):
            return SAE.load_from_disk(copy, device=device, dtype="float32")
        warn(f"{copy}: the stored copy is damaged (checksum differs); the SAE is fetched again")
    repository = str(find_release(release)["repo_id"])
    started = time.time()
    try:
        with _no_pickle():
            sae: SAE[Any] = with_timeout(
                lambda: SAE.from_pretrained(release, sae_id, device=device, dtype="float32"),
                lambda: cached_bytes(repository),
            )
        for parameter in sae.parameters():  # some loaders leave transposed views, which no file holds
            parameter.data = parameter.data.contiguous()
        verify_downloads(repository, started, model.name)
    except Exception as error:
        if isinstance(error, QsaeError):
            raise
        if not is_hub_error(error):  # an unreadable header, a missing tensor
            verify_downloads(repository, started, model.name)
            reason = f"{type(error).__name__}: {mask_tokens(first_line(error, 'no reason given'))}"
            raise QsaeError(
                f"{model.name}: SAE {release}/{sae_id} can't be read: {reason}; run again, "
                "and if it stays so, take another release"
            ) from None
        raise CannotRun(
            f"{model.name}: SAE {release}/{sae_id} can't be fetched: {explain(error)}"
        ) from None
    if copy is not None:
        _store_copy(sae, copy, release, sae_id)
    return sae


def _store_copy(sae: SAE[Any], copy: Path, release: str, sae_id: str) -> None:
    """Write the copy under another name and rename it; if another process was faster, its copy stays."""
    part: Path | None = None
    try:
        copy.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=".part-", dir=copy.parent))
        with os_errors():
            sae.save_model(part)
        source = {
            "release": release, "id": sae_id, "repository": find_release(release)["repo_id"],
            "sha256": {path.name: sha256_of(path) for path in sorted(part.iterdir())},
        }  # fmt: skip
        (part / SOURCE).write_text(json.dumps(source, indent=1) + "\n", encoding="utf-8")
        shutil.rmtree(copy, ignore_errors=True)
        with contextlib.suppress(FileExistsError):
            os.replace(part, copy)
    except OSError as error:
        raise QsaeError(
            f"{copy}: the SAE's copy can't be stored: {error.strerror or error}; "
            "free space or name another place with --qsae-dir"
        ) from None
    finally:
        if part is not None:
            shutil.rmtree(part, ignore_errors=True)


def _intact(copy: Path) -> bool:
    try:
        source = json.loads((copy / SOURCE).read_text(encoding="utf-8"))
        return bool(source["sha256"]) and all(
            sha256_of(copy / name) == digest for name, digest in source["sha256"].items()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _check_pairing(sae: SAE[Any], model: ModelSpec, layer: int) -> None:
    if sae.cfg.d_in != model.d_model:
        raise QsaeError(
            f"model {model.name!r}: the SAE of layer {layer} has d_in {sae.cfg.d_in}, the model's "
            f"width is {model.d_model}: this SAE was trained on another model"
        )
    hook = sae.cfg.metadata.hook_name or ""
    expected = model.sae.hook_name(layer)
    if hook and hook != expected:
        raise QsaeError(
            f"model {model.name!r}: the SAE given for layer {layer} reads {hook!r}, not {expected!r}"
        )


@contextlib.contextmanager
def _no_pickle() -> Iterator[None]:
    """Make torch read .pt files, some releases' only format, with its restricted reader in any case."""
    name = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
    forced = os.environ.pop(name, None)
    try:
        yield
    finally:
        if forced is not None:
            os.environ[name] = forced
