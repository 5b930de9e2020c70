"""Rules that hold for every file: how long, who may import whom, what is never called."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from paths import ROOT

PACKAGE = ROOT / "src" / "qsae_bench"
SOURCES = sorted(PACKAGE.rglob("*.py"))
TESTS = sorted([*(ROOT / "tests").rglob("test_*.py"), *(ROOT / "benchmarks").rglob("test_*.py")])

LAYERS = (
    # stand alone
    ("errors", "disk", "isolation", "kept_timings", "stopwatch"), ("specs", "progress", "tiny", "machine", "cpu_state"), ("device_state",),
    # what is measured
    ("hub_errors",), ("registry", "hub", "sae_releases"), ("selecting", "text"), ("corpus",), ("token_cache",),
    # models, and reading them
    ("quiet",), ("taps",), ("synthetic",), ("backends", "memory", "speed", "environment"),
    ("blueprint",), ("footprint", "probe"), ("inspection",), ("guards",),
    ("loading", "saes"),
    # numbers
    ("metrics",), ("measurement", "plan"), ("reference",), ("reference_writing", "checked_cache"), ("local_store",), ("holder",), ("evaluation",), ("splicing",),
    ("statistics",),
    ("comparable", "paired", "timing", "sequential"), ("comparison",),
    # decisions and documents
    ("provenance",), ("thresholds",), ("gate",), ("measured",), ("judging",), ("exitstatus",), ("junit",), ("failures",),
    ("rows",), ("results",), ("pareto", "operands"), ("pairing",),
    ("power", "run_values", "threshold_rule"), ("threshold_update",), ("threshold_edit",),
    ("attribution",), ("history",), ("remote_files",), ("remote_store",), ("stores",),
    ("report", "ending"),
    # what a user starts
    ("journal",), ("run_folder",), ("bench_model",), ("speeds",), ("attributing",), ("works",), ("tasks",), ("books", "sharding"), ("session",), ("worker",), ("engines",), ("dispatch",), ("scale",), ("costing",), ("far", "executor"), ("document", "surviving"), ("invocation", "resuming"), ("conditions", "told"), ("keeping",), ("cli_thresholds", "cli_history", "cli_report", "cli_scale"), ("plugin", "cli"),
)  # fmt: skip
"""design.md's list, with the modules it doesn't name in the places where they fit. A module imports
only from lines above its own; within a package, modules may import each other."""

TOLERATED: set[tuple[str, str]] = set()


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def unit(module: str) -> str:
    return module.split(".")[0]


def package_imports(path: Path) -> Iterator[str]:
    """Every module of the package that this file imports, at whatever depth of nesting."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            if node.module == "qsae_bench":
                names = [f"qsae_bench.{alias.name}" for alias in node.names]
            else:
                names = [node.module or ""]
        else:
            continue
        yield from (name.removeprefix("qsae_bench.") for name in names if name.startswith("qsae_bench."))


def crossings() -> set[tuple[str, str]]:
    """(importing, imported) units that differ."""
    pairs = {(unit(module_name(path)), unit(found)) for path in SOURCES for found in package_imports(path)}
    return {(importing, imported) for importing, imported in pairs if importing != imported}


def test_every_module_has_its_layer():
    placed = [name for line in LAYERS for name in line]
    assert len(placed) == len(set(placed))
    found = {unit(module_name(path)) for path in SOURCES} - {""}
    assert found <= set(placed), f"no layer: {sorted(found - set(placed))}"


def test_modules_import_only_from_above():
    rank = {name: index for index, line in enumerate(LAYERS) for name in line}
    upward = {pair for pair in crossings() if rank[pair[1]] >= rank[pair[0]]}
    assert upward - TOLERATED == set()
    assert TOLERATED - upward == set(), "tolerated no longer needed"


def test_no_two_units_import_each_other_beyond_what_is_tolerated():
    found = crossings() - TOLERATED
    assert {pair for pair in found if pair[::-1] in found} == set()


def test_deciding_needs_no_torch():
    """Everything that can turn a night red is testable without a model."""
    code = "import sys, qsae_bench.gate.verdict, qsae_bench.results.document; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.strip()) == (0, "False"), done.stderr


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_file_is_one_idea(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400


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
    """Of processor time, the best of three in turns: the machine may be busy, or slow."""
    (tmp_path / "test_nothing.py").write_text("def test_nothing(): pass\n")
    seconds = {str(tmp_path): [], "benchmarks": []}
    for _ in range(3):
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
    assert "benchmarks/test_perplexity.py::test_perplexity[tiny_gemma3-nf4]" in said
    assert "benchmarks/test_sae_fvu.py::test_fvu[gemma3_12b-nf4-layer24]" in said
