"""Failures of the real world: each ends in one line that names the cause and the remedy, in time.

What a hub can do wrong, loader by loader, is in tests/nightly/test_hub_failures.py.
"""

from __future__ import annotations

import errno
import gc
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

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
TOKEN = "hf_FAKEtokenFAKEtoken123"

# -- the hub --------------------------------------------------------------------------------------


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
    assert "it is gated and this HF_TOKEN has no access" in " ".join(done.stdout.split())
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
        "--models", "tiny_gemma3", "-k", "perplexity", "--layers", "1", "--tokens", "8128",
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
