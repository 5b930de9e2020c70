"""Nights of one cell of the embedded model, in this process: NF4 as it should be, or with a fault below its bounds."""

from __future__ import annotations

import shutil
from pathlib import Path

from builders import write_session
from paths import ROOT
from qsae_bench.gate.threshold_file import load_thresholds
from qsae_bench.gate.verdict import GatedMetric
from qsae_bench.registry.entries import Selection, load_registry
from qsae_bench.registry.specs import Cell
from qsae_bench.run.local_session import LocalSession
from qsae_bench.run.session import SessionOptions
from running import typed

WIDE = """schema = 1
[tiny_gemma3.nf4]
kl_divergence = { max = 0.1, source = "a test" }
top1_agreement = { min = 0.9, source = "a test" }
fvu_drift = { max = 0.005, source = "a test" }
"""
"""bounds that a good night passes on a few thousand tokens at its first look"""
FAULTS = ROOT / "tests" / "support" / "faults"


class Nights:
    """One folder, one thresholds file, and a session for each night."""

    def __init__(self, home: Path, tokens: int) -> None:
        self.home, self.tokens = home, tokens
        self.thresholds = home / "thresholds.toml"
        shutil.copy(ROOT / "thresholds.toml", self.thresholds)
        self.said: list[str] = []
        self._open: LocalSession | None = None

    def registry(self, fault: str = "") -> Path:
        """The registry file in which ``nf4`` has this fault."""
        path = self.home / "nf4.toml"
        path.write_text(
            '[quantizations.nf4]\nbackend = "python"\nfunction = "below_bounds:nf4"\n'
            f'stored_bits = 4.13\noptions = {{ fault = "{fault}" }}\n',
            encoding="utf-8",
        )
        shutil.copy(FAULTS / "below_bounds.py", self.home)
        return path

    def measure(self, fault: str = "", **options) -> tuple[LocalSession, Cell]:
        """A night's session, with the cell measured and every gate that has a bound judged."""
        self.close()
        registry = load_registry([self.registry(fault)])
        selection = Selection(tokens=self.tokens, max_tokens=self.tokens)
        session = self._open = LocalSession(
            SessionOptions(
                registry, load_thresholds(self.thresholds), self.home, "test", selection=selection,
                on_warning=self.said.append, **options,
            )
        )  # fmt: skip
        cell = Cell(registry.model("tiny_gemma3"), registry.quantization("nf4"))
        session.require(cell)
        estimates, bounded = session.measure(cell).estimates, session.options.thresholds.metrics_for
        for layer in (None, *cell.model.layers):
            for metric in sorted(bounded(cell.model.name, "nf4", layer, session.hardware)):
                if metric in estimates.at(layer):  # not what only timing measures
                    session.judge_gate(cell, GatedMetric(metric, layer))
        return session, cell

    def widen(self) -> None:
        """Hold nights to a few wide bounds from now on."""
        self.thresholds.write_text(WIDE, encoding="utf-8")

    def store(self, session: LocalSession) -> Path:
        """The folder of the night's run."""
        return write_session(session)[1]

    def update(self, run: Path) -> None:
        """Make bounds of a run: twice what it measured."""
        status, _, error = typed(
            "thresholds", "update", "--from", run, "--thresholds", self.thresholds, "--registry", self.registry(),
            "--reason", "a test",
        )  # fmt: skip
        assert (status, error) == (0, ""), error

    def close(self) -> None:
        """Free the last night's model."""
        if self._open is not None:
            self._open.close()
            self._open = None
