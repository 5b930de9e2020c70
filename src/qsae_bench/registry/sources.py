"""Resolves where a model's files are: a hub id, a folder, or a path inside this package."""

from __future__ import annotations

from pathlib import Path

from qsae_bench.errors import QsaeError
from qsae_bench.registry.specs import PACKAGE_SCHEME, ModelSpec


def source_path(model: ModelSpec) -> str:
    """Return what ``from_pretrained`` takes: an existing folder, or a hub id.

    Raises:
        QsaeError: the folder does not exist.
    """
    folder = local_folder(model.source)
    if folder is not None and not folder.is_dir():
        raise QsaeError(f"model {model.name!r}: no such folder: {folder}")
    return str(folder or model.source)


def local_folder(source: str) -> Path | None:
    """Return the folder that ``source`` names, or None when it is a hub id."""
    if source.startswith(PACKAGE_SCHEME):
        return Path(__file__).parents[1] / source.removeprefix(PACKAGE_SCHEME)
    if source.startswith((".", "/", "~")):
        return Path(source).expanduser()
    return None
