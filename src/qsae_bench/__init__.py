"""Measure whether a quantized language model behaves like the original, and whether its SAEs still work.

Exports what the author of a backend uses, without importing torch until it is used: :func:`simulates`,
:func:`block_linears`, :func:`replace_linears` and :func:`source_path`. docs/architecture.md describes the
packages.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.util
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

    from qsae_bench.models.backends import block_linears, replace_linears, simulates
    from qsae_bench.registry.specs import source_path

__version__ = "0.1.0"

__all__ = ["block_linears", "replace_linears", "simulates", "source_path"]

_FORMER = {
    "qsae_bench.backends": "qsae_bench.models.backends",
    "qsae_bench.backends.linears": "qsae_bench.models.backends",
    "qsae_bench.backends.rtn": "qsae_bench.models.backends.rtn",
    "qsae_bench.specs": "qsae_bench.registry.specs",
}
"""former name of a module that users' backends import -> module that has its names now"""


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = "qsae_bench.registry.specs" if name == "source_path" else "qsae_bench.models.backends"
    return getattr(importlib.import_module(home), name)


class _FormerModules(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports a module under its former name, with the names of the module that replaced it."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name not in _FORMER:
            return None
        return importlib.util.spec_from_loader(name, self, is_package=name == "qsae_bench.backends")

    def exec_module(self, module: ModuleType) -> None:
        present = vars(importlib.import_module(_FORMER[module.__name__]))
        vars(module).update({name: value for name, value in present.items() if not name.startswith("__")})


sys.meta_path.append(_FormerModules())
