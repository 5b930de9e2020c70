"""Declare and read the options of ``pytest benchmarks``; ``qsae-bench`` shares those of the selection."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from qsae_bench.gate.known_names import KnownNames
from qsae_bench.gate.threshold_file import load_thresholds
from qsae_bench.gate.thresholds import Thresholds
from qsae_bench.measure.store import parse_location
from qsae_bench.redaction import masked_command
from qsae_bench.registry.entries import PROTOCOLS, Registry
from qsae_bench.registry.selection import registry_of, selected, selection_of
from qsae_bench.registry.specs import Cell
from qsae_bench.results.history.url import history_url
from qsae_bench.run.session import SessionOptions
from qsae_bench.run.workers.options import WorkerOptions

Declarations = Mapping[str, Mapping[str, Any]]
"""name -> keywords of argparse's ``add_argument``, which pytest takes too"""


def _text(metavar: str, text: str) -> dict[str, Any]:
    return {"default": "", "metavar": metavar, "help": text}


def _number(metavar: str, text: str) -> dict[str, Any]:
    return {"type": int, "default": None, "metavar": metavar, "help": text}


def _flag(text: str) -> dict[str, Any]:
    return {"action": "store_true", "help": text}


SELECTION: Declarations = {
    "--models": _text("A,B", "models (default: those marked default)"),
    "--quantizations": _text("A,B", "quantizations (default: those marked default)"),
    "--layers": _text("WHICH", "all, every, or numbers such as 9,17"),
    "--sae-width": _text("W", "width of the SAEs, such as 65k"),
    "--sae-l0": _text("L", "sparsity of the SAEs, such as big"),
    "--corpus": _text("NAME", "a corpus instead of the models' own; textfile:PATH for a file"),
    "--tokens": _number("N", "predicted tokens per cell"),
    "--max-tokens": _number("N", "predicted tokens per cell while a gate is undecided"),
    "--sequence-length": _number("N", "tokens per sequence"),
    "--sequences-per-document": _number("N", "sequences taken of one document at most (default: 2)"),
    "--batch-size": _number("N", "sequences per forward pass"),
    "--protocol": {
        "default": "", "choices": ["", *PROTOCOLS],
        "help": "study: the packing, masks and definitions of the published study",
    },
    "--synthetic": _flag("random weights of the real shape: speed and memory only"),
    "--device": {"default": "", "choices": ["", "cpu", "cuda"], "help": "default: a GPU if there is one"},
    "--registry": {
        "action": "append", "default": [], "metavar": "FILE",
        "help": "TOML file with own models, quantizations and corpora; may be repeated",
    },
    "--qsae-dir": _text("DIR", "folder of runs, references and copies (default: .qsae)"),
}  # fmt: skip
"""which cells, on which tokens"""

MEASURING: Declarations = {
    "--thresholds": _text("FILE", "thresholds (default: thresholds.toml)"),
    "--history": _text(
        "URL", "sqlite:///FILE, postgresql://… or none (default: QSAE_HISTORY, or a file in --qsae-dir)"
    ),
    "--accepted": {
        "default": "", "choices": ["", "warn", "fail"],
        "help": "a cell that is worse than in its last accepted run (default: warn; with --strict fail)",
    },
    "--splice": _flag("also put the SAE into the model: two more passes per layer"),
    "--no-report": _flag("write no report.html beside the run"),
    "--noise-floor": _flag("also measure what another batch size alone changes"),
    "--reference-store": _text(
        "WHERE", "a folder, or a URL such as s3://BUCKET/FOLDER (default: references in --qsae-dir)"
    ),
    "--no-reference-store": _flag("delete the references at the end of the run"),
    "--reference-store-gib": {
        "type": float, "default": 50.0, "metavar": "GIB",
        "help": "size limit of a folder of references, or of the local copies of a URL's",
    },
}  # fmt: skip
"""what is measured besides, what it is held against, and where it is stored"""

NEWEST = "the newest"
"""what ``--resume`` without a run means"""

RESUMING: Declarations = {
    "--resume": {
        "nargs": "?", "default": None, "const": NEWEST, "metavar": "RUN",
        "help": "continue a run that was killed: an id, a folder, or the newest that can be continued",
    },
    "--isolate": _flag("run each cell in a process of its own, so that a crash fails only that cell"),
    "--isolate-timeout": {
        "type": float, "default": None, "metavar": "SECONDS",
        "help": "with --isolate or --workers: end a cell that takes longer",
    },
}  # fmt: skip

WORKERS: Declarations = {
    "--executor": {"default": "local", "metavar": "WHERE", "help": "local, ray, or ray://HOST:PORT"},
    "--workers": _number("N", "measure in N processes: one per GPU, or each with a share of the CPU"),
    "--shards": {
        "type": int, "default": 1, "metavar": "K", "help": "split the sequences of a cell over K workers"
    },
    "--gpu-kind": _text("KIND", "GPU type to use on a Ray cluster that has several, such as H100"),
}  # fmt: skip

EVERY: Declarations = {**SELECTION, **MEASURING, **RESUMING, **WORKERS}


def add_selection(parser: argparse.ArgumentParser) -> None:
    """Add ``-k`` and the options of the selection to the parser of a subcommand."""
    parser.add_argument("-k", dest="keyword", default="", metavar="EXPR", help="as pytest's -k")
    for name, keywords in SELECTION.items():
        parser.add_argument(name, **keywords)


def values_of(chosen: argparse.Namespace) -> Callable[[str], Any]:
    """Return a function from ``--name`` to its value, as ``pytest.Config.getoption`` is one."""
    return lambda name: getattr(chosen, name.lstrip("-").replace("-", "_"))


def given_options(chosen: argparse.Namespace) -> dict[str, Any]:
    """Return the options of the selection that differ from their defaults, with their values."""
    values = {name: values_of(chosen)(name) for name in SELECTION}
    return {name: value for name, value in values.items() if value != SELECTION[name].get("default", False)}


@dataclass(frozen=True)
class Settings:
    """Hold the command line of pytest, checked and read into specs."""

    cells: tuple[Cell, ...]
    """the selected cells, each model's reference first"""
    session: SessionOptions
    workers: WorkerOptions

    @property
    def registry(self) -> Registry:
        """The entries to select from."""
        return self.session.registry

    @property
    def thresholds(self) -> Thresholds:
        """What gates are held against."""
        return self.session.thresholds

    @classmethod
    def from_pytest_config(cls, config: pytest.Config) -> Settings:
        """Read the options.

        Raises:
            QsaeError: a value is wrong, options do not go together, or a file can't be read.
        """
        option = config.getoption
        registry = registry_of(option)
        selection = selection_of(option, option("keyword"))
        qsae_dir = Path(option("--qsae-dir") or config.rootpath / ".qsae")
        thresholds = Path(option("--thresholds") or config.rootpath / "thresholds.toml")
        workers = WorkerOptions.of(option)
        session = SessionOptions(
            registry=registry,
            thresholds=load_thresholds(thresholds, KnownNames.of(registry)),
            qsae_dir=qsae_dir,
            command=masked_command(["pytest", *config.invocation_params.args]),
            selection=selection,
            device=option("--device"),
            splice=option("--splice"),
            noise_floor=option("--noise-floor"),
            reference_store=parse_location(option("--reference-store"), option("--no-reference-store")),
            reference_store_bytes=int(option("--reference-store-gib") * 2**30),
            strict=bool(config.getini("strict")),  # pytest's own --strict
            accepted=option("--accepted"),
            history=history_url(option("--history"), qsae_dir),
        )
        return cls(selected(registry, selection), session, workers)
