"""Failures of the real world: each ends in one line that names the cause and the remedy, in time.

The hub's are served by :mod:`local_hub` and met in :mod:`hub_faults_child`. Its cases run side by side, on
repositories of their own: what they do is mostly wait.
"""

from __future__ import annotations

import errno
import gc
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any, NamedTuple

import pytest
from safetensors.torch import load_file

import builders
import hub_repos
import local_hub
import warm
from local_hub import LocalHub
from paths import ROOT
from qsae_bench.errors import CannotRun, OutOfMemory, QsaeError
from qsae_bench.measure.corpus import cache as token_cache
from qsae_bench.models import hub, loading, saes
from qsae_bench.models.backends.python import module_named
from qsae_bench.registry.entries import load_registry
from qsae_bench.registry.sae_spec import SaeSpec
from qsae_bench.registry.specs import Cell, CorpusSpec, ModelSpec, Selection

FAULTS = ROOT / "tests" / "support" / "faults"
CHILD = ROOT / "tests" / "support" / "hub_faults_child.py"
TOKEN = "hf_FAKEtokenFAKEtoken123"

# -- the hub --------------------------------------------------------------------------------------


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


def test_the_token_is_in_no_log_result_or_report(tmp_path):
    """The README's command, with a hub that refuses and says why with the token in it."""
    with LocalHub() as hub, pytest.MonkeyPatch.context() as patch:
        patch.setitem(local_hub.WORDS, "403", f"no access for Bearer {TOKEN}")
        hub.add("google/gemma-3-1b-pt", hub_repos.gemma3_text(tmp_path / "model", 2, 64))
        hub.fault("403", times=None)
        environment = hub.environment(
            tmp_path / "home", token=TOKEN, HF_HUB_DOWNLOAD_TIMEOUT="1", HF_HUB_ETAG_TIMEOUT="1",
            OMP_NUM_THREADS="1",
        )  # fmt: skip
        command = [
            sys.executable, "-m", "pytest", "benchmarks", "-k", "gemma3_1b and perplexity", "--device", "cpu",
            "--qsae-dir", str(tmp_path / "qsae"), "-p", "no:cacheprovider", "-rs", "-vv", "--showlocals",
            "--junit-xml", str(tmp_path / "qsae" / "junit.xml"), "--log-file", str(tmp_path / "qsae" / "log"),
            "--log-file-level", "INFO",
        ]  # fmt: skip
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
        )
        assert any(entry.had_authorization for entry in hub.requests)
    assert done.returncode == 3, done.stdout
    assert GATED[0] in " ".join(done.stdout.split())
    assert TOKEN not in done.stdout + done.stderr
    files = [path for path in (tmp_path / "qsae").rglob("*") if path.is_file()]
    assert {"run.json", "junit.xml", "log"} <= {path.name for path in files}
    for path in files:
        assert TOKEN.encode() not in path.read_bytes(), path


# -- the disk -------------------------------------------------------------------------------------


def full(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture
def absent() -> ModelSpec:
    """A model of the hub that no cache has."""
    sae = SaeSpec(d_in=64, folder="/nowhere")
    return ModelSpec("absent", "org/absent-anywhere", 2, 64, (1,), sae, "grammar")


def test_too_little_disk_is_found_before_the_download(absent, monkeypatch):
    import huggingface_hub

    asked = []

    def listing(**options: Any) -> list[Any]:
        asked.append(options)
        return [SimpleNamespace(file_size=3 << 30, will_download=wanted) for wanted in (True, True, False)]

    monkeypatch.setattr(huggingface_hub, "snapshot_download", listing)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=5 << 30))
    with pytest.raises(CannotRun) as caught:
        hub.fetch(absent, weights=True)
    assert builders.one_line(caught.value) == (
        "absent: org/absent-anywhere needs 6.0 GiB of disk, 5.0 GiB are free in the cache: "
        "free space, or move the cache with HF_HOME"
    )
    assert [one["dry_run"] for one in asked] == [True]


def test_a_disk_that_fills_up_during_the_download(absent, monkeypatch):
    import huggingface_hub

    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda dry_run=False, **_: [] if dry_run else full()
    )
    with pytest.raises(CannotRun) as caught:
        hub.fetch(absent, weights=True)
    assert builders.one_line(caught.value) == (
        "absent: org/absent-anywhere can't be fetched: the disk is full: "
        "free space, or move the cache with HF_HOME"
    )


def kept_sae(copy: Path) -> None:
    import stand_ins

    saes._store_copy(stand_ins.jumprelu(1, width=192), copy, "gemma-scope-2-1b-pt-res", "x")


def test_no_disk_for_an_saes_copy(tmp_path, monkeypatch):
    monkeypatch.setattr(saes.os, "replace", full)
    with pytest.raises(QsaeError) as caught:
        kept_sae(tmp_path / "saes" / "x")
    message = builders.one_line(caught.value)
    assert "the SAE's copy can't be stored: No space left on device" in message
    assert "free space or name another place with --qsae-dir" in message
    assert list((tmp_path / "saes").iterdir()) == []


@pytest.fixture
def tiny_disk(tmp_path):
    """A file system of 128 KiB, where this process may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(command, capture_output=True).returncode == 0
    except OSError:
        mounted = False
    if not mounted:
        pytest.skip("may not mount a file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_really_full_disk(tiny_disk, tokenizer):
    with pytest.raises(QsaeError, match="the SAE's copy can't be stored: .*No space left on device"):
        kept_sae(tiny_disk / "saes" / "x")
    assert list((tiny_disk / "saes").iterdir()) == []
    lines: list[str] = []
    made = corpus(tokenizer, tiny_disk / "corpora", lines, tokens=60_000)
    (line,) = lines
    assert "can't be written: No space left on device; nothing is cached" in line
    assert len(made.ids) > 0 and list((tiny_disk / "corpora").iterdir()) == []


@pytest.fixture(scope="module")
def tokenizer():
    return loading.load_tokenizer(load_registry().model("tiny_gemma3"))


def corpus(tokenizer: Any, folder: Path, lines: list[str], tokens: int = 500) -> Any:
    path = folder.with_name("own.txt") if folder.parent.name != "disk" else folder.parents[1] / "own.txt"
    path.write_text("The old captain saw the harbour. " * (tokens // 4), encoding="utf-8")
    spec = CorpusSpec("mine", "textfile", 64, tokens, tokens, 2, path=str(path))
    return token_cache.load_corpus(spec, tokenizer, tokens, folder, None, lines.append)


def test_no_disk_for_token_sequences(tmp_path, tokenizer, monkeypatch):
    lines: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        without = corpus(tokenizer, tmp_path / "corpora", lines)
    (line,) = lines
    assert line == (
        f"corpus cache {tmp_path / 'corpora'}: can't be written: No space left on device; nothing is cached"
    )
    assert list((tmp_path / "corpora").iterdir()) == []
    assert without.fingerprint == corpus(tokenizer, tmp_path / "corpora", lines).fingerprint
    assert len(lines) == 1


# -- memory ---------------------------------------------------------------------------------------


@pytest.fixture
def hungry():
    """(registry, module of backends that run out of memory)."""
    out_of_memory = module_named("out_of_memory", FAULTS)  # the one that the entries beside it take
    out_of_memory.HELD.clear()
    return load_registry([FAULTS / "out_of_memory.toml"]), out_of_memory


@pytest.mark.parametrize("name,tensors", [("hungry", 2), ("hungry_host", 1)])
def test_out_of_memory_is_one_cells(hungry, name, tensors, tmp_path):
    from qsae_bench.gate.thresholds import Thresholds
    from qsae_bench.run.document import run_document
    from qsae_bench.run.local_session import LocalSession
    from qsae_bench.run.session import SessionOptions

    registry, module = hungry
    chosen = registry.select(
        Selection(models=("tiny_gemma3",), quantizations=("reference", name, "rtn_int4"))
    )
    few = Selection(tokens=2032)
    session = LocalSession(
        SessionOptions(registry, Thresholds({}), tmp_path, "test", few, on_warning=lambda line: None)
    )
    for cell in chosen:
        if cell.quantization.name == name:
            with pytest.raises(OutOfMemory) as caught:
                session.measure(cell)
            assert str(session.refused[cell]) == builders.one_line(caught.value)
            del caught
            gc.collect()
            assert len(module.HELD) == tensors
            assert [held() for held in module.HELD] == [None] * tensors, "the memory is not freed"
            with pytest.raises(OutOfMemory):  # at once: it is not tried again
                session.measure(cell)
            assert len(module.HELD) == tensors
        session.require(cell) if cell not in session.refused else session.requested.append(cell)
        if cell not in session.refused:
            assert session.measure(cell).tokens > 0
    written = {record.quantization: record for record in run_document(session).cells}
    session.close()
    assert {key: record.status for key, record in written.items()} == {
        "reference": "measured", name: "oom", "rtn_int4": "measured",
    }  # fmt: skip
    reason = written[name].reason
    assert reason.startswith(f"tiny_gemma3-{name}: out of memory: needs about ")
    assert " GiB, " in reason and " GiB are here; try " in reason


def test_out_of_memory_through_pytest(tmp_path):
    arguments = [
        "--models", "tiny_gemma3", "-k", "perplexity", "--layers", "1",
        "--registry", str(FAULTS / "out_of_memory.toml"), "--quantizations", "reference,hungry,int8",
        "--qsae-dir", str(tmp_path / "qsae"), "-p", "no:cacheprovider", "-v",
    ]  # fmt: skip
    environment = os.environ | {"PYTHONPATH": str(FAULTS), "OMP_NUM_THREADS": "1"}
    done = warm.run(arguments, environment, timeout=300)
    assert done.returncode == 3, done.stdout
    # not the warnings' lines, which name a test and no outcome
    outcomes = dict(re.findall(r"^benchmarks/\S+::\w+\[tiny_gemma3-(\w+)\S*\] ([A-Z]+)", done.stdout, re.M))
    assert outcomes == {
        "reference": "PASSED", "hungry": "ERROR", "int8": "PASSED",
    }  # fmt: skip
    summary = " ".join(done.stdout.split())
    assert "tiny_gemma3: oom (hungry): tiny_gemma3-hungry: out of memory: needs about" in summary
    document = json.loads((tmp_path / "qsae" / "latest" / "run.json").read_text())
    statuses = {cell["quantization"]: cell["status"] for cell in document["cells"]}
    assert statuses == {"reference": "measured", "hungry": "oom", "int8": "measured"}


def four_b() -> Cell:
    asked = Selection(models=("gemma3_4b",), quantizations=("reference",))
    (cell,) = load_registry().select(asked)
    return cell


def test_a_gpu_that_is_too_small(monkeypatch):
    import torch

    cell = four_b()
    cell = replace(cell, model=replace(cell.model, gated=False))
    cards = [SimpleNamespace(total_memory=4 * 2**30)]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(cards))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: cards[index])
    with pytest.raises(CannotRun) as caught:
        loading.require(cell, "cuda")
    message = builders.one_line(caught.value)
    assert message == (
        "gemma3_4b needs 11 GiB of GPU memory; 4 GiB are here: use a larger GPU or several; "
        "see qsae-bench plan"
    )
    loading.require(cell, "cuda", device_named=True)
    cards *= 3  # spread over several
    loading.require(cell, "auto")


def test_no_gpu_at_all():
    cell = four_b()
    with pytest.raises(
        CannotRun, match=r"gemma3_4b needs a CUDA GPU with 11 GiB; none is visible: .*--device"
    ):
        loading.require(cell, "cpu")
