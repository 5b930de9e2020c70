"""Describe what a run was started with, by name: a process that resumes it must share that. No torch."""

from __future__ import annotations

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
from qsae_bench.registry.specs import Cell, CorpusSpec, local_folder
from qsae_bench.run.recipe import contents, digest_of, recipe_files

PACKAGE = Path(__file__).parents[1]
CI_RUN = "GITHUB_RUN_ID"
"""a workflow run does not resume another one's, whatever the newest unfinished one is"""


def conditions(settings: Settings, tests: Iterable[str], files: Iterable[Path] = ()) -> dict[str, str]:
    """Return all that changes a number, a verdict, or which tests (node ids) there are."""
    options = settings.session
    selection = options.selection
    found = {f"--{name.replace('_', '-')}": _shown(value) for name, value in asdict(selection).items()}
    for name in ("device", "splice", "noise_floor", "strict", "accepted"):
        found[f"--{name.replace('_', '-')}"] = _shown(getattr(options, name))
    models = dict.fromkeys(cell.model for cell in settings.cells)
    corpora = [settings.registry.corpus_of(model, selection) for model in models]
    quantizations = dict.fromkeys(cell.quantization for cell in settings.cells)
    backends = [found for one in quantizations for found in contents(recipe_files(one))]
    selected = sorted(tests)
    found |= {
        "tests": f"{len(selected)} selected ({digest_of(selected)})",
        "thresholds": digest_of(settings.thresholds),
        "registry entries of the selected cells": digest_of((settings.cells, corpora)),
        "code": digest_of([*contents(PACKAGE.rglob("*.py"), PACKAGE), *contents(files)]),
        "code of the recipes": digest_of(backends),
        "local model and SAE files": digest_of([*_states(_folders(settings.cells))]),
        "text": digest_of([_text(spec) for spec in corpora if spec.kind == "textfile"]),
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
