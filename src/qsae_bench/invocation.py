"""What the plugin and the fixtures share: settings, the one session, and errors as outcomes."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from qsae_bench.errors import CannotRun, QsaeError
from qsae_bench.progress import SILENT, Outlet
from qsae_bench.registry import Registry
from qsae_bench.selecting import registry_of, selected, selection_of
from qsae_bench.specs import Cell, Selection
from qsae_bench.thresholds import Thresholds, load_thresholds

if TYPE_CHECKING:
    from qsae_bench.session import Session


@dataclass(frozen=True)
class Settings:
    """The command line, checked and read into specs."""

    registry: Registry
    cells: tuple[Cell, ...]
    thresholds: Thresholds
    qsae_dir: Path
    strict: bool
    selection: Selection
    device: str
    splice: bool
    noise_floor: bool
    reference_store: bool
    reference_store_bytes: int

    @classmethod
    def from_pytest_config(cls, config: pytest.Config) -> Settings:
        option = config.getoption
        registry = registry_of(option)
        selection = selection_of(option, option("keyword"))
        thresholds = Path(option("--thresholds") or config.rootpath / "thresholds.toml")
        return cls(
            registry=registry,
            cells=selected(registry, selection),
            thresholds=load_thresholds(thresholds, registry.models, registry.quantizations),
            qsae_dir=Path(option("--qsae-dir") or config.rootpath / ".qsae"),
            strict=bool(config.getini("strict")),  # pytest's own --strict
            selection=selection,
            device=option("--device"),
            splice=option("--splice"),
            noise_floor=option("--noise-floor"),
            reference_store=not option("--no-reference-store"),
            reference_store_bytes=int(option("--reference-store-gib") * 2**30),
        )


SETTINGS = pytest.StashKey[Settings]()
SESSION = pytest.StashKey["Session"]()


def open_session(config: pytest.Config) -> Session:
    """The invocation's one session, made when the first test asks for it."""
    if SESSION not in config.stash:
        from qsae_bench.session import Options, Session

        settings = config.stash[SETTINGS]
        config.stash[SESSION] = Session(
            Options(
                registry=settings.registry,
                thresholds=settings.thresholds,
                qsae_dir=settings.qsae_dir,
                command=shlex.join(["pytest", *config.invocation_params.args]),
                selection=settings.selection,
                device=settings.device,
                splice=settings.splice,
                noise_floor=settings.noise_floor,
                reference_store=settings.reference_store,
                reference_store_bytes=settings.reference_store_bytes,
                say=_teller(config),
                progress=_outlet(config),
            )
        )
    return config.stash[SESSION]


@contextlib.contextmanager
def outcomes(config: pytest.Config) -> Iterator[None]:
    """Turn our errors into a test's outcome: a skip (an error under --strict) or a failure."""
    __tracebackhide__ = True
    try:
        yield
        return
    except CannotRun as error:
        skipped, said = True, str(error)
    except QsaeError as error:
        skipped, said = False, str(error)
    # outside the handlers, or pytest prints both exceptions, one during the handling of the other
    if not skipped:
        pytest.fail(said, pytrace=False)
    if config.stash[SETTINGS].strict:
        pytest.fail(f"--strict: {said}", pytrace=False)
    pytest.skip(said)


def _teller(config: pytest.Config) -> Any:
    reporter = config.pluginmanager.get_plugin("terminalreporter")

    def say(line: str) -> None:
        if reporter is not None:
            reporter.ensure_newline()
            reporter.write_line(f"qsae-bench: {line}", yellow=True)

    return say


REWRITE_SECONDS = 1.0
LOG_SECONDS = 30.0


def _outlet(config: pytest.Config) -> Outlet:
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None:
        return SILENT
    if reporter.isatty:
        return Outlet(lambda line: reporter.rewrite(line, erase=True), REWRITE_SECONDS)
    return Outlet(_teller(config), LOG_SECONDS)
