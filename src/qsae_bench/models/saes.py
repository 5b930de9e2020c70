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
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qsae_bench.errors import CannotRun, QsaeError
from qsae_bench.files import os_errors, sha256_of
from qsae_bench.models.hub import cached_bytes, verify_downloads, with_timeout
from qsae_bench.models.hub_errors import explain, is_hub_error, mask_tokens
from qsae_bench.models.log_filters import silenced
from qsae_bench.models.memory import is_out_of_memory
from qsae_bench.models.sae_config import ESTIMATED_SCALE, SaePlace, is_scale, notes, refusal
from qsae_bench.models.sae_forward import check_weights
from qsae_bench.progress import progress_of
from qsae_bench.registry.sae_releases import check_release, find_release, short_name
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
        QsaeError: an SAE is missing or damaged, was trained on another model, width or layer, or its config
            asks for what is not done here.
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
        _check(sae, model, layer)
    return saes


def described(model: ModelSpec, layer: int) -> str:
    """Return what a message about one SAE begins with: its model, its layer and where it is."""
    where = "random" if model.synthetic else model.sae.folder or model.sae.release_name()
    return f"model {model.name!r}: the SAE of layer {layer} ({where}/{model.sae.sae_id(layer)})"


def sae_notes(
    model: ModelSpec, saes: Mapping[int, SAE[Any]], sequence_length: int, starts_with_bos: bool
) -> list[str]:
    """Return a line for each way in which SAEs were trained on other text, or maybe another model."""
    found: dict[str, list[int]] = {}
    for layer, sae in saes.items():
        config = sae.cfg.to_dict()
        for line in notes(config, sequence_length, starts_with_bos):
            found.setdefault(line, []).append(layer)
        trained_on = str(sae.cfg.metadata.model_name or "")
        folder = local_folder(model.source)
        if (
            folder is not None
            and _is_published(trained_on)
            and short_name(trained_on) not in _names_of(model)
        ):
            line = f"model_name {trained_on!r}: the model is a folder, {folder.name}, and may be another"
            found.setdefault(line, []).append(layer)
    return [
        f"{model.name}: SAE of layer {', '.join(map(str, layers))}: {line}"
        for line, layers in found.items()
    ]


def _load(
    model: ModelSpec, layer: int, device: str, copies: Path | None, warn: Callable[[str], None]
) -> SAE[Any]:
    sae_id = model.sae.sae_id(layer)
    if model.sae.folder is not None:
        folder = local_folder(model.sae.folder)
        if folder is None or not (folder / sae_id / "cfg.json").is_file():
            raise QsaeError(f"model {model.name!r}: no SAE of layer {layer} at {model.sae.folder}/{sae_id}")
        return _from_disk(folder / sae_id, model, layer, device)
    release = model.sae.release_name()
    copy = copies / release / sae_id.replace("/", "--") if copies is not None else None
    if copy is not None and copy.is_dir():
        if _intact(copy):
            return _from_disk(copy, model, layer, device)
        warn(f"{copy}: the stored copy is damaged (checksum differs); the SAE is fetched again")
    repository = str(find_release(release)["repo_id"])
    started = time.time()
    try:
        with _no_pickle():
            sae: SAE[Any] = with_timeout(
                lambda: _from_release(model, layer, device), lambda: cached_bytes(repository)
            )
        for parameter in sae.parameters():  # some loaders leave transposed views, which no file holds
            parameter.data = parameter.data.contiguous()
        verify_downloads(repository, started, model.name)
    except Exception as error:
        if isinstance(error, QsaeError) or is_out_of_memory(error):
            raise
        if not is_hub_error(error):  # an unreadable header, a missing tensor
            verify_downloads(repository, started, model.name)
            raise QsaeError(
                f"{model.name}: SAE {release}/{sae_id} can't be read: {_reason(error)}; run again, "
                "and if it stays so, take another release"
            ) from None
        raise CannotRun(
            f"{model.name}: SAE {release}/{sae_id} can't be fetched: {explain(error)}"
        ) from None
    if copy is not None:
        _store_copy(sae, copy, release, sae_id)
    return sae


def _reason(error: BaseException) -> str:
    """Return in one line what sae-lens, torch or safetensors raised."""
    return f"{type(error).__name__}: {mask_tokens(' '.join(str(error).split()) or 'no reason given')}"


def _from_disk(folder: Path, model: ModelSpec, layer: int, device: str) -> SAE[Any]:
    """Load an SAE in sae-lens's own format, with its scale if it is a checkpoint of training.

    Raises:
        QsaeError: a file is damaged, or the config asks for what is not done here.
    """
    sae_lens_class = _sae_class()
    try:
        config = json.loads((folder / "cfg.json").read_text(encoding="utf-8"))
        _check_config(config, model, layer)
        sae = sae_lens_class.load_from_disk(folder, device=device, dtype="float32")
        scale = folder / "activation_scaler.json"
        if sae.cfg.normalize_activations == ESTIMATED_SCALE and scale.is_file():
            factor = json.loads(scale.read_text(encoding="utf-8")).get("scaling_factor")
            if is_scale(factor):
                sae.fold_activation_norm_scaling_factor(factor)
    except Exception as error:
        if isinstance(error, QsaeError) or is_out_of_memory(error):
            raise
        raise QsaeError(f"{described(model, layer)} can't be read: {_reason(error)}") from None
    return sae


def _from_release(model: ModelSpec, layer: int, device: str) -> SAE[Any]:
    """Load an SAE of a release, once its config, as sae-lens reads it, is checked."""
    sae_lens_class = _sae_class()
    from sae_lens.loading import pretrained_sae_loaders as loaders

    release, sae_id = model.sae.release_name(), model.sae.sae_id(layer)
    read = loaders.NAMED_PRETRAINED_SAE_LOADERS[loaders.get_conversion_loader_name(release)]

    def read_and_check(**arguments: Any) -> Any:
        loaded = read(**arguments)
        _check_config(loaded[0], model, layer)
        return loaded

    return sae_lens_class.from_pretrained(
        release, sae_id, device=device, dtype="float32", converter=read_and_check
    )


def _sae_class() -> type[SAE[Any]]:
    with silenced():
        from sae_lens import SAE
    return SAE


def _check_config(config: Any, model: ModelSpec, layer: int) -> None:
    """Refuse a config with a field that is not honoured here."""
    from sae_lens.registry import SAE_CLASS_REGISTRY

    if not isinstance(config, dict):
        raise QsaeError(f"{described(model, layer)}: cfg.json holds no table of fields")
    checked_here = model.sae.folder is not None and local_folder(model.source) is None
    place = SaePlace(
        layer, model.d_model, model.sae.d_sae, model.sae.centered,
        # a release's model was checked before anything was fetched; a folder may hold any model
        _names_of(model) if checked_here else frozenset(),
    )  # fmt: skip
    why = refusal(config, place, SAE_CLASS_REGISTRY)
    if why is not None:
        raise QsaeError(f"{described(model, layer)}: {why}")


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


def _names_of(model: ModelSpec) -> frozenset[str]:
    """Return the names by which an SAE's config may call the model, TransformerLens's aliases included."""
    from transformer_lens.supported_models import MODEL_ALIASES

    source = short_name(model.source)
    aliases = {
        alias.lower()
        for official, named in MODEL_ALIASES.items()
        if short_name(official) == source
        for alias in named
    }
    return frozenset({source, short_name(model.name), *map(short_name, aliases)})


def _is_published(name: str) -> bool:
    """Return whether a model's name is one of the hub's; another could be a name for a folder's model."""
    from transformer_lens.supported_models import MODEL_ALIASES

    known = {*MODEL_ALIASES, *(alias for named in MODEL_ALIASES.values() for alias in named)}
    return "/" in name or short_name(name) in {short_name(one) for one in known}


def _check(sae: SAE[Any], model: ModelSpec, layer: int) -> None:
    """Refuse a loaded SAE without its scale, or with weights that are not finite."""
    if sae.cfg.normalize_activations == ESTIMATED_SCALE:
        raise QsaeError(
            f"{described(model, layer)}: normalize_activations {ESTIMATED_SCALE!r}: its scale is neither "
            "in the weights nor beside them (activation_scaler.json): fold it in with "
            "fold_activation_norm_scaling_factor and save the SAE again"
        )
    check_weights(sae, described(model, layer))


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
