"""``-k`` and the options mean to ``qsae-bench`` what they mean to pytest: held to pytest's own collection."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builders import one_line
from paths import ROOT
from qsae_bench.errors import QsaeError
from qsae_bench.registry.entries import load_registry
from qsae_bench.registry.selection import BENCHMARKS, OPTIONS, matching, names, selected, selection_of
from qsae_bench.registry.specs import Selection

COLLECT = """
import contextlib, io, json, sys
import pytest
from _pytest.mark import KeywordMatcher

class Recorder:
    found = ()
    def pytest_collection_finish(self, session):
        self.found = [
            {
                "file": item.path.name, "test": item.originalname, "cell": item.callspec.params["cell"].id,
                "markers": [mark.name for mark in item.iter_markers()],
                "names": sorted(KeywordMatcher.from_item(item)._names),
            }
            for item in session.items
        ]

every = {}
for arguments in json.loads(sys.argv[1]):
    recorder = Recorder()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        pytest.main(["benchmarks", "--collect-only", "-q", "-p", "no:cacheprovider", *arguments], [recorder])
    every[json.dumps(arguments)] = recorder.found
print(json.dumps({"every": every, "heavy": sorted({"torch", "sae_lens"} & set(sys.modules))}))
"""
"""collects with each list of arguments, in one process; prints the tests left"""

WIDER = (
    "--models",
    "tiny_gemma3,gpt2_small,gemma3_4b",
    "--quantizations",
    "reference,nf4,rtn_int4",
    "--layers",
    "all",
)
KEYWORDS = (
    "gemma3_12b",
    "gemma3_12b and nf4",
    "layer24",
    "perplexity",
    "gemma3_270m",
    "gemma3_4b_it-rtn_int4",
    "GPT2_small or (tiny and not reference)",
    "test_fvu[llama3.1_8b-nf4-layer15]",
    "not tiny and not layer17",
    "loads_cell and 4b",
    "test_load or test_features",
    "speed.py and int",
    "bench and fp4",
    "parametrize",
    "pytestmark or usefixtures",
    "layer17 and test_perplexity",
    "features and layer24",
    "fvu.py and layer4",
    "nothing_has_this_name",
)  # fmt: skip


@pytest.fixture(scope="module")
def collection():
    """arguments -> the tests that pytest itself leaves of ``pytest benchmarks --collect-only``."""
    asked = [[], list(WIDER), *(["-k", keyword] for keyword in KEYWORDS), ["-k", "tiny", *WIDER]]
    done = subprocess.run(
        [sys.executable, "-c", COLLECT, json.dumps(asked)],
        cwd=ROOT, env=os.environ | {"PYTEST_ADDOPTS": ""}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    found["of"] = lambda *arguments: found["every"][json.dumps(list(arguments))]
    return found


def cells_of(tests) -> list[str]:
    return list(dict.fromkeys(test["cell"] for test in tests))


def selection(arguments, keyword="") -> Selection:
    """Through the options, as the command line does."""
    parser = argparse.ArgumentParser()
    for option, keywords in OPTIONS:
        parser.add_argument(option, **keywords)
    chosen = vars(parser.parse_args(arguments))
    return selection_of(lambda name: chosen[name.strip("-").replace("-", "_")], keyword)


def test_benchmarks_are_those_that_pytest_collects(collection):
    found: dict[str, dict[str, set[str]]] = {}
    for test in collection["of"]():
        found.setdefault(test["file"], {})[test["test"]] = set(test["markers"])
    assert found == BENCHMARKS


def test_cells_without_a_keyword_are_those_that_pytest_collects(collection):
    registry = load_registry()
    assert [cell.id for cell in registry.select()] == cells_of(collection["of"]())
    assert [cell.id for cell in registry.select(selection(WIDER))] == cells_of(collection["of"](*WIDER))


@pytest.mark.parametrize("keyword", KEYWORDS)
def test_a_keyword_leaves_the_cells_that_pytest_leaves(collection, keyword):
    cells = load_registry().select(Selection(keyword=keyword))
    assert [cell.id for cell in matching(cells, keyword)] == cells_of(collection["of"]("-k", keyword))


def test_the_keywords_tried_leave_something_and_not_everything(collection):
    everything = len(collection["of"]())
    left = [len(collection["of"]("-k", keyword)) for keyword in KEYWORDS]
    assert sum(0 < count < everything for count in left) >= 12
    assert left.count(0) >= 3


def test_a_keyword_with_other_options(collection):
    cells = load_registry().select(selection(WIDER, "tiny"))
    assert [cell.id for cell in matching(cells, "tiny")] == cells_of(collection["of"]("-k", "tiny", *WIDER))


def test_collecting_with_any_of_this_imports_nothing_heavy(collection):
    assert collection["heavy"] == []


# -- any expression ---------------------------------------------------------------------------------

WORDS = (
    "tiny_gemma3", "gemma3", "4b", "gpt2", "nf4", "reference", "int4", "layer3", "layer17", "layer1", "fvu",
    "test_load", "loads_cell", "measures", "speed", "benchmarks", "gemma3_4b-nf4", "xyz", "-", "NF4", "[gpt2",
)  # fmt: skip


def combined(inner):
    return st.one_of(
        st.tuples(st.just("not"), inner),
        st.tuples(st.sampled_from(["and", "or"]), inner, inner),
    )


trees = st.recursive(st.sampled_from(WORDS), combined, max_leaves=6)


def text_of(tree) -> str:
    if isinstance(tree, str):
        return tree
    if tree[0] == "not":
        return f"not ({text_of(tree[1])})"
    return f"({text_of(tree[1])}) {tree[0]} ({text_of(tree[2])})"


def holds(tree, names_of_test) -> bool:
    """By brute force, on the names that pytest itself gave the test."""
    if isinstance(tree, str):
        return any(tree.lower() in name.lower() for name in names_of_test)
    if tree[0] == "not":
        return not holds(tree[1], names_of_test)
    sides = [holds(side, names_of_test) for side in tree[1:]]
    return all(sides) if tree[0] == "and" else any(sides)


@given(trees)
def test_any_expression_leaves_the_cells_of_which_a_test_holds(collection, tree):
    tests = collection["of"](*WIDER)
    cells = load_registry().select(selection(WIDER))
    expected = cells_of(test for test in tests if holds(tree, test["names"]))
    assert [cell.id for cell in matching(cells, text_of(tree))] == expected


@given(trees)
def test_a_negation_within_a_test_is_not_a_negation_of_the_cell(collection, tree):
    """``not layer3`` leaves a cell that also has other layers: -k is about tests."""
    cells = load_registry().select(selection(WIDER))
    left = {cell.id for cell in matching(cells, text_of(tree))}
    others = {cell.id for cell in matching(cells, text_of(("not", tree)))}
    assert left | others == {cell.id for cell in cells}


@pytest.mark.parametrize("keyword", ["", "  ", "\t"])
def test_no_keyword_leaves_every_cell(keyword):
    cells = load_registry().select()
    assert matching(cells, keyword) == cells


@pytest.mark.parametrize(
    "keyword",
    ["and", "nf4 and", "(nf4", "nf4)", "nf4 nf5", "nf4 or or int8", "not", "a=b", "nf4 & int8", "'nf4'", "nf4,int8", "a(b)", "tiny(known='x')", "tiny(a=1)", "é!"],
)  # fmt: skip
def test_a_wrong_expression_takes_one_line(keyword):
    cells = load_registry().select()
    with pytest.raises(QsaeError) as caught:
        matching(cells, keyword)
    assert one_line(caught.value).startswith(f"-k {keyword!r}: ")


def test_pytest_refuses_what_is_refused_here():
    """The same expressions, so that nothing is planned that could not be run."""
    for keyword in ("nf4 and", "tiny(a=1)"):
        command = [
            sys.executable,
            "-m",
            "pytest",
            "benchmarks",
            "--collect-only",
            "-q",
            "-p",
            "no:cacheprovider",
        ]
        done = subprocess.run(
            [*command, "-k", keyword], cwd=ROOT, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 2, done.stdout + done.stderr


# -- options ----------------------------------------------------------------------------------------


def test_no_option_is_the_default_selection():
    assert selection([]) == Selection()


def test_options_are_read_into_a_selection():
    given_ = [
        "--models", "a, b,,", "--quantizations", "nf4", "--layers", "9,17", "--sae-width", "65k", "--sae-l0", "big",
        "--corpus", "textfile:x", "--tokens", "100", "--sequence-length", "64", "--batch-size", "2",
        "--protocol", "study", "--synthetic",
    ]  # fmt: skip
    assert selection(given_, "a or b") == Selection(
        models=("a", "b"), quantizations=("nf4",), layers="9,17", sae_width="65k", sae_l0="big",
        keyword="a or b", synthetic=True, corpus="textfile:x", protocol="study", tokens=100,
        sequence_length=64, batch_size=2,
    )  # fmt: skip


@pytest.mark.parametrize("option", ["--tokens", "--sequence-length", "--batch-size"])
@pytest.mark.parametrize("value", ["0", "-4"])
def test_a_number_below_one(option, value):
    with pytest.raises(QsaeError) as caught:
        selection([f"{option}={value}"])
    assert one_line(caught.value) == f"{option} {value}: at least 1 is needed"


@pytest.mark.parametrize(
    ("text", "expected"), [("", ()), (" , ", ()), ("a", ("a",)), ("b, a,b", ("b", "a", "b"))]
)
def test_names(text, expected):
    assert names(text) == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--corpus", "pile10"], "unknown corpus 'pile10' (did you mean 'pile10k'?)"),
        (["--sequence-length", "1"], "--sequence-length ≥ 2"),
        (["--models", "gema3_4b"], "unknown model 'gema3_4b' (did you mean 'gemma3_4b'?)"),
    ],
)
def test_what_is_wrong_shows_before_anything_is_loaded(arguments, message):
    with pytest.raises(QsaeError) as caught:
        selected(load_registry(), selection(arguments))
    assert message in one_line(caught.value)
