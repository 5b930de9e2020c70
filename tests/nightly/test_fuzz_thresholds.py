"""Any file at all as thresholds.toml: read well, or refused in one line. No traceback reaches the user."""

from __future__ import annotations

from pathlib import Path

import pytest
import tomlkit
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from fuzzing import LEAVES
from paths import ROOT
from qsae_bench.gate.thresholds import ENTRY_KEYS
from running import typed

OWN = (ROOT / "thresholds.toml").read_bytes()
RUN = {
    "schema_version": 1, "run_id": "r", "started": "", "finished": "", "command": "", "environment": {"cpu": "c"},
    "corpus": {}, "cells": [],
}  # fmt: skip

KEYS = st.sampled_from(
    ["schema", "defaults", "tiny_gemma3", "nf4", "int8", "hardware", "layer3", "layer03", "NVIDIA H200", "fvu",
     "kl_divergence", "fvu_scalar_bos", *ENTRY_KEYS]
) | st.text(st.characters(exclude_categories=["Cs"]), max_size=4)  # fmt: skip
TREES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=12,
)
ENTRIES = st.dictionaries(st.sampled_from(ENTRY_KEYS), LEAVES | TREES, max_size=5)
METRICS = st.dictionaries(
    st.sampled_from(["fvu", "kl_divergence", "layer3", "hardware"]), ENTRIES | TREES, max_size=3
)
NEARLY = st.dictionaries(
    st.sampled_from(["defaults", "tiny_gemma3"]), st.dictionaries(st.sampled_from(["nf4", "int8"]), METRICS, max_size=2)
)  # fmt: skip


def as_toml(document) -> bytes:
    return tomlkit.dumps({"schema": 1} | document).encode()


@st.composite
def mended(draw) -> bytes:
    """Our own file with a few places overwritten, cut out or doubled."""
    content = bytearray(OWN)
    for _ in range(draw(st.integers(1, 4))):
        at, length = draw(st.integers(0, len(content))), draw(st.integers(0, 40))
        put = draw(
            st.sampled_from([b"", b"\n", b"[", b"]]", b"{", b'"', b"'''", b"=", b"nan", b"1e999", b"\x00", b"\xff", b"."])
            | st.binary(max_size=4)
        )  # fmt: skip
        content[at : at + length] = put * draw(st.integers(1, 3))
    return bytes(content)


CONTENTS = (
    st.dictionaries(KEYS, TREES, max_size=3).map(as_toml)
    | NEARLY.map(as_toml)
    | mended()
    | st.binary(max_size=60)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=60).map(str.encode)
    | st.text("[]{}=\"'.,#\n\\ 0x1e-_abcnf4", max_size=60).map(lambda text: f"schema = 1\n{text}".encode())
)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    import json

    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "run.json").write_text(json.dumps(RUN), encoding="utf-8")
    return folder


def check_content(place: Path, content: bytes) -> None:
    file = place / "thresholds.toml"
    file.write_bytes(content)
    status, out, err = typed("thresholds", "check", "--thresholds", file, "--run", place)
    if status == 0:
        assert (out.startswith(f"{file}: "), err) == (True, "")
    else:
        assert (status, out) == (2, "")
        assert err.count("\n") == 1 and len(err.splitlines()) == 1 and err.endswith("\n"), err
        assert err.startswith(f"qsae-bench: {file}: "), err
    assert file.read_bytes() == content


HOSTILE = [
    b"schema = 0x" + b"f" * 5000,
    b"schema = " + b"9" * 5000,
    b"schema = 1\nx = " + b"[" * 3000,
    b"schema = 1\nx = " + b"{a=" * 3000,
    b"schema = 1\n[" + b".".join([b"a"] * 3000) + b"]",
    b'schema = 1\n[defaults.nf4]\nfvu = { max = 1, source = "s", tokens = 0x' + b"f" * 5000 + b" }",
    b'schema = 1\n[defaults.nf4]\n"fvu\\u2028" = 1',
    b'schema = 1\n["tiny_gemma3\\u0085"]\nnf4 = {}',
    b"\xef\xbb\xbfschema = 1",
    b"\xff\xfes\x00",
    b"",
]


@pytest.mark.parametrize("content", HOSTILE, ids=range(len(HOSTILE)))
def test_known_traps(place, content):
    check_content(place, content)


@given(CONTENTS)
@settings(deadline=None)
def test_any_thresholds_file_is_read_or_refused_in_one_line(place, content):
    check_content(place, content)


@given(CONTENTS)
@example(OWN)
@settings(deadline=None, max_examples=2000, suppress_health_check=[HealthCheck.too_slow])
def test_two_thousand_thresholds_files(place, content):
    check_content(place, content)
