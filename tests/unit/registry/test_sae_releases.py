"""Every built-in model against the installed sae-lens, and what its publishers state."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace

import pytest

from builders import one_line
from qsae_bench.errors import QsaeError
from qsae_bench.registry.entries import load_registry
from qsae_bench.registry.sae_releases import check_release, find_release
from qsae_bench.registry.sae_spec import SaeSpec
from qsae_bench.registry.specs import ModelSpec

REGISTRY = load_registry()

MODELS = list(REGISTRY.models.values())

RELEASED = [model for model in MODELS if model.sae.release is not None]

GEMMA_3 = [model for model in RELEASED if "gemma-scope-2-" in str(model.sae.release)]

FEATURES = {
    "16k": 2**14, "32k": 2**15, "64k": 2**16, "65k": 2**16, "131k": 2**17, "262k": 2**18, "1m": 2**20,
    "8x": 8 * 4096, "32x": 32 * 4096,
    "gpt2-small-res-jb": 32 * 768, "pythia-70m-deduped-res-sm": 64 * 512,
}  # fmt: skip
"""d_sae by width, or by release where it has one width; sae-lens's own table has the same for Gemma Scope"""

HIDDEN_SIZES = {
    "gemma-3-270m": 640, "gemma-3-1b": 1152, "gemma-3-4b": 2560, "gemma-3-12b": 3840, "gemma-3-27b": 5376,
    "gemma-2-2b": 2304, "gemma-2-9b": 3584, "Llama-3.1-8B": 4096, "Qwen3-1.7B": 2048, "Qwen3-8B": 4096,
    "openai-community/gpt2": 768, "pythia-70m": 512,
}  # fmt: skip


def by_name(models):
    return pytest.mark.parametrize("model", models, ids=[model.name for model in models])


def variants(model: ModelSpec) -> list[tuple[str, SaeSpec, tuple[int, ...]]]:
    """Every width and l0 that the command line can choose: (l0's label, SAEs, layers)."""
    found = []
    for sae in filter(None, (model.sae, model.sae_every)):
        for width in sae.widths or (sae.width,):
            for l0 in tuple(sae.expected_l0) or (sae.l0,):
                layers = sae.layers or model.layers
                found.append((l0, replace(sae, width=width, l0=l0), layers))
    return found


@pytest.fixture(scope="module")
def directory():
    """sae-lens's registry, read by sae-lens."""
    from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

    return get_pretrained_saes_directory()


def stated_l0(release, sae_id) -> float | None:
    """What sae-lens says: as a number, or in the path (Gemma Scope 1)."""
    in_path = re.search(r"average_l0_(\d+)", release.saes_map[sae_id])
    return float(in_path[1]) if in_path else release.expected_l0[sae_id] or None


def test_every_family_of_the_readme_is_here():
    assert len(RELEASED) == 17
    assert len(GEMMA_3) == 10


@by_name(RELEASED)
def test_every_sae_that_can_be_chosen_exists(model, directory):
    for _, sae, layers in variants(model):
        known = directory[sae.release_name()].saes_map
        assert [sae.sae_id(layer) for layer in layers if sae.sae_id(layer) not in known] == []


@by_name(RELEASED)
def test_saes_were_trained_on_this_model(model, directory):
    for _, sae, _ in variants(model):
        trained_on = directory[sae.release_name()].model
        assert (
            trained_on.rpartition("/")[2].replace("gpt2-small", "gpt2") == model.source.rpartition("/")[2]
        )


@by_name(GEMMA_3)
def test_no_layer_of_gemma_scope_2_is_left_out(model, directory):
    for sae, layers in ((model.sae, model.sae.layers), (model.sae_every, range(model.n_layers))):
        ids = directory[sae.release_name()].saes_map
        pattern = re.compile(rf"layer_(\d+)_width_{sae.width}_l0_{sae.l0}")
        released = {int(found[1]) for found in map(pattern.fullmatch, ids) if found}
        assert released == set(layers) == set(sae.layers)


@by_name(RELEASED)
def test_every_layer_means_every_decoder_layer(model):
    """Except where a release lacks the last: gpt2's SAEs read the next block's input."""
    every = model.sae_every or model.sae
    last = model.n_layers - (2 if model.name == "gpt2_small" else 1)
    assert every.layers == tuple(range(last + 1))
    assert set(model.layers) <= set(model.sae.layers) <= set(every.layers)


@by_name(RELEASED)
def test_expected_l0_is_the_range_that_sae_lens_states(model, directory):
    for sae in filter(None, (model.sae, model.sae_every)):
        for label, expected in sae.expected_l0.items():
            found = [
                stated_l0(directory[one.release_name()], one.sae_id(layer))
                for l0, one, layers in variants(model)
                if l0 == label and one.release == sae.release and layers == (sae.layers or model.layers)
                for layer in layers
            ]
            assert None not in found
            assert (expected.min, expected.max) == (min(found), max(found)), (sae.release, label)


@by_name([model for model in RELEASED if not model.sae.expected_l0])
def test_no_expected_l0_only_where_sae_lens_states_none(model, directory):
    release = directory[model.sae.release_name()]
    assert {stated_l0(release, model.sae.sae_id(layer)) for layer in model.sae.layers} == {None}
    assert "l0" in model.reference_bounds, "then the entry has bounds of its own"


@pytest.fixture
def offline(monkeypatch):
    """sae-lens's readers of configs, with what they would ask the hub for."""
    from huggingface_hub.errors import EntryNotFoundError
    from sae_lens.loading import pretrained_sae_loaders as loaders

    def absent(repo, name, **_):
        raise EntryNotFoundError.__new__(EntryNotFoundError)

    def shapes(repo, name):
        size, width = re.search(r"scope-2-(\w+)-", repo)[1], re.search(r"width_(\w+?)_l0", name)[1]
        return {"w_enc": [HIDDEN_SIZES[f"gemma-3-{size}"], FEATURES[width]]}

    monkeypatch.setattr(loaders, "hf_hub_download", absent)
    monkeypatch.setattr(loaders, "get_safetensors_tensor_shapes", shapes)
    return loaders


@by_name([m for m in RELEASED if str(m.sae.release).startswith(("gemma", "qwen"))])
def test_hook_and_sizes_are_what_sae_lens_reads(model, directory, offline):
    for _, sae, layers in variants(model):
        release = directory[sae.release_name()]
        read = offline.NAMED_PRETRAINED_SAE_CONFIG_GETTERS[release.conversion_func]
        for layer in layers:
            config = read(release.repo_id, release.saes_map[sae.sae_id(layer)], "cpu")
            assert config["hook_name"] == sae.hook_name(layer)
            assert (config["d_in"], config["d_sae"]) == (sae.d_in, sae.features)
            assert config["model_name"].rpartition("/")[2] == model.source.rpartition("/")[2]


@pytest.mark.parametrize("name", ["gpt2_small", "pythia_70m"])
def test_an_id_that_names_its_hook_names_the_one_read(name):
    """These releases' ids are TransformerLens's names; resid_pre of block L + 1 is resid_post of L."""
    model = REGISTRY.model(name)
    for layer in model.sae.layers:
        assert model.sae.hook_name(layer) == model.sae.sae_id(layer)
        block, place = re.fullmatch(
            r"blocks\.(\d+)\.hook_resid_(pre|post)", model.sae.hook_name(layer)
        ).groups()
        assert int(block) == layer + (place == "pre")


@by_name([REGISTRY.model("llama3.1_8b")])
def test_llama_scope_reads_the_residual_after_the_layer(model, directory):
    """``L15R``: layer 15's residual stream; Neuronpedia's id states the number of features."""
    for _, sae, layers in variants(model):
        release = directory[sae.release_name()]
        for layer in layers:
            sae_id = sae.sae_id(layer)
            assert release.saes_map[sae_id] == f"Llama3_1-8B-Base-L{layer}R-{sae.width}"
            assert sae.hook_name(layer) == f"blocks.{layer}.hook_resid_post"
            stated = re.fullmatch(
                rf"llama3.1-8b/{layer}-llamascope-res-(\d+k)", release.neuronpedia_id[sae_id]
            )
            assert FEATURES[stated[1]] == sae.features


@by_name(RELEASED)
def test_centred_weights_where_sae_lens_asks_for_them(model, directory):
    for _, sae, _ in variants(model):
        overrides = directory[sae.release_name()].config_overrides or {}
        asked = overrides.get("model_from_pretrained_kwargs", {}).get("center_writing_weights", False)
        assert sae.centered is asked


@by_name(RELEASED)
def test_widths_of_the_residual_stream_and_of_the_saes(model):
    known = [size for part, size in HIDDEN_SIZES.items() if part in model.source]
    assert known == [model.d_model]
    for _, sae, _ in variants(model):
        assert sae.d_in == model.d_model
        assert sae.features == FEATURES[sae.width or str(sae.release)]


def test_gemma_scopes_widths_are_sae_lens_s(directory, offline):
    for width in ("16k", "32k", "65k", "131k", "262k", "1m"):
        config = offline.get_gemma_2_config_from_hf(
            "google/gemma-scope-2b-pt-res", f"layer_1/width_{width}/x", "cpu"
        )
        assert config["d_sae"] == FEATURES[width]


@by_name(RELEASED)
def test_a_licence_is_asked_for_where_the_hub_asks(model):
    assert model.gated is model.source.startswith(("google/", "meta-llama/"))


@by_name([model for model in GEMMA_3 if model.source.endswith("-it")])
def test_an_instruction_tuned_model_differs_in_what_it_was_tuned_for_only(model):
    base = REGISTRY.model(model.name.removesuffix("_it"))
    assert REGISTRY.corpus(model.corpus).chat and not REGISTRY.corpus(base.corpus).chat
    assert model.architecture == base.architecture
    for own, other in ((model.sae, base.sae), (model.sae_every, base.sae_every)):
        assert own.release == other.release.replace("-pt-", "-it-")
        assert replace(own, release=None) == replace(other, release=None)


@by_name(RELEASED)
def test_every_choice_passes_the_check(model):
    for l0, sae, layers in variants(model):
        choice = "every" if sae.layers == getattr(model.sae_every, "layers", None) else "all"
        chosen = model.with_layers(choice, sae.width, l0)
        assert (chosen.layers, chosen.sae) == (layers, sae)
        check_release(chosen)


@by_name(RELEASED)
def test_a_release_reads_as_sae_lens_reads_it(model, directory):
    for release in {sae.release_name() for _, sae, _ in variants(model)}:
        entry, whole = find_release(release), directory[release]
        assert (entry["repo_id"], entry["model"]) == (whole.repo_id, whole.model)
        assert {str(sae["id"]): str(sae["path"]) for sae in entry["saes"]} == whole.saes_map


def refused(model: ModelSpec) -> str:
    with pytest.raises(QsaeError) as caught:
        check_release(model)
    return one_line(caught.value)


def test_instruction_tuned_model_with_saes_of_the_pretrained(tmp_path):
    """Nothing would fail later: sizes, layers and hooks agree, and every number would be nonsense."""
    file = tmp_path / "mine.toml"
    file.write_text(
        "[models.mine]\nsource = 'google/gemma-3-4b-it'\nn_layers = 34\nd_model = 2560\nlayers = [17]\n"
        "corpus = 'pile10k'\n[models.mine.sae]\nrelease = 'gemma-scope-2-4b-pt-res'\n"
        "id_template = 'layer_{layer}_width_16k_l0_medium'\nd_in = 2560\n",
        encoding="utf-8",
    )
    message = refused(load_registry([file]).model("mine"))
    assert "source is google/gemma-3-4b-it" in message
    assert "'gemma-scope-2-4b-pt-res' were trained on google/gemma-3-4b-pt" in message


@pytest.mark.parametrize(
    ("name", "other"),
    [("gemma3_270m", "gemma3_270m_it"), ("gemma3_12b_it", "gemma3_12b"), ("qwen3_8b", "llama3.1_8b")],
)
def test_any_other_models_saes_are_refused(name, other):
    """The 270m's pretrained model has no suffix -pt: it must not pass for its tuned sibling."""
    model = REGISTRY.model(name)
    message = refused(replace(model, source=REGISTRY.model(other).source))
    assert REGISTRY.model(other).source in message
    assert f"trained on {model.source}" in message


def test_a_model_folder_may_hold_anything(tmp_path):
    """One's own fine-tune of the model: its name says nothing; d_in and the reference's FVU will."""
    model = replace(REGISTRY.model("gemma3_4b"), source=str(tmp_path))
    assert check_release(model) is None


def test_random_weights_need_no_release():
    model = REGISTRY.model("gemma3_4b")
    unknown = replace(model, sae=replace(model.sae, release="nothing"))
    refused(unknown)
    assert check_release(replace(unknown, synthetic=True)) is None


@pytest.mark.parametrize(
    ("name", "changes", "parts"),
    [
        ("gemma3_4b", {"release": "gemma-scope-2-4b-pt-ress"}, ["no release 'gemma-scope-2-4b-pt-ress'", "did you mean 'gemma-scope-2-4b-pt-res'?"]),
        ("llama3.1_8b", {"width": "16x"}, ["no release 'llama_scope_lxr_16x'", "did you mean 'llama_scope_lxr_"]),
        ("llama3.1_8b", {"id_template": "l{layer}m_{width}"}, ["'llama_scope_lxr_8x' has no SAE 'l15m_8x'", "did you mean 'l15r_8x'?"]),
        ("gemma3_4b", {"l0": "huge"}, ["'gemma-scope-2-4b-pt-res' has no SAE 'layer_17_width_16k_l0_huge'", "did you mean 'layer_17_width_16k_l0_"]),
        ("qwen3_1.7b", {"l0": "75"}, ["no release 'qwen-scope-3-1.7b-base-w32k-l75'", "did you mean 'qwen-scope-3-1.7b-base-w32k-l"]),
    ],
)  # fmt: skip
def test_a_release_or_id_that_is_not_there(name, changes, parts):
    model = REGISTRY.model(name)
    message = refused(replace(model, sae=replace(model.sae, **changes)))
    assert [part for part in parts if part not in message] == [], message
    assert message.startswith(f"model {name!r}: ")


def test_the_check_imports_neither_sae_lens_nor_torch():
    code = (
        "import sys; from qsae_bench.registry.entries import load_registry; from qsae_bench.registry.sae_releases import check_release\n"
        "for model in load_registry().models.values(): check_release(model)\n"
        "print('sae_lens' in sys.modules, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout.strip()) == (0, "False False"), done.stderr
