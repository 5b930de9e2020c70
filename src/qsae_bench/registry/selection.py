"""What a command line selects, read the same way by pytest and by ``qsae-bench list`` and ``plan``."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from qsae_bench.errors import QsaeError
from qsae_bench.registry.entries import PROTOCOLS, Registry, load_registry
from qsae_bench.registry.specs import Cell, Selection

OPTIONS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("--models", {"default": "", "metavar": "A,B", "help": "models (default: those marked default)"}),
    (
        "--quantizations",
        {"default": "", "metavar": "A,B", "help": "recipes (default: those marked default)"},
    ),
    ("--layers", {"default": "", "metavar": "WHICH", "help": "all, every, or numbers such as 9,17"}),
    ("--sae-width", {"default": "", "metavar": "W", "help": "width of the SAEs, such as 65k"}),
    ("--sae-l0", {"default": "", "metavar": "L", "help": "sparsity of the SAEs, such as big"}),
    ("--corpus", {"default": "", "metavar": "NAME", "help": "instead of the models' own; textfile:PATH"}),
    ("--tokens", {"type": int, "default": None, "metavar": "N", "help": "predicted tokens a cell"}),
    (
        "--max-tokens",
        {"type": int, "default": None, "metavar": "N", "help": "as many while a gate is undecided"},
    ),
    ("--sequence-length", {"type": int, "default": None, "metavar": "N", "help": "tokens a sequence"}),
    ("--batch-size", {"type": int, "default": None, "metavar": "N", "help": "sequences a forward pass"}),
    (
        "--protocol",
        {"default": "", "choices": ["", *PROTOCOLS], "help": "study: its packing, masks and definitions"},
    ),
    (
        "--synthetic",
        {"action": "store_true", "help": "random weights of the real shape: speed and memory only"},
    ),
    (
        "--device",
        {"default": "", "choices": ["", "cpu", "cuda"], "help": "default: a GPU where there is one"},
    ),
    (
        "--registry",
        {
            "action": "append",
            "default": [],
            "metavar": "FILE",
            "help": "TOML file layered over the registry",
        },
    ),
    (
        "--qsae-dir",
        {"default": "", "metavar": "DIR", "help": "runs, references and copies (default: .qsae)"},
    ),
)
"""name -> argparse's keywords, which pytest takes as they are"""

BENCHMARKS = {
    "test_speed.py": {
        "test_load": {"loads_cell", "times", "benchmark"},
        "test_evaluation": {"measures_cell", "times", "benchmark"},
        "test_prefill": {"times", "benchmark"}, "test_decode": {"times", "benchmark"},
        "test_sae": {"times", "benchmark"},
    },
    "test_perplexity.py": {"test_perplexity": {"gates"}},
    "test_divergence.py": {"test_divergence": {"gates"}},
    "test_sae_fvu.py": {"test_fvu": {"gates"}},
    "test_features.py": {"test_features": {"gates"}},
    "test_overhead.py": {"test_overhead": {"times", "benchmark"}},
}  # fmt: skip
"""file -> test -> its markers: what -k can name besides cells. Held to ``--collect-only`` by a test"""

NUMBERS = ("--tokens", "--max-tokens", "--sequence-length", "--batch-size")

BY_LAYER = ("test_fvu", "test_features")


def registry_of(option: Callable[[str], Any]) -> Registry:
    return load_registry(Path(path) for path in option("--registry"))


def selection_of(option: Callable[[str], Any], keyword: str) -> Selection:
    """The options' values as a selection; ``option`` maps ``--name`` to its value.

    Raises:
        QsaeError: a number below 1.
    """
    numbers = {name: option(name) for name in NUMBERS}
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
        tokens=numbers["--tokens"] or 0,
        max_tokens=numbers["--max-tokens"] or 0,
        sequence_length=numbers["--sequence-length"] or 0,
        batch_size=numbers["--batch-size"] or 0,
    )


def selected(registry: Registry, selection: Selection) -> tuple[Cell, ...]:
    """The selected cells; what is wrong with their corpora shows now, not when their turn comes."""
    cells = registry.select(selection)
    for model in {cell.model for cell in cells}:
        registry.corpus_of(model, selection)
    return cells


def names(option: str) -> tuple[str, ...]:
    """``A,B`` as names."""
    return tuple(name for name in (part.strip() for part in option.split(",")) if name)


def matching(cells: Iterable[Cell], keyword: str) -> tuple[Cell, ...]:
    """The cells of which ``pytest benchmarks -k KEYWORD`` would run a test.

    Raises:
        QsaeError: the expression is not one.
    """
    import pytest

    # pytest has no public name for its own expression language; a second one would read -k differently
    from _pytest.mark import KeywordMatcher
    from _pytest.mark.expression import Expression

    if not keyword.strip():
        return tuple(cells)

    def runs(cell: Cell) -> bool:
        return any(expression.evaluate(KeywordMatcher(known)) for known in _names_of(cell))

    try:
        expression = Expression.compile(keyword)
        return tuple(cell for cell in cells if runs(cell))
    except SyntaxError as error:
        raise QsaeError(f"-k {keyword!r}: not an expression: {error.msg}") from None
    except pytest.UsageError as error:
        raise QsaeError(f"-k {keyword!r}: {error}") from None


def _names_of(cell: Cell) -> Iterable[set[str]]:
    """Per test of the cell, every name that -k matches a part of."""
    for file, tests in BENCHMARKS.items():
        for test, markers in tests.items():
            ids = [cell.id]
            if test in BY_LAYER:
                ids = [f"{cell.id}-layer{layer}" for layer in cell.model.layers]
            for one in ids:
                yield {"benchmarks", file, f"{test}[{one}]", *markers}
