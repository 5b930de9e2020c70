"""Any file at all as a registry file: read well, or refused in one line. No traceback reaches the user."""

from __future__ import annotations

import copy
import tomllib
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import tomlkit
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fuzzing import LEAVES, places
from paths import ROOT
from qsae_bench.registry.parsing import PARSERS
from qsae_bench.registry.sae_spec import SaeSpec
from qsae_bench.registry.specs import CorpusSpec, ModelSpec, QuantizationSpec
from running import typed

HOME = ROOT / "src" / "qsae_bench" / "registry"
OWN = {path.stem: tomllib.loads(path.read_text(encoding="utf-8")) for path in sorted(HOME.glob("*.toml"))}
VALID = {
    "models": {"tiny_gemma3": OWN["tiny"]["models"]["tiny_gemma3"], "gemma3_4b": OWN["gemma3"]["models"]["gemma3_4b"]},
    "quantizations": {name: OWN["quantizations"]["quantizations"][name] for name in ("nf4", "rtn_int4", "reference")},
    "corpora": OWN["corpora"]["corpora"],
}  # fmt: skip
"""entries as they are, to be damaged"""

NAMES = [
    field.name for kind in (ModelSpec, SaeSpec, QuantizationSpec, CorpusSpec) for field in fields(kind)
]
KEYS = (
    st.sampled_from([*NAMES, *PARSERS, "from", "to", "tiny_gemma3", "nf4", "reference", "hidden_size"])
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=4)
)  # fmt: skip
VALUES = (
    LEAVES
    | st.sampled_from(["{layer}", "{layer", "{0}", "{layer.x}", "{width!r:>99999999}", "./nowhere", "~", "package:..", "16k", "0k", "9" * 400 + "k"])
    | st.integers(-3, 10) | st.sampled_from([10**18, -(10**18)])
)  # fmt: skip
TREES = st.recursive(
    VALUES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=8,
)


@st.composite
def damaged(draw) -> bytes:
    """Valid entries of which some are replaced, removed or joined by others."""
    tree = copy.deepcopy(VALID)
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(places(tree)[1:]))
        holder: Any = tree
        for step in path[:-1]:
            holder = holder[step]
        what = draw(st.sampled_from(["replace", "replace", "remove", "add"]))
        if what == "remove":
            del holder[path[-1]]
        elif what == "add" and isinstance(holder, dict):
            holder[draw(KEYS)] = draw(TREES)
        else:
            holder[path[-1]] = draw(TREES)
    return tomlkit.dumps(tree).encode()


CONTENTS = (
    damaged()
    | st.dictionaries(st.sampled_from(PARSERS), st.dictionaries(KEYS, TREES, max_size=2), max_size=2).map(
        lambda tree: tomlkit.dumps(tree).encode()
    )
    | st.binary(max_size=40)
    | st.text("[]{}=\"'.,#\n\\ 0x1e-_abcmodels", max_size=60).map(str.encode)
)  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("registry")


def check_content(place: Path, content: bytes) -> None:
    file = place / "own.toml"
    file.write_bytes(content)
    for command in ("list", "plan"):
        status, out, err = typed(command, "--registry", file, "--qsae-dir", place)
        if status == 0:
            assert out and err == ""
        else:
            assert (status, out) == (2, "")
            assert err.startswith("qsae-bench: ") and len(err.splitlines()) == 1 and err.endswith("\n"), err


@pytest.mark.parametrize("name", OWN)
def test_what_ships_is_accepted_again(place, name):
    check_content(place, tomlkit.dumps(OWN[name]).encode())
    assert typed("list", "--registry", place / "own.toml")[0] == 0


@given(CONTENTS)
@settings(deadline=None, max_examples=60, suppress_health_check=list(HealthCheck))
def test_any_registry_file_is_read_or_refused_in_one_line(place, content):
    check_content(place, content)


@given(CONTENTS)
@settings(deadline=None, max_examples=1500, suppress_health_check=list(HealthCheck))
def test_fifteen_hundred_registry_files(place, content):
    check_content(place, content)
