"""Digest what a quantization is made by: its registry entry, and the files of its own code. No torch."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
from collections.abc import Iterable, Iterator
from pathlib import Path

from qsae_bench.registry.backends import ENTRY_POINTS
from qsae_bench.registry.specs import QuantizationSpec


def recipe_digest(quantization: QuantizationSpec) -> str:
    """Return a digest of the entry and of the code behind it, the same wherever the files lie."""
    q = quantization
    entry = (q.backend, dict(q.options), q.function, dict(q.checkpoints), q.gpu_dtype)
    return digest_of((entry, [*contents(recipe_files(quantization))]))


def recipe_files(quantization: QuantizationSpec) -> list[Path]:
    """Return the file behind each function of the user's own, found without importing it."""
    found = importlib.metadata.entry_points(group=ENTRY_POINTS, name=quantization.backend)
    functions = filter(None, [quantization.function, *(one.value for one in found)])
    files = [_module_file(function, quantization.folder) for function in functions]
    return [path for path in files if path is not None]


def _module_file(function: str, folder: str) -> Path | None:
    """Return the file of ``package.module:name``; nothing is imported but the finder of the package."""
    module = function.partition(":")[0].strip()
    if folder and (path := Path(folder, f"{module}.py")).is_file():
        return path
    top, *inside = module.split(".")
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    homes = spec.submodule_search_locations or []
    files = [Path(home, *inside).with_suffix(".py") for home in homes if inside]
    files += [Path(home, *inside, "__init__.py") for home in homes]
    files += [Path(spec.origin)] if spec.origin and not inside else []
    return next((path for path in files if path.is_file()), None)


def contents(files: Iterable[Path], home: Path | None = None) -> Iterator[tuple[str, str]]:
    """Yield name and digest of each: its path below ``home``, so that a moved checkout is the same."""
    for path in sorted(files):
        try:
            content = hashlib.sha256(path.read_bytes()).hexdigest()
        except OSError:  # half-written or removed: another state
            content = "unreadable"
        yield (str(path.relative_to(home)) if home else path.name), content


def digest_of(thing: object) -> str:
    """Return the first digits of a digest of what a thing's ``repr`` shows."""
    return hashlib.sha256(repr(thing).encode()).hexdigest()[:12]
