"""Each field of an SAE's config is honoured, refused by name, or noted."""

from __future__ import annotations

import pytest

import any_sae
from any_sae import HERE, LAYER, WIDTH
from qsae_bench.models.sae_config import SaePlace, notes, refusal

PLACE = SaePlace(LAYER, WIDTH)
NEXT = f"blocks.{LAYER + 1}.hook_resid_pre"


def refused(config, place=PLACE):
    return refusal(config, place, any_sae.LOADED)


def with_metadata(**metadata):
    return any_sae.config("standard", metadata=metadata)


@pytest.mark.parametrize("architecture", any_sae.LOADED)
def test_nothing_of_a_plain_config(architecture):
    assert refused(any_sae.config(architecture)) is None


@pytest.mark.parametrize(
    "metadata",
    [
        {"hook_name": NEXT}, {"hook_name": NEXT, "hook_layer": LAYER + 1}, {"hook_layer": LAYER},
        {"hook_name": f"model.layers.{LAYER}"}, {"hook_name": None, "hf_hook_name": f"model.layers.{LAYER}.output"},
        {"hook_name": f"transformer.h.{LAYER}"}, {"hook_name": None}, {"hook_name_out": HERE},
        {"model_from_pretrained_kwargs": {"fold_ln": True, "n_devices": 2}}, {"hook_head_index": None},
    ],
)  # fmt: skip
def test_the_same_place_in_other_words(metadata):
    assert refused(with_metadata(**metadata)) is None


@pytest.mark.parametrize(
    ("metadata", "field"),
    [
        ({"hook_name": f"blocks.{LAYER}.hook_mlp_out"}, "hook_name: it reads 'blocks.1.hook_mlp_out'"),
        ({"hook_name": f"blocks.{LAYER + 1}.hook_resid_post"}, "hook_name: it reads 'blocks.2.hook_resid_post'"),
        ({"hook_name": f"blocks.{LAYER}.hook_resid_pre"}, "hook_name: it reads"),
        ({"hook_name": "blocks.11.hook_resid_post"}, "hook_name: it reads"),
        ({"hook_name": [HERE, NEXT]}, "hook_name: it reads"),
        ({"hook_name": None, "hf_hook_name": f"model.layers.{LAYER}.mlp"}, "hf_hook_name: it reads"),
        ({"hook_name_out": f"blocks.{LAYER}.hook_mlp_out"}, "hook_name_out 'blocks.1.hook_mlp_out'"),
        ({"hook_names": [HERE, NEXT]}, "hook_names "), ({"hook_layer": 3}, "hook_layer 3"),
        ({"hook_head_index": 0}, "hook_head_index 0"),
        ({"model_from_pretrained_kwargs": {"center_writing_weights": True}}, "model_from_pretrained_kwargs.center_writing_weights True"),
        ({"model_from_pretrained_kwargs": {"revision": "step3000"}}, "model_from_pretrained_kwargs.revision 'step3000'"),
    ],
)  # fmt: skip
def test_another_place_or_model(metadata, field):
    assert refused(with_metadata(**metadata)).startswith(field)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"architecture": "batchtopk", "k": 3}, "architecture 'batchtopk': a checkpoint of training"),
        ({"architecture": "crosscoder"}, "architecture 'crosscoder': the installed sae-lens has no such"),
        ({"normalize_activations": "covariance_whitening"}, "normalize_activations 'covariance_whitening'"),
        ({"normalize_activations": "constant_scalar_rescale"}, "normalize_activations 'constant_scalar_rescale'"),
        ({"normalize_activations": "layer_norm", "architecture": "transcoder"}, "normalize_activations 'layer_norm'"),
        ({"reshape_activations": "hook_z"}, "reshape_activations 'hook_z'"),
        ({"activation_fn": "tanh-relu"}, "activation_fn 'tanh-relu'"),
        ({"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 9}}, "activation_fn_str 'topk'"),
        ({"activation_fn_kwargs": {"tanh_scale": 2.0}}, "activation_fn_kwargs "),
        ({"finetuning_scaling_factor": True}, "finetuning_scaling_factor True"),
        ({"use_error_term": True}, "use_error_term True"),
        ({"apply_b_dec_to_input": "false"}, "apply_b_dec_to_input 'false'"),
        ({"architecture": "topk", "k": 65}, "k 65: no number of features between 1 and 64"),
        ({"architecture": "topk"}, "k: missing"),
        ({"architecture": "temporal", "sae_diff_type": "gelu"}, "sae_diff_type 'gelu'"),
        ({"architecture": "transcoder", "d_out": 96}, "d_out 96"),
        ({"d_in": 96}, "d_in 96, the model's width is 48"), ({"d_sae": "64"}, "d_sae '64'"),
    ],
)  # fmt: skip
def test_another_function(fields, said):
    assert refused(any_sae.config("standard") | fields).startswith(said)


def test_configs_before_version_6_have_all_at_the_top():
    old = any_sae.config(
        "standard", sae_lens_version=None, hook_point=HERE, hook_point_layer=LAYER, activation_fn_str="topk",
        activation_fn_kwargs={"k": 9}, normalize_activations=False, finetuning_scaling_factor=False,
    )  # fmt: skip
    del old["metadata"]
    assert refused(old) is None
    assert refused(old | {"hook_point": "blocks.1.hook_mlp_out"}).startswith("hook_point: it reads")
    assert refused(old | {"hook_point_layer": 2}).startswith("hook_point_layer 2")


def test_what_the_entry_says():
    named = SaePlace(LAYER, WIDTH, model_names=frozenset({"gemma-2-2b", "mine"}))
    assert refused(with_metadata(model_name="google/Gemma-2-2b"), named) is None
    assert refused(with_metadata(model_name="gemma-2-2b-it"), named).startswith(
        "model_name 'gemma-2-2b-it': another model than gemma-2-2b or mine"
    )
    assert refused(any_sae.config("standard"), SaePlace(LAYER, WIDTH, d_sae=128)).startswith("d_sae 64")
    centered = with_metadata(model_from_pretrained_kwargs={"center_writing_weights": True})
    assert refused(centered, SaePlace(LAYER, WIDTH, centered=True)) is None


@pytest.mark.parametrize(
    ("metadata", "begins"),
    [
        ({"context_size": 16}, ["context_size 16: "]), ({"context_size": 1024}, []),
        ({"prepend_bos": False}, ["prepend_bos False: "]), ({"prepend_bos": True}, []),
        ({"seqpos_slice": [1, None]}, ["seqpos_slice [1, None]: "]), ({"seqpos_slice": [None]}, []),
    ],
)  # fmt: skip
def test_other_text_is_noted(metadata, begins):
    found = list(notes(with_metadata(**metadata), 128, True))
    assert [line[: len(start)] for line, start in zip(found, begins, strict=True)] == begins
