"""``pytest benchmarks -k MODEL`` against a local hub, then without it: real loading code, names, depth and width.

The hub serves the embedded model inside the shape of the real one (see widened.py).
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

import widened
from local_hub import LocalHub
from paths import ROOT

# the 4B's decoder is 15 GiB
pytestmark = pytest.mark.alone

TOKEN = "hf_NotARealTokenButSecret1234"

FEW = "--tokens 1016 --sequence-length 128 --sequences-per-document 1"
"""so that a CPU is done in a minute; the rest of the command line is the README's"""

MODELS = {
    "gemma3_1b": ("google/gemma-3-1b-pt", "google/gemma-scope-2-1b-pt", 13, 1152, widened.gemma3_text),
    "gemma3_4b": (
        "google/gemma-3-4b-pt",
        "google/gemma-scope-2-4b-pt",
        17,
        2560,
        widened.gemma3_multimodal,
    ),
}


@dataclass(frozen=True)
class Played:
    """A model's run with the hub, and one after the hub has stopped."""

    name: str
    online: subprocess.CompletedProcess[str]
    offline: subprocess.CompletedProcess[str]
    hub: LocalHub
    folder: Path


def play(name: str, folder: Path) -> Played:
    """Run the README's command twice."""
    model, saes, layer, d_model, write = MODELS[name]
    with LocalHub() as hub:
        hub.add(model, write(folder / "model", d_model=d_model), gated_token=TOKEN)
        hub.add(saes, widened.gemma_scope_2(folder / "saes", layer, d_model, model.replace("google/", "")))
        hub.add("NeelNanda/pile-10k", widened.pile_10k(folder / "pile", 20), kind="dataset")
        environment = hub.environment(folder / "home", token=TOKEN, HF_HUB_DOWNLOAD_TIMEOUT="2")

        def run(more: str = "") -> subprocess.CompletedProcess[str]:
            options = f"--device cpu {FEW} --qsae-dir {folder / 'qsae'} -p no:cacheprovider {more}"
            return subprocess.run(
                [sys.executable, "-m", "pytest", "benchmarks", "-k", name], cwd=ROOT,
                env=environment | {"PYTEST_ADDOPTS": options}, capture_output=True, text=True, timeout=900,
            )  # fmt: skip

        online = run()
    offline = run("--benchmark-disable")  # what it measures is held against the first, its speed is not
    return Played(name, online, offline, hub, folder)


def check_played(played: Played) -> None:
    check_both_pass(played)
    check_both_measure_the_same(played.folder)
    check_the_token_is_nowhere(played)
    check_what_was_loaded(played)


def cells_of(folder: Path) -> list[dict]:
    return json.loads((folder / "qsae" / "latest" / "run.json").read_text())["cells"]


def check_both_pass(played: Played) -> None:
    online, offline = played.online, played.offline
    assert online.returncode == 0, online.stdout[-4000:] + online.stderr[-2000:]
    assert offline.returncode == 0, offline.stdout[-4000:] + offline.stderr[-2000:]
    assert played.hub.unknown == []
    cells = cells_of(played.folder)
    assert {cell["quantization"]: cell["status"] for cell in cells} == dict.fromkeys(
        ("reference", "int8", "nf4", "fp4"), "measured"
    )
    assert all(verdict["status"] == "pass" for cell in cells for verdict in cell["verdicts"])
    assert sum(len(cell["verdicts"]) for cell in cells) > 15
    assert played.name in online.stdout


def check_both_measure_the_same(folder: Path) -> None:
    first, second = (
        json.loads(path.read_text()) for path in sorted((folder / "qsae" / "runs").glob("*/run.json"))
    )
    for one, other in zip(first["cells"], second["cells"], strict=True):
        for key in ("perplexity", "kl_divergence", "top1_agreement"):
            assert one["metrics"][key] == other["metrics"][key]
        assert {k: v["metrics"]["fvu"] for k, v in one["layers"].items()} == {
            k: v["metrics"]["fvu"] for k, v in other["layers"].items()
        }


def check_the_token_is_nowhere(played: Played) -> None:
    for run in (played.online, played.offline):
        assert TOKEN not in run.stdout + run.stderr
    for path in (played.folder / "qsae").rglob("*"):
        if path.is_file():
            assert TOKEN.encode() not in path.read_bytes(), path
    # and yet it was used: the model is gated
    assert any(entry.had_authorization for entry in played.hub.requests)


def check_what_was_loaded(played: Played) -> None:
    """int8 and NF4 are quantized, and the vision tower is not loaded."""
    cells = {cell["quantization"]: cell["metrics"] for cell in cells_of(played.folder)}
    assert cells["int8"]["bits_per_weight"]["value"] < 8.5
    assert cells["nf4"]["bits_per_weight"]["value"] < 4.5
    if played.name == "gemma3_4b":
        from safetensors import safe_open

        decoder = 0
        for path in (played.folder / "model").glob("*.safetensors"):
            with safe_open(path, framework="pt") as tensors:
                keys = [key for key in tensors.keys() if key.startswith("language")]  # noqa: SIM118
                decoder += sum(tensors.get_tensor(key).numel() for key in keys)
        assert cells["reference"]["weight_bytes"]["value"] == 4 * decoder


@pytest.mark.parametrize("name", MODELS)
def test_the_readmes_command_passes_with_the_hub_and_then_without(name, tmp_path):
    check_played(play(name, tmp_path))
