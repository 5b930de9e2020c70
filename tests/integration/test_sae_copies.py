"""A released SAE is kept after its first load: the copy is the SAE, bit for bit, and needs no hub.

Small random SAEs in each format that a shipped model's release has, at the release's real path.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import builders
import hub_repos
import local_hub
from local_hub import LocalHub
from paths import ROOT
from qsae_bench.errors import QsaeError
from qsae_bench.registry import sae_releases

CHILD = ROOT / "tests" / "support" / "sae_copies_child.py"
FEATURES = 24

SAES: dict[str, tuple[str, str, int, str, int]] = {
    # release, id, layer, the model's source, d_in (where sae-lens fixes it: the real one)
    "gemma_scope_2": ("gemma-scope-2-1b-pt-res", "layer_13_width_16k_l0_medium", 13, "google/gemma-3-1b-pt", 32),
    "gemma_scope_1": ("gemma-scope-2b-pt-res-canonical", "layer_12/width_16k/canonical", 12, "google/gemma-2-2b", 2304),
    "llama_scope": ("llama_scope_lxr_8x", "l15r_8x", 15, "meta-llama/Llama-3.1-8B", 32),
    "qwen_scope": ("qwen-scope-3-1.7b-base-w32k-l50", "layer14", 14, "Qwen/Qwen3-1.7B-Base", 2048),
    "sae_lens": ("pythia-70m-deduped-res-sm", "blocks.3.hook_resid_post", 3, "EleutherAI/pythia-70m-deduped", 32),
}  # fmt: skip


def tensors(d_in: int, seed: int) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    encoder = torch.randn(d_in, FEATURES, generator=random) * d_in**-0.5
    return {
        "W_enc": encoder, "W_dec": encoder.T.contiguous(),
        "b_enc": 0.1 * torch.randn(FEATURES, generator=random),
        "b_dec": 0.1 * torch.randn(d_in, generator=random),
    }  # fmt: skip


def path_of(release: str, sae_id: str) -> str:
    """Where the release has it."""
    return next(one["path"] for one in sae_releases.find_release(release)["saes"] if one["id"] == sae_id)


def write(name: str, folder: Path) -> None:
    """A repository with this one SAE, as its publisher lays it out."""
    release, sae_id, layer, _, d_in = SAES[name]
    made = tensors(d_in, layer)
    place = folder / path_of(release, sae_id)
    if name == "gemma_scope_2":
        hub_repos.gemma_scope_2(folder, [13], d_in, FEATURES, model_name="gemma-v3-1b-pt")
        return
    if name == "qwen_scope":
        folder.mkdir(parents=True)
        turned = {key: value.T.contiguous() if value.ndim == 2 else value for key, value in made.items()}
        torch.save(turned, place)
        return
    place.mkdir(parents=True)
    if name == "gemma_scope_1":
        arrays = {key.replace("W_", "w_"): value.numpy() for key, value in made.items()}
        np.savez(place / "params.npz", **arrays, threshold=np.full(FEATURES, 0.5, np.float32))
    elif name == "llama_scope":
        written = {
            "encoder.weight": made["W_enc"].T, "decoder.weight": made["W_dec"].T,
            "encoder.bias": made["b_enc"], "decoder.bias": made["b_dec"],
        }  # fmt: skip
        (place / "checkpoints").mkdir()
        save_file(
            {key: value.bfloat16().contiguous() for key, value in written.items()},
            place / "checkpoints" / "final.safetensors",
        )
        about = {
            "d_model": d_in, "d_sae": FEATURES, "jump_relu_threshold": 0.3,
            "dataset_average_activation_norm": {"in": 11.0, "out": 11.0},
            "hook_point_in": f"blocks.{layer}.hook_resid_post",
        }  # fmt: skip
        (place / "hyperparams.json").write_text(json.dumps(about))
    else:
        save_file(made, place / "sae_weights.safetensors")
        about = {
            "architecture": "standard", "d_in": d_in, "d_sae": FEATURES, "dtype": "torch.float32",
            "device": "cpu", "model_name": "pythia-70m-deduped", "activation_fn_str": "relu",
            "hook_point": f"blocks.{layer}.hook_resid_post", "hook_point_layer": layer,
            "hook_name": f"blocks.{layer}.hook_resid_post", "hook_layer": layer, "hook_head_index": None,
            "apply_b_dec_to_input": True, "finetuning_scaling_factor": False, "prepend_bos": True,
            "normalize_activations": "none", "context_size": 128, "dataset_path": "EleutherAI/the_pile",
            "sae_lens_training_version": None, "dataset_trust_remote_code": True,
        }  # fmt: skip
        (place / "cfg.json").write_text(json.dumps(about))


def load(hub: LocalHub, home: Path, copies: Path, names: list[str], **environment: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, str(CHILD)],
        input=json.dumps({"saes": {name: SAES[name] for name in names}, "copies": str(copies)}),
        env=hub.environment(
            home, OMP_NUM_THREADS="1", HF_HUB_DOWNLOAD_TIMEOUT="1", HF_HUB_ETAG_TIMEOUT="1", **environment
        ),
        capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def copy_of(copies: Path, name: str) -> Path:
    release, sae_id, *_ = SAES[name]
    return copies / release / sae_id.replace("/", "--")


def spoil(copy: Path) -> None:
    """One bit of the last weight."""
    path = copy / "sae_weights.safetensors"
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(content)


class Malicious:
    """What a pickle must not do."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Any]:
    """Loads with the hub, without it, and after damage to some of the copies, with and without."""
    root = tmp_path_factory.mktemp("saes")
    home, copies = root / "home", root / "copies"
    second = ["gemma_scope_2", "llama_scope"]
    found: dict[str, Any] = {"copies": copies, "root": root}
    with LocalHub() as hub, pytest.MonkeyPatch.context() as patch:
        # as on the hub, whatever isn't text is known by its sha256
        patch.setattr(local_hub, "LARGE", (*local_hub.LARGE, ".pt", ".npz"))
        for name, (release, *_) in SAES.items():
            write(name, root / name)
            hub.add(sae_releases.find_release(release)["repo_id"], root / name)
        found["first"] = load(hub, home, copies, list(SAES), TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD="1")
        found["sources"] = {
            name: json.loads((copy_of(copies, name) / "source.json").read_text()) for name in SAES
        }
        asked = len(hub.requests)
        found["again"] = load(hub, home, copies, list(SAES))
        found["asked again"] = len(hub.requests) - asked
        for name in second:
            spoil(copy_of(copies, name))
        found["refetched"] = load(hub, home, copies, second)
        # a .pt that runs code when it is read, and a release that went bad
        bad = root / "bad"
        bad.mkdir()
        release, sae_id, *_ = SAES["qwen_scope"]
        with (bad / path_of(release, sae_id)).open("wb") as file:
            pickle.dump(Malicious(root / "harm"), file)
        hub.add(sae_releases.find_release(release)["repo_id"], bad)
        found["pickle"] = load(
            hub, root / "home-2", root / "copies-2", ["qwen_scope"], TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD="1"
        )
    found["stopped"] = load(hub, home, copies, list(SAES))
    for name in second:
        spoil(copy_of(copies, name))
    found["offline"] = load(hub, root / "home-3", copies, second, HF_HUB_OFFLINE="1")
    return found


@pytest.mark.parametrize("name", SAES)
def test_the_first_load_leaves_a_copy_that_says_where_it_is_from(runs, name):
    first, source = runs["first"][name], runs["sources"][name]
    assert first["kind"] == "ok", first
    assert (first["said"], first["dtype"], first["features"]) == ([], "torch.float32", FEATURES)
    release, sae_id, layer, *_ = SAES[name]
    assert first["hook"] == f"blocks.{layer}.hook_resid_post"
    assert first["active"] > 0
    assert {key: source[key] for key in ("release", "id", "repository")} == {
        "release": release, "id": sae_id, "repository": sae_releases.find_release(release)["repo_id"],
    }  # fmt: skip
    assert set(source["sha256"]) == {"cfg.json", "sae_weights.safetensors"}
    for file, digest in source["sha256"].items():
        assert hashlib.sha256(
            (copy_of(runs["copies"], name) / file).read_bytes()
        ).hexdigest() == digest or (
            name in ("gemma_scope_2", "llama_scope")  # spoiled since
        )


@pytest.mark.parametrize("name", SAES)
@pytest.mark.parametrize("later", ["again", "stopped"])
def test_a_later_load_is_the_same_bit_for_bit(runs, later, name):
    assert runs[later][name] == runs["first"][name]


def test_a_later_load_asks_the_hub_nothing(runs):
    assert runs["asked again"] == 0


@pytest.mark.parametrize("name", ["gemma_scope_2", "gemma_scope_1", "qwen_scope", "sae_lens"])
def test_the_weights_are_the_publishers(runs, name):
    release, sae_id, layer, _, d_in = SAES[name]
    made = tensors(d_in, layer)
    if name == "gemma_scope_2":
        file = load_file(runs["root"] / name / path_of(release, sae_id) / "params.safetensors")
        made = {key.replace("w_", "W_"): value for key, value in file.items()}
    digests = runs["first"][name]["digests"]
    for key, value in made.items():
        assert digests[key] == hashlib.sha256(value.contiguous().numpy().tobytes()).hexdigest(), key


def test_llama_scopes_norm_is_folded_in_once(runs):
    """Its encoder reads x * sqrt(d) / norm and its decoder writes at that scale: both copies do, by weights."""
    release, sae_id, layer, _, d_in = SAES["llama_scope"]
    first, kept = runs["first"]["llama_scope"], runs["stopped"]["llama_scope"]
    assert first["normalize"] == kept["normalize"] == "none"
    weights = load_file(copy_of(runs["copies"], "llama_scope") / "sae_weights.safetensors")
    scale = next(
        one["norm_scaling_factor"]
        for one in sae_releases.find_release(release)["saes"]
        if one["id"] == sae_id
    )
    encoder = tensors(d_in, layer)["W_enc"].bfloat16().float()
    torch.testing.assert_close(weights["W_enc"], encoder * scale, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["gemma_scope_2", "llama_scope"])
def test_a_damaged_copy_is_fetched_again_and_said(runs, name):
    ended = runs["refetched"][name]
    (line,) = ended["said"]
    assert line == (
        f"{copy_of(runs['copies'], name)}: the stored copy is damaged (checksum differs); the SAE is fetched again"
    )
    assert ended | {"said": []} == runs["first"][name]


@pytest.mark.parametrize("name", ["gemma_scope_2", "llama_scope"])
def test_a_damaged_copy_without_network_is_an_error(runs, name):
    ended = runs["offline"][name]
    assert ended["kind"] == "CannotRun"
    message = builders.one_line(QsaeError(ended["message"]))
    assert "can't be fetched: not in the cache, and HF_HUB_OFFLINE is set" in message
    assert "unset it, or fill the cache" in message
    assert len(ended["said"]) == 1


def test_a_pickle_is_never_run_even_if_torch_is_told_to(runs):
    ended = runs["pickle"]["qwen_scope"]
    assert ended["kind"] == "QsaeError", ended
    message = builders.one_line(QsaeError(ended["message"]))
    assert "SAE qwen-scope-3-1.7b-base-w32k-l50/layer14 can't be read: UnpicklingError" in message
    assert not (runs["root"] / "harm").exists()
    assert not (runs["root"] / "copies-2").exists()
