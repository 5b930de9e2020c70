"""Peak memory of a pass: no tensor of [batch, length, vocabulary], nothing that grows with tokens.

Each measurement runs in a process of its own: a peak is a property of a process.
"""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from paths import ROOT

SCRIPT = """
import ctypes, json, sys, tempfile
from pathlib import Path
import torch
import stand_ins
from paths import ROOT
from qsae_bench.measure.evaluation import evaluate
from qsae_bench.models.memory import PeakMemory, configure_malloc
from qsae_bench.measure.store.local import LocalStore
from qsae_bench.models.taps import Subject

torch.set_num_threads(2)
vocabulary, sequences, length = map(int, sys.argv[1:4])
model = stand_ins.gemma3(vocabulary=vocabulary, width=128, n_layers=2, sliding_window=512)
saes = {0: stand_ins.jumprelu(0, width=128, d_sae=512)}
corpus = stand_ins.corpus(sequences, length, vocabulary)
store = LocalStore(Path(tempfile.mkdtemp(dir=sys.argv[4])), 1 << 40)
store.write("key", stand_ins.reference_pass(model, corpus, (0,)))
stored = store.open("key", "cpu")
configure_malloc()  # as a session does: gaps in the heap are not what is measured,
ctypes.CDLL(None).malloc_trim(0)  # nor what writing the store has left in it
before = int(Path("/proc/self/statm").read_text().split()[1]) * 4096
with PeakMemory("cpu") as peak:
    evaluate(stand_ins.cell(width=128), corpus, stored, saes, "cpu", Subject(model, torch.device("cpu")))
print(json.dumps({"before": before, "peak": peak.bytes}))
"""


def peak_of(tmp_path, vocabulary, sequences, length):
    """(bytes above the process with model and SAEs loaded, bytes in all)."""
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(vocabulary), str(sequences), str(length), str(tmp_path)],
        capture_output=True, text=True, timeout=500,
        env={"PYTHONPATH": str(ROOT / "tests" / "support"), "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout.splitlines()[-1])
    return found["peak"] - found["before"], found["peak"]


def test_real_vocabulary_fits_beside_the_model(tmp_path):
    """262 144 logits at batch 4 × 256 would be 1.07 GB whole; the pass adds under 600 MB."""
    extra, _ = peak_of(tmp_path, 262_144, 4, 256)
    assert 4 * 256 * 262_144 * 4 > 1.07e9
    assert extra < 600e6


def test_peak_does_not_grow_with_tokens(tmp_path):
    _, once = peak_of(tmp_path, 4096, 16, 64)
    _, eight_times = peak_of(tmp_path, 4096, 128, 64)
    assert eight_times <= 1.05 * once


BLOCKS = """
import ctypes, resource, sys
from qsae_bench.models.memory import configure_malloc
libc = ctypes.CDLL("libc.so.6")
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes, libc.memset.argtypes = [ctypes.c_void_p], [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
size = 16 << 20
configure_malloc()
if sys.argv[1] == "trimmed":
    libc.mallopt(-1, 128 << 10)  # as glibc has it
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def batch():
    blocks = [libc.malloc(size), libc.malloc(size)]
    for block in blocks:
        libc.memset(block, 1, size)
    for block in blocks:
        libc.free(block)
kept = [libc.malloc(size) for _ in range(8)]  # no gap is left below the heap's end
batch()
before = faults()
for _ in range(20):
    batch()
print(faults() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's heap")
def test_a_batch_finds_the_pages_of_the_last():
    """Fresh pages at every batch take a third of a small model's time, and only in some runs."""
    found = {}
    for how in ("trimmed", "steady"):
        command = [sys.executable, "-c", BLOCKS, how]
        run = subprocess.run(command, capture_output=True, text=True, check=True, timeout=100)
        found[how] = int(run.stdout)
    pages = 20 * 2 * (16 << 20) // 4096
    print(f"\n{found} of {pages} pages")
    assert found["steady"] < 0.1 * pages < 0.9 * pages < found["trimmed"]
