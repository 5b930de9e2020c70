"""Describe what a run was started with, by name: a process that resumes it must share that. No torch."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
import platform
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path

import pytest

from qsae_bench import gpus, machine
from qsae_bench.app.options import Settings
from qsae_bench.errors import QsaeError
from qsae_bench.measure.corpus.sources import content_digest
from qsae_bench.registry.backends import ENTRY_POINTS
from qsae_bench.registry.specs import Cell, CorpusSpec, QuantizationSpec, local_folder

PACKAGE = Path(__file__).parents[1]
CI_RUN = "GITHUB_RUN_ID"
"""a workflow run does not resume another one's, whatever the newest unfinished one is"""


def conditions(settings: Settings, tests: Iterable[str], files: Iterable[Path] = ()) -> dict[str, str]:
    """Return all that changes a number, a verdict, or which tests (node ids) there are."""
    options = settings.session
    selection = options.selection
    found = {f"--{name.replace('_', '-')}": _shown(value) for name, value in asdict(selection).items()}
    for name in ("device", "splice", "noise_floor", "strict"):
        found[f"--{name.replace('_', '-')}"] = _shown(getattr(options, name))
    models = dict.fromkeys(cell.model for cell in settings.cells)
    corpora = [settings.registry.corpus_of(model, selection) for model in models]
    quantizations = dict.fromkeys(cell.quantization for cell in settings.cells)
    backends = [found for one in quantizations for found in _contents(_backend_files(one))]
    selected = sorted(tests)
    found |= {
        "tests": f"{len(selected)} selected ({_digest(selected)})",
        "thresholds": _digest(settings.thresholds),
        "registry entries of the selected cells": _digest((settings.cells, corpora)),
        "code": _digest([*_contents(PACKAGE.rglob("*.py"), PACKAGE), *_contents(files)]),
        "code of the recipes": _digest(backends),
        "local model and SAE files": _digest([*_states(_folders(settings.cells))]),
        "text": _digest([_text(spec) for spec in corpora if spec.kind == "textfile"]),
        "hardware": _hardware(),
        "python": platform.python_version(),
    }
    found |= {CI_RUN: os.environ[CI_RUN]} if os.environ.get(CI_RUN) else {}
    return found | {
        f"{package}'s version": version for package, version in machine.installed_versions().items()
    }


def files_of(items: Iterable[pytest.Item]) -> list[Path]:
    """Return the files that tests stand in, with each ``conftest.py`` on the way there."""
    found = dict.fromkeys(item.path for item in items)
    root = next((item.config.rootpath for item in items), None)
    folders = [folder for path in found for folder in path.parents if root in (folder, *folder.parents)]
    fixtures = (folder / "conftest.py" for folder in dict.fromkeys(folders))
    return [*found, *(path for path in fixtures if path.is_file())]


def _contents(files: Iterable[Path], home: Path | None = None) -> Iterator[tuple[str, str]]:
    """Yield name and digest of each: its path below ``home``, so that a moved checkout is the same."""
    for path in sorted(files):
        try:
            content = hashlib.sha256(path.read_bytes()).hexdigest()
        except OSError:  # half-written or removed: another state
            content = "unreadable"
        yield (str(path.relative_to(home)) if home else path.name), content


def _backend_files(quantization: QuantizationSpec) -> list[Path]:
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


def _folders(cells: Iterable[Cell]) -> list[Path]:
    sources = [cell.published.source for cell in cells] + [cell.model.source for cell in cells]
    sources += [cell.model.sae.folder for cell in cells if cell.model.sae.folder]
    found = {source: local_folder(source) for source in sources}
    return sorted({path for path in found.values() if path is not None})


def _states(folders: Iterable[Path]) -> Iterator[tuple[str, int, int]]:
    """Yield size and time of change of each file: gigabytes of weights are not read for this."""
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            try:
                about = path.stat()
            except OSError:
                continue
            if path.is_file():
                yield str(path), about.st_size, about.st_mtime_ns


def _text(spec: CorpusSpec) -> str:
    try:
        return content_digest(spec)
    except QsaeError as error:  # its cells' tests report it
        return str(error)


def _hardware() -> str:
    sizes = [size >> 20 for size in gpus.gpu_memory()]
    named = f" ({'; '.join(gpus.gpu_names_and_driver())})" if sizes else ""
    return f"{machine.cpu_name()}, GPUs of {sizes} MiB{named}"


def _shown(value: object) -> str:
    return (",".join(map(str, value)) if isinstance(value, tuple) else str(value)) if value else "default"


def _digest(thing: object) -> str:
    return hashlib.sha256(repr(thing).encode()).hexdigest()[:12]
