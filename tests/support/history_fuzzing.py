"""Run documents that anything was done to, and what must hold when they are imported and shown."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from fuzzing import places
from nights import night, run_ids, tree
from qsae_bench.app.cli import main as cli
from qsae_bench.results.history.store import History
from qsae_bench.results.history.url import default_url


def examples(count: int) -> settings:
    """Settings of a test that tries so many files."""
    return settings(max_examples=count, deadline=None, suppress_health_check=list(HealthCheck))


VALID = tree(night(1))

ODD_TEXTS = (
    "", "\0", "\ud800", "a\nb", "\u2028", "reference", "nf4", "tiny", "3", "-1", "x" * 3000, "<b>", "'\"", "..", "/",
)  # fmt: skip
texts = st.text(max_size=12) | st.sampled_from(ODD_TEXTS)
scalars = (
    st.none() | st.booleans() | texts | st.floats() | st.integers()
    | st.sampled_from([2**63, -(2**63) - 1, 10**400, 1e308, 5e-324, -0.0])
)  # fmt: skip
anything = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)


KINDS = ("like", "like", "like", "like", "replace", "drop", "double", "rename")
"""kinds of changes; most keep the type, because a value of another type is refused by the reader"""


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
        last, how = path[-1], draw(st.sampled_from(KINDS))
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
def a_run(content: bytes) -> Iterator[Path]:
    """A folder with a run whose document is this file."""
    place = Path(tempfile.mkdtemp(prefix="qsae-fuzz-"))
    try:
        (place / "run").mkdir()
        (place / "run" / "run.json").write_bytes(content)
        yield place
    finally:
        shutil.rmtree(place)


def command(*arguments: object) -> tuple[int, str, str]:
    """Run ``qsae-bench`` in this process: an exception would be the traceback that a user sees."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = cli.main(list(map(str, arguments)))
    for text in (out.getvalue(), err.getvalue()):
        text.encode("utf-8")  # what a terminal does
    return status, out.getvalue(), err.getvalue()


def check_import(content: bytes) -> None:
    """Import a file: exit 0 and recorded, or exit 2 and one line why; earlier runs are there either way."""
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
            recorded = run_ids(history)
        assert night(2).run_id in recorded
        assert len(recorded) == 1 + (status == 0 and "1 imported" in out)
        if "1 imported" in out:
            assert command("history", "--history", url, "import", place / "run")[1].endswith(
                "0 imported, 1 already there\n"
            )
            status, _, err = command(
                "history", "--history", url, "--model", "tiny", "--metric", "kl_divergence"
            )
            assert (status, err) == (0, "")


def check_show(content: bytes) -> None:
    """Show a file: exit 0, or exit 2 and one line why."""
    with a_run(content) as place:
        for arguments in ((), ("-k", "tiny")):
            status, _, err = command("show", place / "run", *arguments)
            assert status in (0, 2)
            assert len(err.splitlines()) == (status != 0)
