"""Two configs of a model: what changes the numbers is refused by its name, what doesn't is let pass.

What a key does is known here independently: by lists made from each architecture's code, and by small
random models, whose logits say which keys are computed with.
"""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig

from builders import one_line
from qsae_bench.errors import QsaeError
from qsae_bench.models.config_difference import IGNORED, ConfigDifference, differences, refuse_or_allow

SIZES = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
    "intermediate_size": 32, "vocab_size": 24, "max_position_embeddings": 32,
}  # fmt: skip
LLAMA = (
    *SIZES, "head_dim", "hidden_act", "rms_norm_eps", "tie_word_embeddings", "attention_bias", "mlp_bias",
    "rope_parameters.rope_theta", "rope_parameters.rope_type",
)  # fmt: skip
QWEN3 = (
    *(key for key in LLAMA if key != "mlp_bias"),
    "use_sliding_window",
    "layer_types.1",
    "sliding_window",
)
GEMMA = (
    *SIZES, "head_dim", "hidden_activation", "rms_norm_eps", "tie_word_embeddings", "attention_bias",
    "query_pre_attn_scalar", "sliding_window", "layer_types.0", "layer_types.1", "final_logit_softcapping",
    "attn_logit_softcapping", "use_bidirectional_attention",
    "rope_parameters.full_attention.rope_theta", "rope_parameters.full_attention.rope_type",
    "rope_parameters.sliding_attention.rope_theta",
)  # fmt: skip
COMPUTED = {
    "llama": LLAMA,
    "granite": (
        *(key for key in LLAMA if key != "head_dim"),
        "embedding_multiplier", "logits_scaling", "residual_multiplier", "attention_multiplier",
    ),
    "qwen2": tuple(key for key in QWEN3 if key not in ("head_dim", "attention_bias")),
    "qwen3": QWEN3,
    "gpt_neox": (
        *(key for key in SIZES if key != "num_key_value_heads"), "hidden_act", "layer_norm_eps",
        "use_parallel_residual", "tie_word_embeddings", "attention_bias", "rope_parameters.rope_theta",
        "rope_parameters.partial_rotary_factor",
    ),
    "gemma3_text": GEMMA,
}  # fmt: skip
"""model_type -> the keys that its modelling code computes with, read there"""


def config(kind, **values):
    own = {key: value for key, value in SIZES.items() if kind != "gpt_neox" or key != "num_key_value_heads"}
    more = {"head_dim": 8} if kind in ("llama", "qwen3", "gemma3_text") else {}
    if kind == "gemma3_text":
        more |= {"query_pre_attn_scalar": 8, "sliding_window": 4, "final_logit_softcapping": 30.0}
        more["layer_types"] = ["sliding_attention", "full_attention"]
    if kind == "gpt_neox":
        more["rotary_pct"] = 1.0
    return AutoConfig.for_model(kind, **(own | more | values))


TABLES = {kind: config(kind).to_dict() for kind in COMPUTED}


def changed(table, name, value):
    """A copy with another value at a dotted place."""
    table = copy.deepcopy(table)
    *path, last = name.split(".")
    place = table
    for part in path:
        place = place[part]
    place[int(last) if isinstance(place, list) else last] = value(
        place[int(last)] if isinstance(place, list) else place[last]
    )
    return table


def another(value, pick):
    """Some other value that such a key could have."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, str):
        return f"{value}_{pick}"
    return (value or 0) + (1 + pick if isinstance(value, int) else 0.125 * (1 + pick))


@given(
    st.sampled_from([(kind, key) for kind, keys in COMPUTED.items() for key in keys]), st.integers(0, 10**6)
)
def test_a_change_of_any_computed_key_is_refused_by_name(where, pick):
    kind, name = where
    reference = TABLES[kind]
    found = differences(changed(reference, name, lambda value: another(value, pick)), reference)
    assert [one.name for one in found] == [name]
    with pytest.raises(QsaeError) as caught:
        refuse_or_allow(found, (), reference)
    assert f"{name} is " in one_line(caught.value)
    (line,) = refuse_or_allow(found, (name.split(".")[0],), reference)
    assert f"{name} is " in line


@given(st.sampled_from(sorted(COMPUTED)), st.sampled_from(sorted(IGNORED)), st.integers(0, 10**6))
def test_what_tools_and_training_write_is_no_difference(kind, key, value):
    reference = TABLES[kind]
    assert differences(reference | {key: value}, reference) == []


@pytest.mark.parametrize("kind", sorted(COMPUTED))
def test_ignored_keys_do_not_change_the_logits(kind):
    """Every key that the class itself has and that is ignored: a small random model says the same."""

    def logits(one):
        torch.manual_seed(0)
        model = MODEL_FOR_CAUSAL_LM_MAPPING[type(one)](one).eval()
        generator = torch.Generator().manual_seed(1)
        with torch.inference_mode():
            for weight in model.parameters():  # the config decides how they are initialised
                weight.copy_(torch.randn(weight.shape, generator=generator) / 4)
            return model(torch.arange(4, 20)[None], use_cache=False, return_dict=True).logits

    first = config(kind)
    expected = logits(first)
    numbers = {
        key: value for key, value in first.to_dict().items()
        if key in IGNORED and isinstance(value, (int, float)) and not isinstance(value, bool)
    }  # fmt: skip
    assert {"initializer_range", "attention_dropout"} <= numbers.keys()
    values = {key: value + 1 if isinstance(value, int) else 0.5 for key, value in numbers.items()}
    assert torch.equal(logits(config(kind, **values)), expected)
    theta = "rotary_emb_base" if kind == "gpt_neox" else "rope_theta"
    assert not torch.equal(logits(config(kind, **{theta: 77.0})), expected)


def test_old_and_new_names_of_a_rope_are_one():
    old = config("gemma3_text", rope_theta=5e5, rope_local_base_freq=1e4,
                 rope_scaling={"rope_type": "linear", "factor": 8.0}, sliding_window_pattern=2)  # fmt: skip
    new = config("gemma3_text", rope_parameters={
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 500000},
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000},
    })  # fmt: skip
    assert differences(old.to_dict(), new.to_dict()) == []
    local = config("gemma3_text", rope_theta=5e5, rope_local_base_freq=2e4,
                   rope_scaling={"rope_type": "linear", "factor": 8.0})  # fmt: skip
    assert [str(one) for one in differences(local.to_dict(), new.to_dict())] == [
        "rope_parameters.sliding_attention.rope_theta is 20000.0, the reference's is 10000"
    ]


def test_an_unknown_key_counts_unless_it_is_null():
    reference = config("llama").to_dict()
    assert differences(reference | {"clip_qkv": None}, reference) == []
    found = differences(reference | {"clip_qkv": 8.0}, reference)
    assert [str(one) for one in found] == ["clip_qkv is 8.0, the reference's is null or missing"]
    back = differences(reference, reference | {"clip_qkv": 8.0})
    assert [str(one) for one in back] == ["clip_qkv is missing, the reference's is 8.0"]


def test_another_architecture_is_named_alone():
    found = differences(config("qwen2").to_dict(), config("llama").to_dict())
    assert [str(one) for one in found] == ["model_type is 'qwen2', the reference's is 'llama'"]


def test_a_message_names_three_and_counts_the_others():
    found = [ConfigDifference(f"key_{index}", index, None) for index in range(5)]
    with pytest.raises(QsaeError, match=r"key_0 is 0, .*; key_2 is 2, .*; and 2 more: its difference"):
        refuse_or_allow(found, (), {})


def test_what_differs_may_name():
    reference = config("gemma3_text").to_dict()
    name = "rope_parameters.full_attention.rope_theta"
    found = differences(changed(reference, name, lambda _: 1e4), reference)
    for allowed in ("rope_theta", "rope_parameters", name):
        assert refuse_or_allow(found, (allowed,), reference) == [
            f"its config differs, as its entry allows: {name} is 10000.0, the reference's is 1000000.0"
        ]
    assert refuse_or_allow([], ("rope_theta",), reference) == []
    with pytest.raises(QsaeError, match=r"rope_theta is 10000\.0, the reference's is 1000000\.0") as caught:
        refuse_or_allow(found, ("rms_norm_eps",), reference)
    assert 'differs = ["rope_theta"]' in one_line(caught.value)
    with pytest.raises(
        QsaeError, match=r"'rope_thta', which neither config has \(did you mean 'rope_theta'"
    ):
        refuse_or_allow(found, ("rope_thta",), reference)
