"""Check what holds for every file: where it lies, how long it is, what it may import, what it never calls."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from paths import ROOT

PACKAGE = ROOT / "src" / "qsae_bench"
SOURCES = sorted(PACKAGE.rglob("*.py"))
TESTS = sorted([*(ROOT / "tests").rglob("test_*.py"), *(ROOT / "benchmarks").rglob("test_*.py")])

PACKAGES = {"app", "gate", "measure", "metrics", "models", "registry", "report", "results", "run", "stats"}
MODULES = {"__init__", "errors", "files", "gpus", "machine", "progress", "redaction"}


def test_the_package_holds_ten_packages_five_modules_and_the_embedded_model():
    names = {
        path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()
    }
    assert names == PACKAGES | MODULES | {"tiny"}


@pytest.mark.parametrize("name", sorted(PACKAGES))
def test_a_package_says_what_it_is_for(name):
    docstring = ast.get_docstring(ast.parse((PACKAGE / name / "__init__.py").read_text(encoding="utf-8")))
    assert docstring is not None
    assert len(docstring.split()) > 20, "what it is for, what it exports, what it may import"


def linted(root: Path) -> subprocess.CompletedProcess[str]:
    """import-linter on the package below ``root``, with this project's contracts."""
    command = [
        str(Path(sys.executable).with_name("lint-imports")),
        "--no-cache",
        "--config",
        "pyproject.toml",
    ]
    environment = os.environ | {"PYTHONPATH": str(root / "src")}
    return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=120)


def test_packages_import_only_from_those_below_them():
    done = linted(ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("stats/bootstrap.py", "from qsae_bench.report import terminal"),
        ("gate/verdict.py", "from qsae_bench.measure import evaluation"),  # side by side
        ("metrics/base.py", "if False:\n    from qsae_bench.models import taps"),
        ("run/session.py", "def later():\n    import qsae_bench.app.plugin"),
        ("errors.py", "from qsae_bench.metrics import base"),
    ],
)
def test_an_import_against_the_direction_is_found(tmp_path, module, line):
    shutil.copytree(
        PACKAGE, tmp_path / "src" / "qsae_bench", ignore=shutil.ignore_patterns("data", "__pycache__")
    )
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    planted = tmp_path / "src" / "qsae_bench" / module
    planted.write_text(f"{planted.read_text(encoding='utf-8')}\n{line}\n", encoding="utf-8")
    done = linted(tmp_path)
    assert done.returncode != 0
    assert "BROKEN" in done.stdout


@pytest.mark.parametrize(
    "path", sorted((ROOT / "tests" / "unit").rglob("test_*.py")), ids=lambda path: path.stem
)
def test_a_unit_test_has_the_name_of_its_module(path):
    """``tests/unit/gate/test_thresholds.py`` tests ``gate/thresholds.py``; a package's own is named after it."""
    folder = path.relative_to(ROOT / "tests" / "unit").parent
    name = path.stem.removeprefix("test_")
    homes = [PACKAGE / folder, ROOT / "tools" / folder]
    found = any((home / f"{name}.py").is_file() or (home / name).is_dir() for home in homes)
    others = {"architecture", "structure"}
    assert found or (folder / name).as_posix() in others, f"{folder}: no module {name}"


def test_the_longest_tests_that_start_first_exist():
    """A name that no file has would leave a long test for last, and nothing else would tell."""
    source = (ROOT / "tests" / "conftest.py").read_text(encoding="utf-8")
    (longest,) = [
        ast.literal_eval(node.value)
        for node in ast.parse(source).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "LONGEST"
    ]
    existing = {
        path.stem
        for kind in ("integration", "nightly")
        for path in (ROOT / "tests" / kind).glob("test_*.py")
    }
    assert len(longest) == len(set(longest)) > 0
    assert set(longest) <= existing


def test_deciding_needs_no_torch():
    """Everything that can turn a night red is testable without a model."""
    code = "import sys, qsae_bench.gate.verdict, qsae_bench.results.document; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.strip()) == (0, "False"), done.stderr


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_file_is_one_idea(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400


# -- a name has one meaning -----------------------------------------------------------------------

IN_SEVERAL = {
    "METRICS": "each module of metrics has its group's, and the package all of them",
    "TOOLTIP": "each module of figures has the fields that its own charts show under the pointer",
    "T": "a type variable, whatever type it stands for",
}
"""name -> why several modules may define it"""


def defined_names(tree: ast.Module) -> Iterator[str]:
    """Public classes, constants and type aliases of a module; its functions read well behind the module's name."""
    for node in tree.body:
        match node:
            case ast.ClassDef(name=name):
                found = [name]
            case ast.Assign(targets=targets):
                found = [
                    name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)
                ]
            case ast.AnnAssign(target=ast.Name(id=name)):
                found = [name]
            case _:
                continue
        yield from (name for name in found if not name.startswith("_") and name != name.lower())


def test_a_class_constant_or_alias_is_defined_once():
    homes: dict[str, list[str]] = {}
    for path in SOURCES:
        for name in dict.fromkeys(defined_names(ast.parse(path.read_text(encoding="utf-8")))):
            homes.setdefault(name, []).append(str(path.relative_to(PACKAGE)))
    several = {name: found for name, found in homes.items() if len(found) > 1}
    assert {name: found for name, found in several.items() if name not in IN_SEVERAL} == {}
    assert several.keys() == IN_SEVERAL.keys(), "what is in one module alone needs no exemption"


def test_the_search_finds_classes_constants_and_aliases():
    code = "class A: pass\nB = C, D = 1, 2\nE: int = 1\nRow = dict[str, int]\n_F = 1\n__all__ = []\ndef g(): H = 1"
    assert list(defined_names(ast.parse(code))) == ["A", "B", "C", "D", "E", "Row"]


# -- what is never called -------------------------------------------------------------------------

UNPICKLERS = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}


def forbidden(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.split(".")[0] in UNPICKLERS)
        elif isinstance(node, ast.ImportFrom):
            if (node.module or "").split(".")[0] in UNPICKLERS:
                yield f"from {node.module}"
            if node.module == "torch" and any(alias.name == "load" for alias in node.names):
                yield "from torch import load"
        elif isinstance(node, ast.Attribute):
            if node.attr == "load" and isinstance(node.value, ast.Name) and node.value.id == "torch":
                yield "torch.load"
        elif isinstance(node, ast.Call):
            if isinstance(node.func, ast.Name) and node.func.id in ("eval", "exec"):
                yield node.func.id
            for keyword in node.keywords:
                allowed = isinstance(keyword.value, ast.Constant) and keyword.value.value is False
                if keyword.arg in ("trust_remote_code", "allow_pickle") and not allowed:
                    yield f"{keyword.arg}, not False"
        elif isinstance(node, ast.Constant) and node.value == "trust_remote_code":
            yield "trust_remote_code as a key"


@pytest.mark.parametrize(
    "code",
    [
        "import pickle", "from pickle import loads", "import torch\ntorch.load('x')", "eval('1')",
        "exec('1')", "from torch import load", "f(trust_remote_code=True)", "f(trust_remote_code=flag)",
        "f(**{'trust_remote_code': True})", "np.load(f, allow_pickle=True)",
    ],
)  # fmt: skip
def test_the_search_finds_what_is_forbidden(code):
    assert list(forbidden(ast.parse(code)))


def test_the_search_lets_the_rest_be():
    code = "model.eval()\nf(trust_remote_code=False)\nload(x)\njson.load(f)\n'''unpickle'''"
    assert list(forbidden(ast.parse(code))) == []


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_runs_code_from_data(path):
    assert list(forbidden(ast.parse(path.read_text(encoding="utf-8")))) == []


# -- tests that can fail --------------------------------------------------------------------------

CHECKS = {"gate", "raises", "fail", "warns"}
"""the gate fixture, and pytest's own"""


def name_of(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")


def can_fail(function: ast.AST) -> bool:
    for node in ast.walk(function):
        if isinstance(node, ast.Assert):
            return True
        if isinstance(node, ast.Call):
            name = name_of(node)
            if name in CHECKS or name.startswith(("assert_", "check_")):
                return True
    return False


def functions_of(path: Path) -> Iterator[ast.FunctionDef]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test"):
            yield node


@pytest.mark.parametrize("path", TESTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_test_can_fail(path):
    found = list(functions_of(path))
    assert found, "a test file without tests"
    assert [function.name for function in found if not can_fail(function)] == []


def test_a_test_that_only_runs_is_found():
    assert not can_fail(ast.parse("def test_a(): do()"))
    assert can_fail(ast.parse("def test_a():\n with pytest.raises(E): do()"))
    assert can_fail(ast.parse("def test_a(gate): gate('fvu')"))
    assert can_fail(ast.parse("def test_a(): check_all(1)"))


# -- collecting answers at once -------------------------------------------------------------------

PROBE = """
import sys

def pytest_unconfigure(config):
    for name in ("torch", "sae_lens", "qsae_bench"):
        print(f"PROBE {name} {name in sys.modules}")
"""


@pytest.mark.alone
def test_collecting_the_benchmarks_adds_less_than_a_second_to_pytest(tmp_path):
    """Of processor time, the best of two in turns: the machine may be busy, or slow."""
    (tmp_path / "test_nothing.py").write_text("def test_nothing(): pass\n")
    seconds = {str(tmp_path): [], "benchmarks": []}
    for _ in range(2):
        for target, spent in seconds.items():
            command = [
                sys.executable,
                "-m",
                "pytest",
                target,
                "--collect-only",
                "-q",
                "-p",
                "no:cacheprovider",
            ]
            command += ["--rootdir", target] if target != "benchmarks" else []
            before = os.times()
            subprocess.run(command, cwd=ROOT, capture_output=True, timeout=120, check=True)
            after = os.times()
            spent.append(
                after.children_user + after.children_system - before.children_user - before.children_system
            )
    bare, ours = (min(spent) for spent in seconds.values())
    # where the machine itself is slow, pytest alone takes more than a second, and all else more in proportion
    assert ours - bare < max(1, bare)


def test_collecting_the_benchmarks_imports_no_torch(tmp_path):
    (tmp_path / "probe_modules.py").write_text(PROBE)
    command = [
        sys.executable, "-m", "pytest", "benchmarks", "--collect-only", "-q",
        "-p", "probe_modules", "-p", "no:cacheprovider",
    ]  # fmt: skip
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    said = set(done.stdout.splitlines())
    assert {"PROBE torch False", "PROBE sae_lens False", "PROBE qsae_bench True"} <= said, done.stdout
    assert "benchmarks/test_perplexity.py::test_perplexity[tiny_gemma3-nf4-perplexity_increase_pct]" in said
    assert "benchmarks/test_sae_fvu.py::test_fvu[gemma3_12b-nf4-layer24-fvu_drift]" in said
