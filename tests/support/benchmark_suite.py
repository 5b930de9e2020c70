"""A copy of the benchmarks that pytest runs in this process, on a session without a model."""

from __future__ import annotations

import shutil
import xml.etree.ElementTree as ElementTree

import pytest

import fake_session  # noqa: F401  before any run: what it imports stays imported
from paths import ROOT

LOOSE = 'max = 1e9, source = "loose"'
TIGHT = 'max = 1e-12, source = "planted"'
MODEL = """
[models.small]
source = "./nowhere"
n_layers = 4
d_model = 6
layers = [3]
corpus = "tiny"
default = true
sae = { folder = "./nowhere", d_in = 6 }
reference_bounds = { perplexity = [1, 1e9], fvu = [0, 9], l0 = [0, 99] }
"""


class Suite:
    """``pytest benchmarks`` of a model that does not exist."""

    def __init__(self, pytester: pytest.Pytester) -> None:
        self.pytester = pytester
        self.junit = pytester.path / "junit.xml"
        pytester.makeini("[pytest]\naddopts = --import-mode=importlib --strict-markers --benchmark-disable")
        shutil.copytree(ROOT / "benchmarks", pytester.path / "benchmarks")
        (pytester.path / "own.toml").write_text(MODEL)
        self.thresholds("")

    def thresholds(self, text: str) -> None:
        (self.pytester.path / "thresholds.toml").write_text(f"schema = 1\n{text}")

    def gates(self, name: str = "nf4", **bounds: str) -> None:
        """Bound metrics of one quantization."""
        lines = "".join(f"{metric} = {{ {bound} }}\n" for metric, bound in bounds.items())
        self.thresholds(f"[small.{name}]\n{lines}")

    def arguments(self, path: str) -> list[str]:
        return [
            path, "-p", "qsae_bench.app.plugin", "-p", "fake_session", "-p", "no:cacheprovider",
            "--registry=own.toml", "--models=small", "--history=none", "--no-report",
            f"--junit-xml={self.junit}",
        ]  # fmt: skip

    def run(self, *arguments: str, path: str = "benchmarks") -> pytest.RunResult:
        return self.pytester.runpytest_inprocess(*self.arguments(path), *arguments)

    def status(self, *arguments: str, path: str = "benchmarks") -> int:
        """Return the exit status of a run that may not even start, which pytester can't look into."""
        return int(pytest.main([*self.arguments(path), *arguments]))

    def cases(self) -> dict[str, ElementTree.Element]:
        """JUnit's test cases by name."""
        return {case.get("name", ""): case for case in ElementTree.parse(self.junit).iter("testcase")}
