"""What a hub can do wrong, loader by loader: each ends in one line that names cause and remedy, or in the right content.

The hub is served by :mod:`local_hub` and met in :mod:`hub_faults_child`. The cases run side by side, on
repositories of their own: what they do is mostly wait.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest
from safetensors.torch import load_file

import builders
import hub_repos
import local_hub
from local_hub import LocalHub
from paths import ROOT
from qsae_bench.errors import QsaeError

CHILD = ROOT / "tests" / "support" / "hub_faults_child.py"
TOKEN = "hf_FAKEtokenFAKEtoken123"


class Case(NamedTuple):
    """A fault, of what, and the words of the message that it ends in (none: the right content)."""

    loader: str
    kind: str
    match: str
    words: tuple[str, ...]
    options: Mapping[str, Any] = MappingProxyType({})
    tag: str = ""

    @property
    def name(self) -> str:
        where = self.match.strip("$.") or "all"
        often = "once" if self.options.get("times", 1) else "always"
        return "-".join(filter(None, [self.loader, self.kind, where, often, self.tag]))


ALWAYS: dict[str, Any] = {"times": None}
GET = ALWAYS | {"method": "GET"}
BODY = GET | {"skip": 2}
"""after the two requests by which sae-lens reads a header"""
ONCE = {"times": 1}
WEIGHTS, PARAMS, ROWS = "model.safetensors$", "params.safetensors$", ".parquet$"

UNKNOWN = ("the hub does not know it or the token may not see it (401)", "check the name and HF_TOKEN")
GATED = ("it is gated and this HF_TOKEN has no access", "accept its licence with the token's account")
MISSING = ("the hub has no such file (404)", "check the entry's source, release and id")
NO_REPOSITORY = (
    "the hub does not know it or the token may not see it (404)",
    "check the name and HF_TOKEN",
)
BROKEN = ("the hub answered with its own error (500)", "try again later")
CUT = ("the download was cut short", "run again, it goes on where it stopped")
SLOW = ("the hub does not answer in time", "run again, or raise HF_HUB_DOWNLOAD_TIMEOUT")
DAMAGED = ("checksum mismatch", "arrived damaged and was removed", "run again to download it")
FINE = ()

CASES = [
    # all of its requests; the first of them; the large file
    Case("model", "401", "", UNKNOWN, ALWAYS), Case("model", "401", "", UNKNOWN, ONCE),
    Case("model", "401", WEIGHTS, UNKNOWN, GET),
    Case("model", "403", "", GATED, ALWAYS), Case("model", "403", "", GATED, ONCE),
    Case("model", "403", WEIGHTS, GATED, GET),
    Case("model", "404", "", NO_REPOSITORY, ALWAYS), Case("model", "404", "", NO_REPOSITORY, ONCE),
    Case("model", "404", WEIGHTS, MISSING, GET),
    Case("model", "500", "", BROKEN, ALWAYS), Case("model", "500", "", BROKEN, ONCE),
    Case("model", "500", WEIGHTS, BROKEN, GET),
    Case("model", "cut", WEIGHTS, CUT, GET), Case("model", "cut", WEIGHTS, FINE, ONCE),
    Case("model", "stall", "", SLOW, ALWAYS), Case("model", "stall", "", SLOW, ONCE),
    Case("model", "stall", WEIGHTS, SLOW, GET), Case("model", "stall", WEIGHTS, FINE, ONCE | {"method": "GET"}),
    Case("model", "damage", WEIGHTS, DAMAGED, GET),
    # a config that can't be had is taken for one that isn't there, and is then inferred from the id
    Case("sae", "401", "", UNKNOWN, ALWAYS), Case("sae", "401", "", UNKNOWN, ONCE),
    Case("sae", "401", PARAMS, UNKNOWN, BODY),
    Case("sae", "403", "", GATED, ALWAYS), Case("sae", "403", "", FINE, ONCE),
    Case("sae", "403", PARAMS, GATED, BODY),
    Case("sae", "404", "", MISSING, ALWAYS), Case("sae", "404", "", FINE, ONCE),
    Case("sae", "404", PARAMS, MISSING, BODY),
    Case("sae", "500", "", FINE, ONCE), Case("sae", "500", PARAMS, BROKEN, GET),
    Case("sae", "500", PARAMS, BROKEN, BODY),
    Case("sae", "cut", PARAMS, CUT, GET), Case("sae", "cut", PARAMS, CUT, ONCE),
    Case("sae", "cut", PARAMS, CUT, BODY, "body"), Case("sae", "cut", PARAMS, FINE, ONCE | {"skip": 2}, "body"),
    Case("sae", "stall", "", SLOW, ALWAYS), Case("sae", "stall", "", FINE, ONCE),
    Case("sae", "stall", PARAMS, SLOW, BODY),
    Case("sae", "damage", PARAMS, DAMAGED, GET),
    Case("sae", "damage", PARAMS, ("can't be read", "run again"), GET | {"at": 5}, "header"),
    # rows are streamed: the first request that fails decides, later ones are repeated by datasets
    Case("documents", "401", "", UNKNOWN, ALWAYS), Case("documents", "401", "", UNKNOWN, ONCE),
    Case("documents", "403", "", GATED, ALWAYS), Case("documents", "403", "", GATED, ONCE),
    Case("documents", "404", "", NO_REPOSITORY, ALWAYS), Case("documents", "404", ROWS, MISSING, ALWAYS),
    Case("documents", "500", ROWS, BROKEN, ALWAYS), Case("documents", "500", "", FINE, ONCE),
    Case("documents", "cut", ROWS, SLOW, ALWAYS), Case("documents", "cut", ROWS, FINE, ONCE),
    Case("documents", "stall", ROWS, SLOW, ALWAYS), Case("documents", "stall", "", FINE, ONCE),
    Case("documents", "damage", ROWS, ("its data arrived damaged", "run again to download it"), ALWAYS),
]  # fmt: skip

RESUMED = [
    case.name for case in CASES if case.words in (CUT, DAMAGED) and case.options.get("times", 1) is None
]
"""ended in a message, and run again with a hub that is well"""

SMALLER = "google/gemma-scope-2-270m-pt"
SCOPE = "google/gemma-scope-2-1b-pt"


class Served(NamedTuple):
    """A hub's answers to three generations of processes: with faults, without, and without the hub."""

    faulty: dict[str, Any]
    asked: dict[str, str]
    well: dict[str, Any]
    stopped: dict[str, Any]
    offline: dict[str, Any]
    output: str
    hub: LocalHub
    model: Path
    scope: Path
    home: Path
    copies: Path


def child(hub: LocalHub, home: Path, cases: list[list[str]], copies: Path, **environment: Any):
    """(how each case ended, all that the process wrote)."""
    seconds = {"HF_HUB_DOWNLOAD_TIMEOUT": "1", "HF_HUB_ETAG_TIMEOUT": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(CHILD)],
        input=json.dumps({"cases": cases, "copies": str(copies)}),
        env=hub.environment(home, **seconds, **environment),
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), done.stdout + done.stderr


@pytest.fixture(scope="module")
def served(tmp_path_factory) -> Served:
    root = tmp_path_factory.mktemp("repositories")
    model, pile = hub_repos.gemma3_text(root / "model", 2, 64), hub_repos.pile_10k(root / "pile", 12)
    names = {"widths": ("16k", "65k", "262k"), "l0s": ("small", "medium", "big")}
    layers = [7, 13, 17, 22]
    scope = hub_repos.gemma_scope_2(root / "scope", layers, 32, 16, model_name="gemma-v3-1b-pt", **names)
    small = hub_repos.gemma_scope_2(root / "small", [5, 12], 32, 16, model_name="gemma-v3-270m-pt")
    pickled, bare = root / "pickled", root / "bare"
    shutil.copytree(model, pickled)
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    shutil.copytree(model, bare)
    (bare / "config.json").unlink()

    # two that are damaged have a repository of their own: what is new in it is hashed by each load
    ids = [f"1b-pt/{path.name}" for path in sorted((scope / "resid_post").iterdir())]
    to_damage = ["270m-pt/layer_5_width_16k_l0_medium", "270m-pt/layer_12_width_16k_l0_medium"]
    home, copies = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("kept")
    with LocalHub() as hub, pytest.MonkeyPatch.context() as patch:
        for status, words in local_hub.WORDS.items():
            patch.setitem(local_hub.WORDS, status, f"{words} (Bearer {TOKEN})")
        hub.add(SCOPE, scope)
        hub.add(SMALLER, small)
        hub.add("org/pickled", pickled)
        hub.add("org/bare", bare)
        hub.add("org/gated", model, gated_token="hf_another")
        hub.add("org/open", model)
        hub.add("NeelNanda/pile-10k", pile, kind="dataset")
        given = []
        for number, case in enumerate(CASES):
            asked = f"org/{case.loader}-{number}"
            if case.loader == "sae":
                asked = (to_damage if case.kind == "damage" else ids).pop()
            elif case.loader == "model":
                hub.add(asked, model)
            else:
                hub.add(asked, pile, kind="dataset")
            hub.fault(case.kind, f"/{asked.partition('/')[2]}(?![0-9]).*{case.match}", **case.options)
            given.append([case.name, case.loader, asked])
        others = [
            ["gated", "model", "org/gated"], ["nowhere", "model", "org/nowhere"],
            ["pickled", "model", "org/pickled"], ["bare", "load", "org/bare"],
            ["sae missing", "sae", "1b-pt/layer_7_width_1m_l0_big"],
            ["sae unlisted", "sae", "1b-pt/layer_8_width_16k_l0_medium"],
            ["documents nowhere", "documents", "org/nowhere"],
        ]  # fmt: skip
        faulty, output = child(hub, home, [*given, *others], copies, token=TOKEN)
        hub.clear_faults()
        again = [row for row in given if row[0] in RESUMED]
        kept = [
            ["model", "model", "org/open"], ["corpus", "corpus", "org/open"],
            ["sae", "sae", "1b-pt/layer_7_width_16k_l0_small"],
        ]  # fmt: skip
        well, _ = child(hub, home, [*again, *kept, ["closed", "require", "org/gated"]], copies)
    uncached = [
        ["no model", "model", "org/pickled-2"], ["no sae", "sae", "270m-pt/layer_9_width_16k_l0_medium"],
        ["no documents", "documents", "org/nowhere"],
    ]  # fmt: skip
    with ThreadPoolExecutor() as pool:
        waits = pool.submit(child, hub, home, [*kept, *uncached], copies)
        offline, _ = child(hub, home, [*kept, *uncached], copies, HF_HUB_OFFLINE="1")
        stopped, _ = waits.result()
    asked = {name: what for name, _, what in given}
    return Served(faulty, asked, well, stopped, offline, output, hub, model, scope, home, copies)


def right(served: Served, loader: str, asked: str, value: Any) -> bool:
    """Whether what was loaded is what the hub has."""
    if loader == "model":
        files = [path for path in served.model.iterdir() if path.suffix in (".json", ".safetensors")]
        return value == {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    if loader == "sae":
        size, _, name = asked.partition("/")
        folder = served.scope if size == "1b-pt" else served.scope.with_name("small")
        written = load_file(folder / "resid_post" / name / "params.safetensors")["w_enc"]
        return value == hashlib.sha256(written.numpy().tobytes()).hexdigest()
    import pyarrow.parquet as pq

    (rows,) = served.scope.with_name("pile").rglob("*.parquet")
    return value == sorted(pq.read_table(rows)["text"].to_pylist())


def said(ended: dict[str, Any], kind: str = "CannotRun") -> str:
    """The one line of a case that ended in a message of ours."""
    assert ended["kind"] == kind, ended
    message = builders.one_line(QsaeError(ended["message"]))
    assert TOKEN not in message
    return message


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_fault_of_the_hub_ends_in_its_message_or_in_the_right_content(served, case):
    assert case.name in served.faulty, "it did not end"
    ended, asked = served.faulty[case.name], served.asked[case.name]
    assert ended["seconds"] < 60
    if case.words is FINE:
        assert ended["kind"] == "ok", ended
        assert right(served, case.loader, asked, ended["value"])
        return
    # a cut or a damaged file is an error; where the hub can't be had, the cell is skipped
    damaged = case.kind == "damage" and case.loader != "documents"
    message = said(ended, "QsaeError" if damaged else "CannotRun")
    for words in (*case.words, asked.rpartition("/")[2] if case.words != DAMAGED else ""):
        assert words in message


@pytest.mark.parametrize("name", RESUMED)
def test_an_interrupted_or_damaged_download_is_completed_by_the_next_run(served, name):
    ended, asked = served.well[name], served.asked[name]
    assert ended["kind"] == "ok", ended
    assert right(served, name.partition("-")[0], asked, ended["value"])


@pytest.mark.parametrize(
    "name,kind,words",
    [
        ("gated", "CannotRun", ("org/gated can't be fetched", *GATED)),
        ("nowhere", "CannotRun", ("org/nowhere can't be fetched", "check the name and HF_TOKEN")),
        ("documents nowhere", "CannotRun", ("org/nowhere can't be read", "check the name and HF_TOKEN")),
        ("pickled", "QsaeError", ("org/pickled has no model.safetensors", "only safetensors are read")),
        ("bare", "QsaeError", ("org/bare has no config.json", "correct the entry's source")),
        ("sae missing", "CannotRun", ("layer_7_width_1m_l0_big can't be fetched", *MISSING)),
        ("sae unlisted", "QsaeError", ("has no SAE 'layer_8_width_16k_l0_medium'", "did you mean 'layer_")),
    ],
)
def test_what_the_hub_lacks(served, name, kind, words):
    message = said(served.faulty[name], kind)
    assert all(word in message for word in words), message


def test_a_gated_model_without_a_token_is_refused_before_any_request(served):
    message = said(served.well["closed"])
    assert message == "gated: org/gated is gated: accept its licence on the hub and set HF_TOKEN"
    # the requests that there are came with the token of the run before
    assert all(entry.had_authorization for entry in served.hub.asked_for("/org/gated"))
    assert served.hub.asked_for("/org/gated")


@pytest.mark.parametrize("how", ["stopped", "offline"])
def test_what_is_here_needs_no_hub(served, how):
    ended = getattr(served, how)
    for name in ("model", "sae", "corpus"):
        assert ended[name]["kind"] == "ok", ended[name]
        assert ended[name]["value"] == served.well[name]["value"]
        assert ended[name]["said"] == []


@pytest.mark.parametrize("name", ["no model", "no sae", "no documents"])
@pytest.mark.parametrize(
    "how,words",
    [
        (
            "stopped",
            ("the hub can't be reached and the cache lacks it", "check the network and HF_ENDPOINT"),
        ),
        (
            "offline",
            ("not in the cache, and HF_HUB_OFFLINE is set", "unset it, or fill the cache with network"),
        ),
    ],
)
def test_what_is_not_here_needs_one(served, how, words, name):
    ended = getattr(served, how)[name]
    message = said(ended)
    # an SAE's first request is repeated by huggingface_hub for longer than this test's second allows
    given_up = name == "no sae" and all(word in message for word in SLOW)
    assert given_up or all(word in message for word in words), message
    assert ended["seconds"] < 60


def test_the_token_is_nowhere_although_the_hub_sent_it_back(served):
    assert any(entry.had_authorization and entry.status == 403 for entry in served.hub.requests)
    assert TOKEN not in served.output
    assert TOKEN not in json.dumps(served.faulty)
    for path in (*served.home.rglob("*"), *served.copies.rglob("*")):
        if path.is_file():
            assert TOKEN.encode() not in path.read_bytes(), path
