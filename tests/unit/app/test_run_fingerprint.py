"""What a run that is resumed must share: whatever can move a number changes it, and nothing else does."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest

from paths import ROOT
from qsae_bench import gpus
from qsae_bench.app import run_fingerprint as module
from qsae_bench.app.options import Settings
from qsae_bench.app.run_fingerprint import conditions
from qsae_bench.gate.thresholds import Thresholds
from qsae_bench.registry.entries import load_registry
from qsae_bench.registry.sae_spec import SaeSpec
from qsae_bench.registry.specs import Cell, ModelSpec, QuantizationSpec, Selection
from qsae_bench.run.session import SessionOptions
from qsae_bench.run.workers.options import WorkerOptions


@dataclass
class Place:
    """A model, its SAEs, a quantization and a text of one's own, in a folder."""

    home: Path
    function: str = "recipe:quantize"
    files: list[Path] = field(default_factory=list)

    def conditions(self) -> dict[str, str]:
        sae = SaeSpec(6, folder=str(self.home / "saes"))
        model = ModelSpec("own", str(self.home / "model"), 4, 6, (3,), sae, "tiny")
        quantization = QuantizationSpec("mine", "python", function=self.function, folder=str(self.home))
        options = SessionOptions(
            load_registry(), Thresholds({}), self.home, "test", device="cpu",
            selection=Selection(corpus=f"textfile:{self.home / 'text.txt'}"),
        )  # fmt: skip
        settings = Settings((Cell(model, quantization),), options, WorkerOptions())
        return conditions(settings, ["t[own-mine]"], self.files)

    def changed_by(self, change) -> set[str]:
        before = self.conditions()
        change()
        after = self.conditions()
        return {name for name in before | after if before.get(name) != after.get(name)}


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.delenv("GITHUB_RUN_ID", raising=False)
    for name in ("model/model.safetensors", "saes/layer3/cfg.json", "text.txt", "recipe.py", "test_x.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x = 1\n")
    return Place(tmp_path, files=[tmp_path / "test_x.py"])


def test_nothing_changes_by_itself(place):
    assert place.changed_by(lambda: None) == set()


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("model/model.safetensors", "local model and SAE files"),
        ("saes/layer3/cfg.json", "local model and SAE files"),
        ("text.txt", "text"),
        ("recipe.py", "code of the recipes"),
        ("test_x.py", "code"),
    ],
)
def test_a_file_that_matters(place, file, name):
    assert place.changed_by(lambda: (place.home / file).write_text("x = 23\n")) == {name}


@pytest.mark.parametrize("file", ["model", "saes", "text.txt", "recipe.py", "test_x.py"])
def test_what_is_gone_is_another_state_and_no_error(place, file):
    """The test that needs it reports it."""
    path = place.home / file
    assert len(place.changed_by(lambda: shutil.rmtree(path) if path.is_dir() else path.unlink())) == 1


def test_weights_of_the_same_size_have_another_time(place):
    weights = place.home / "model" / "model.safetensors"
    changed = place.changed_by(lambda: os.utime(weights, ns=(1, 1)))
    assert changed == {"local model and SAE files"}


def test_a_file_that_does_not_matter(place):
    assert place.changed_by(lambda: (place.home / "notes.txt").write_text("x")) == set()


def test_the_packages_own_code(place, monkeypatch, tmp_path_factory):
    copy = tmp_path_factory.mktemp("copy") / "qsae_bench"
    shutil.copytree(module.PACKAGE, copy, ignore=shutil.ignore_patterns("data", "__pycache__"))
    before = place.conditions()
    monkeypatch.setattr(module, "PACKAGE", copy)
    assert place.conditions() == before, "the same code elsewhere is the same code"
    with (copy / "metrics" / "loss.py").open("a") as file:
        file.write("# another\n")
    assert {name for name, value in place.conditions().items() if before[name] != value} == {"code"}


def test_a_function_of_a_package_is_found_without_importing_it(place, monkeypatch):
    package = place.home / "elsewhere" / "acmeq"
    (package / "deep").mkdir(parents=True)
    for file in ("__init__.py", "deep/__init__.py", "deep/fast.py"):
        (package / file).write_text("raise RuntimeError('imported')\n")
    monkeypatch.syspath_prepend(package.parent)
    for function, file in (
        ("acmeq:q", "__init__.py"), ("acmeq.deep:q", "deep/__init__.py"), ("acmeq.deep.fast:q", "deep/fast.py"),
    ):  # fmt: skip
        place.function = function
        assert place.changed_by(lambda file=file: (package / file).open("a").write("#\n")) == {
            "code of the recipes"
        }
    for missing in ("nowhere.at.all:q", "acmeq.nothing:q", ":q", "..:q"):
        place.function = missing
        place.conditions()


def test_the_gpu_and_its_driver(place, monkeypatch):
    monkeypatch.setattr(gpus, "gpu_memory", lambda: (80 << 30,))
    said = iter([["NVIDIA H100, 580.1"], ["NVIDIA H100, 590.0"], ["NVIDIA A100, 590.0"]])
    monkeypatch.setattr(gpus, "gpu_names_and_driver", lambda: next(said))
    first, second, third = (place.conditions()["hardware"] for _ in range(3))
    assert first.endswith("GPUs of [81920] MiB (NVIDIA H100, 580.1)")
    assert len({first, second, third}) == 3


def test_a_workflow_run_does_not_resume_anothers(place, monkeypatch):
    for number in "78":
        assert place.changed_by(lambda n=number: monkeypatch.setenv("GITHUB_RUN_ID", n)) == {
            "GITHUB_RUN_ID"
        }


def test_the_tests_files_and_their_fixtures(tmp_path):
    for name in ("conftest.py", "root/conftest.py", "root/a/b/test_x.py", "root/a/conftest.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    root = tmp_path / "root"
    item = SimpleNamespace(path=root / "a" / "b" / "test_x.py", config=SimpleNamespace(rootpath=root))
    assert module.files_of([item, item]) == [item.path, root / "a" / "conftest.py", root / "conftest.py"]
    assert module.files_of([]) == []


def test_no_torch():
    code = "import sys, qsae_bench.app.run_fingerprint; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=ROOT
    )
    assert (done.returncode, done.stdout.strip()) == (0, "False"), done.stderr
