"""Read what a command line selects, the same way for pytest and for ``qsae-bench``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from qsae_bench.errors import QsaeError
from qsae_bench.registry.entries import Registry, load_registry
from qsae_bench.registry.specs import Cell, Selection

COUNT_OPTIONS = (
    "--tokens", "--max-tokens", "--sequence-length", "--sequences-per-document", "--batch-size",
)  # fmt: skip


def registry_of(option: Callable[[str], Any]) -> Registry:
    """Read the registry with the files of ``--registry``; ``option`` maps ``--name`` to its value."""
    return load_registry(Path(path) for path in option("--registry"))


def selection_of(option: Callable[[str], Any], keyword: str) -> Selection:
    """Return the options' values as a selection; ``option`` maps ``--name`` to its value."""
    numbers = {name: option(name) for name in COUNT_OPTIONS}
    for name, value in numbers.items():
        if value is not None and value < 1:
            raise QsaeError(f"{name} {value}: at least 1 is needed")
    return Selection(
        models=names(option("--models")),
        quantizations=names(option("--quantizations")),
        layers=option("--layers"),
        sae_width=option("--sae-width"),
        sae_l0=option("--sae-l0"),
        keyword=keyword,
        synthetic=option("--synthetic"),
        corpus=option("--corpus"),
        protocol=option("--protocol"),
        **{name.lstrip("-").replace("-", "_"): value or 0 for name, value in numbers.items()},
    )


def selected(registry: Registry, selection: Selection) -> tuple[Cell, ...]:
    """Return the selected cells; refuses an impossible corpus now, not when the cell's turn comes."""
    cells = registry.select(selection)
    for model in {cell.model for cell in cells}:
        registry.corpus_of(model, selection)
    return cells


def names(option: str) -> tuple[str, ...]:
    """Split ``A,B`` into names."""
    return tuple(name for name in (part.strip() for part in option.split(",")) if name)
