"""Run documents that anything was done to: imported, shown and read, never with a traceback."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fuzzing import places
from nights import night, run_ids, tree
from qsae_bench.app.cli import main as cli
from qsae_bench.results.history.store import History
from qsae_bench.results.history.url import default_url

QUICK = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
LARGE = settings(max_examples=1200, deadline=None, suppress_health_check=list(HealthCheck))

VALID = tree(night(1))

texts = st.text(max_size=12) | st.sampled_from(
    [
        "",
        "\0",
        "\ud800",
        "a\nb",
        "\u2028",
        "reference",
        "nf4",
        "tiny",
        "3",
        "-1",
        "x" * 3000,
        "<b>",
        "'\"",
        "..",
        "/",
    ]
)
scalars = (
    st.none() | st.booleans() | texts | st.floats() | st.integers()
    | st.sampled_from([2**63, -(2**63) - 1, 10**400, 1e308, 5e-324, -0.0])
)  # fmt: skip
anything = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)


HOW = ("like", "like", "like", "like", "replace", "drop", "double", "rename")
"""what is of another type is refused by the reader: most changes should get further"""


@st.composite
def mutated(draw) -> Any:
    """The valid document with one to three changes: a value replaced, dropped, doubled, or a key renamed."""
    found = copy.deepcopy(VALID)
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(places(found)))
        if not path:
            continue
        parent = found
        for key in path[:-1]:
            parent = parent[key]
        last, how = path[-1], draw(st.sampled_from(HOW))
        if how == "drop":
            del parent[last]
        elif how == "double" and isinstance(parent, list):
            parent.append(copy.deepcopy(parent[last]))
        elif how == "rename" and isinstance(parent, dict):
            parent[draw(texts)] = parent.pop(last)
        elif how == "like":  # of the same type, so that what is read strictly is still read
            parent[last] = draw(st.from_type(type(parent[last])) if parent[last] is not None else scalars)
        else:
            parent[last] = draw(anything)
    return found


def written(found: Any) -> bytes:
    # Python's writer, with NaN and Infinity: what a faulty program would leave
    return json.dumps(found).encode("utf-8", "replace")


nested = st.integers(1, 4000).map(lambda depth: b'{"a":' + b"[" * depth + b"]" * depth + b"}")
deep = st.integers(1, 4000).map(
    lambda depth: written(VALID).replace(b'"driver": "580.1"', b'"driver": ' + b"[" * depth + b"]" * depth)
)
files = (
    mutated().map(written)
    | mutated().map(written)
    | anything.map(written)
    | st.binary(max_size=200)
    | nested
    | deep
)


@contextlib.contextmanager
def a_run(content: bytes):
    place = Path(tempfile.mkdtemp(prefix="qsae-fuzz-"))
    try:
        (place / "run").mkdir()
        (place / "run" / "run.json").write_bytes(content)
        yield place
    finally:
        shutil.rmtree(place)


def command(*arguments: object) -> tuple[int, str, str]:
    """In this process: an exception would be the traceback that a user sees."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = cli.main(list(map(str, arguments)))
    for text in (out.getvalue(), err.getvalue()):
        text.encode("utf-8")  # what a terminal does
    return status, out.getvalue(), err.getvalue()


def check_import(content: bytes) -> None:
    """Exit 0 and kept, or exit 2 and one line why; what was kept before is there either way."""
    with a_run(content) as place:
        url = default_url(place)
        with History.open(url, create=True) as history:
            history.add(night(2))
        status, out, err = command("history", "--history", url, "import", place / "run")
        assert status in (0, 2)
        if status:
            reason, summary = err.splitlines()
            assert reason.startswith("qsae-bench: ") and len(reason) > 20
            assert summary.endswith("0 imported, 0 already there, 1 failed")
        else:
            assert (err, len(out.splitlines())) == ("", 1)
        with History.open(url) as history:
            kept = run_ids(history)
        assert night(2).run_id in kept
        assert len(kept) == 1 + (status == 0 and "1 imported" in out)
        if "1 imported" in out:
            assert command("history", "--history", url, "import", place / "run")[1].endswith(
                "0 imported, 1 already there\n"
            )
            status, _, err = command(
                "history", "--history", url, "--model", "tiny", "--metric", "kl_divergence"
            )
            assert (status, err) == (0, "")


def check_show(content: bytes) -> None:
    with a_run(content) as place:
        for arguments in ((), ("-k", "tiny")):
            status, _, err = command("show", place / "run", *arguments)
            assert status in (0, 2)
            assert len(err.splitlines()) == (status != 0)


@QUICK
@given(files)
def test_any_file_is_imported_or_refused(content):
    check_import(content)


@QUICK
@given(files)
def test_any_file_is_shown_or_refused(content):
    check_show(content)


@pytest.mark.large
@LARGE
@given(files)
def test_any_of_a_thousand_files_is_imported_or_refused(content):
    check_import(content)


@pytest.mark.large
@LARGE
@given(files)
def test_any_of_a_thousand_files_is_shown_or_refused(content):
    check_show(content)


def test_most_mutations_get_past_the_reader():
    """A fuzz of files that are all refused by the first check would test that check alone."""
    accepted = total = 0

    @settings(max_examples=100, deadline=None, database=None, derandomize=True)
    @given(mutated())
    def count(found):
        nonlocal accepted, total
        with a_run(written(found)) as place:
            total += 1
            accepted += command("show", place / "run")[0] == 0

    count()
    assert accepted >= 0.25 * total
