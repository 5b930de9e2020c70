"""The README's commands against a local hub, then without it: the large models' path on real loading code.

The hub serves the embedded model inside the real shapes (see widened.py), under the real names.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import widened
from local_hub import LocalHub
from paths import ROOT

TOKEN = "hf_NotARealTokenButSecret1234"

FEW = "--tokens 1016 --sequence-length 128"
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


# the 4B's decoder is 15 GiB
pytestmark = pytest.mark.alone


@pytest.fixture(scope="module", params=MODELS)
def online_then_offline(request, tmp_path_factory):
    """(name, run with the hub, run after it stopped, hub, folder of runs)."""
    name = request.param
    model, saes, layer, width, write = MODELS[name]
    folder = tmp_path_factory.mktemp(name)
    with LocalHub() as hub:
        hub.add(model, write(folder / "model"), gated_token=TOKEN)
        hub.add(saes, widened.gemma_scope_2(folder / "saes", layer, width, model.replace("google/", "")))
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
    return name, online, offline, hub, folder


def document(folder: Path) -> dict:
    return json.loads((folder / "qsae" / "latest" / "run.json").read_text())


def test_the_readmes_command_passes_with_the_hub_and_then_without(online_then_offline):
    name, online, offline, hub, folder = online_then_offline
    assert online.returncode == 0, online.stdout[-4000:] + online.stderr[-2000:]
    assert offline.returncode == 0, offline.stdout[-4000:] + offline.stderr[-2000:]
    assert hub.unknown == []
    cells = document(folder)["cells"]
    assert {cell["quantization"]: cell["status"] for cell in cells} == dict.fromkeys(
        ("reference", "int8", "nf4", "fp4"), "measured"
    )
    assert all(verdict["status"] == "pass" for cell in cells for verdict in cell["verdicts"])
    assert sum(len(cell["verdicts"]) for cell in cells) > 15
    assert name in online.stdout


def test_both_runs_measure_the_same(online_then_offline):
    *_, folder = online_then_offline
    first, second = (
        json.loads(path.read_text()) for path in sorted((folder / "qsae" / "runs").glob("*/run.json"))
    )
    for one, other in zip(first["cells"], second["cells"], strict=True):
        for key in ("perplexity", "kl_divergence", "top1_agreement"):
            assert one["metrics"][key] == other["metrics"][key]
        assert {k: v["metrics"]["fvu"] for k, v in one["layers"].items()} == {
            k: v["metrics"]["fvu"] for k, v in other["layers"].items()
        }


def test_the_token_is_nowhere(online_then_offline):
    _, online, offline, hub, folder = online_then_offline
    for run in (online, offline):
        assert TOKEN not in run.stdout + run.stderr
    for path in (folder / "qsae").rglob("*"):
        if path.is_file():
            assert TOKEN.encode() not in path.read_bytes(), path
    # and yet it was used: the model is gated
    assert any(entry.had_authorization for entry in hub.requests)


def test_int8_and_nf4_are_quantized_and_the_vision_tower_is_not_loaded(online_then_offline):
    name, *_, folder = online_then_offline
    cells = {cell["quantization"]: cell["metrics"] for cell in document(folder)["cells"]}
    assert cells["int8"]["bits_per_weight"]["value"] < 8.5
    assert cells["nf4"]["bits_per_weight"]["value"] < 4.5
    if name == "gemma3_4b":
        from safetensors import safe_open

        decoder = 0
        for path in (folder / "model").glob("*.safetensors"):
            with safe_open(path, framework="pt") as tensors:
                keys = [key for key in tensors.keys() if key.startswith("language")]  # noqa: SIM118
                decoder += sum(tensors.get_tensor(key).numel() for key in keys)
        assert cells["reference"]["weight_bytes"]["value"] == 4 * decoder
