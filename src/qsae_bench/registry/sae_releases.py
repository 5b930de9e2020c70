"""Read sae-lens's list of releases without importing sae-lens, and pair a model with them."""

from __future__ import annotations

import importlib.util
import re
from functools import cache
from pathlib import Path
from typing import Any

from qsae_bench.errors import QsaeError, did_you_mean
from qsae_bench.registry.specs import ModelSpec, local_folder

ALIASES = {"gpt2-small": "gpt2"}
"""TransformerLens's names of models that the hub calls otherwise"""


@cache
def _directory() -> str:
    spec = importlib.util.find_spec("sae_lens")
    if spec is None or spec.origin is None:
        raise QsaeError("sae-lens is not installed: pip install sae-lens")
    return Path(spec.origin).with_name("pretrained_saes.yaml").read_text(encoding="utf-8")


@cache
def find_release(release: str) -> dict[str, Any]:
    """Return a release: ``repo_id``, ``model``, and its ``saes``, each with ``id``, ``path`` and ``l0``.

    Only its part of the file is parsed: the whole takes seconds.

    Raises:
        QsaeError: the installed sae-lens knows no such release.
    """
    import yaml

    found = re.search(rf"^{re.escape(release)}:\n(?:[ \n].*\n?)+", _directory(), re.MULTILINE)
    if found is None:
        known = re.findall(r"^([\w.-]+):$", _directory(), re.MULTILINE)
        raise QsaeError(f"sae-lens has no release {release!r}{did_you_mean(release, known)}")
    entry: dict[str, Any] = yaml.safe_load(found[0])[release]
    return entry


def neuronpedia_id(model: ModelSpec, layer: int) -> str:
    """Return the SAE's id on Neuronpedia, ``gemma-3-12b/24-gemmascope-2-res-16k``; '' where it has none."""
    if model.sae.release is None or model.synthetic:
        return ""
    try:
        entry = find_release(model.sae.release_name())
    except QsaeError:
        return ""
    wanted = model.sae.sae_id(layer)
    return next(
        (str(sae.get("neuronpedia") or "") for sae in entry["saes"] if str(sae["id"]) == wanted), ""
    )


def check_release(model: ModelSpec) -> None:
    """Refuse SAEs of another model before anything is loaded: -it on -pt SAEs gives nonsense silently.

    Raises:
        QsaeError: no such release or id, or it was trained on another model.
    """
    if model.sae.release is None or model.synthetic:
        return
    release = model.sae.release_name()
    try:
        entry = find_release(release)
    except QsaeError as error:
        raise QsaeError(f"model {model.name!r}: {error}") from None
    known = {str(sae["id"]) for sae in entry["saes"]}
    for layer in model.layers:
        sae_id = model.sae.sae_id(layer)
        if sae_id not in known:
            near = did_you_mean(sae_id, known)
            raise QsaeError(f"model {model.name!r}: release {release!r} has no SAE {sae_id!r}{near}")
    trained_on = short_name(str(entry["model"]))
    if local_folder(model.source) is None and short_name(model.source) != trained_on:
        raise QsaeError(
            f"model {model.name!r}: its source is {model.source}, but the SAEs of {release!r} were trained "
            f"on {entry['model']}: another model's SAEs give nonsense"
        )


def short_name(name: str) -> str:
    """Return a model's name without its organisation, in lower case, as the hub calls it."""
    last = name.rpartition("/")[2].lower()
    return ALIASES.get(last, last)
