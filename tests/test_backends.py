"""Recipes do to the weights what they say, and their size is what is stored."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qsae_bench.backends.rtn import round_to_nearest
from qsae_bench.errors import QsaeError
from qsae_bench.footprint import bits_per_weight, weight_bytes
from qsae_bench.loading import load
from qsae_bench.registry import load_registry
from qsae_bench.specs import Cell, QuantizationSpec
from qsae_bench.taps import decoder_layers


@pytest.fixture(scope="module")
def tiny():
    return load_registry().model("tiny_gemma3")


def loaded(model, name, backend, **options):
    cell = Cell(model, QuantizationSpec(name, backend, options))
    return load(cell, "cpu", torch.float32).model


def matrices(model):
    """Shapes of the decoder's linear layers, from the reference."""
    return [
        m.weight.shape
        for layer in decoder_layers(model)
        for m in layer.modules()
        if hasattr(m, "in_features")
    ]


@given(bits=st.integers(2, 8), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_rounding_against_a_loop(bits, seed):
    weight = np.random.default_rng(seed).normal(size=(5, 7)).astype(np.float32)
    weight[3] = 0
    found = round_to_nearest(torch.from_numpy(weight), bits).numpy()
    for row, rounded in zip(weight, found, strict=True):
        scale = np.abs(row).max() / (2 ** (bits - 1) - 1)
        if scale == 0:
            assert (rounded == 0).all()
            continue
        assert len(set(np.round(rounded / scale, 3))) <= 2**bits - 1
        assert np.abs(rounded - row).max() <= scale / 2 * (1 + 1e-5)
        assert np.abs(rounded).max() == pytest.approx(np.abs(row).max(), rel=1e-6)


@pytest.mark.parametrize("options", [{}, {"bits": 1}, {"bits": 9}, {"bits": 4.0}, {"bits": 4, "group": 2}])
def test_wrong_rtn_options_take_one_line(tiny, options):
    with pytest.raises(QsaeError, match="backend rtn takes options") as caught:
        loaded(tiny, "mine", "rtn", **options)
    assert "\n" not in str(caught.value)


def test_reference_size(tiny):
    model = loaded(tiny, "reference", "none")
    assert bits_per_weight(model) == 32
    assert weight_bytes(model) == 4 * sum(
        p.numel() for p in model.parameters()
    )  # head and embedding are one


def test_rtn_size_by_hand(tiny):
    model = loaded(tiny, "rtn_int4", "rtn", bits=4)
    shapes = matrices(loaded(tiny, "reference", "none"))
    expected = sum(o * i * 4 + o * 16 for o, i in shapes) / sum(o * i for o, i in shapes)
    assert bits_per_weight(model) == pytest.approx(expected, rel=1e-12)


def test_int8_size_by_hand(tiny):
    model = loaded(tiny, "int8", "transformers", quant_method="bitsandbytes", load_in_8bit=True)
    shapes = matrices(loaded(tiny, "reference", "none"))
    # one byte a weight, one float32 scale a row
    expected = sum(o * i * 8 + o * 32 for o, i in shapes) / sum(o * i for o, i in shapes)
    assert bits_per_weight(model) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("double", [False, True])
def test_nf4_size_by_hand(tiny, double):
    model = loaded(
        tiny, "nf4", "transformers", quant_method="bitsandbytes", load_in_4bit=True,
        bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=double,
    )  # fmt: skip
    shapes = matrices(loaded(tiny, "reference", "none"))
    bits = 0
    for out, width in shapes:
        blocks = -(-out * width // 64)
        bits += out * width * 4 + 16 * 32  # packed weights, a codebook of 16 floats
        if double:  # absmax in 8 bits, its own float32 absmax a 256 blocks, codebook of 256, one offset
            bits += blocks * 8 + -(-blocks // 256) * 32 + 256 * 32 + 32
        else:
            bits += blocks * 32
    assert bits_per_weight(model) == pytest.approx(bits / sum(o * i for o, i in shapes), rel=1e-12)


def test_transformers_own_refusal_takes_one_line(tiny):
    with pytest.raises(QsaeError, match="quantization 'mine'") as caught:
        loaded(tiny, "mine", "transformers", quant_method="no such method")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("function", ["nowhere:f", "os:nothing_here"])
def test_missing_function_takes_one_line(tiny, function):
    cell = Cell(tiny, QuantizationSpec("mine", "python", {}, function))
    with pytest.raises(QsaeError, match="can't be imported") as caught:
        load(cell, "cpu", torch.float32)
    assert "\n" not in str(caught.value)
