"""Recipes do to the weights what they say, and what is wrong with their options takes one line."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from builders import needs, one_line
from paths import ROOT
from qsae_bench.errors import CannotRun, QsaeError
from qsae_bench.models import backends
from qsae_bench.models.backends.rtn import round_to_nearest, stored_bits
from qsae_bench.models.loading import load, require
from qsae_bench.models.taps import decoder_layers
from qsae_bench.registry.backends import EXTRAS
from qsae_bench.registry.entries import load_registry
from qsae_bench.registry.specs import Cell, QuantizationSpec


@pytest.fixture(scope="module")
def tiny():
    return load_registry().model("tiny_gemma3")


def loaded(model, name, backend, **options):
    cell = Cell(model, QuantizationSpec(name, backend, options))
    return load(cell, "cpu", torch.float32).model


def first_linear(model):
    return decoder_layers(model)[0].mlp.gate_proj


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


@given(
    bits=st.integers(2, 8),
    seed=st.integers(0, 99),
    group=st.sampled_from([0, 2, 3, 6]),
    symmetric=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_rounding_in_groups_against_a_loop(bits, seed, group, symmetric):
    rng = np.random.default_rng(seed)
    weight = (rng.normal(size=(4, 6)) + 0.5).astype(np.float32)
    weight[3] = 0
    found = round_to_nearest(torch.from_numpy(weight), bits, group, symmetric).double().numpy()
    size = group or 6
    for row in range(4):
        for start in range(0, 6, size):
            part = weight[row, start : start + size].astype(np.float64)
            rounded = found[row, start : start + size]
            low, high = min(part.min(), 0), max(part.max(), 0)
            step = np.abs(part).max() / (2 ** (bits - 1) - 1) if symmetric else (high - low) / (2**bits - 1)
            if step == 0:
                assert (rounded == 0).all()
                continue
            on_grid = rounded / step
            assert np.abs(on_grid - np.rint(on_grid)).max() < 1e-3  # multiples of the step, 0 among them
            # nearest, but for the ends of an asymmetric grid, which its integer zero point moves
            assert np.abs(rounded - part).max() <= step * (0.5 if symmetric else 1.0) * (1 + 1e-4)
            assert np.ptp(np.rint(on_grid)) <= 2**bits - 1


def test_a_smaller_group_is_nearer_and_costs_its_scales():
    weight = torch.from_numpy(np.random.default_rng(0).normal(size=(32, 64)).astype(np.float32))
    errors = [float((round_to_nearest(weight, 4, g) - weight).square().sum()) for g in (8, 16, 32, 0)]
    assert errors == sorted(errors)
    assert stored_bits(weight, 4, 16) == 32 * 64 * 4 + 32 * 4 * 16
    assert stored_bits(weight, 4, 16, symmetric=False) == 32 * 64 * 4 + 32 * 4 * (16 + 4)
    assert stored_bits(weight, 3) == 32 * 64 * 3 + 32 * 16


@needs("optimum.quanto")
def test_eight_bits_are_quantos_to_the_bit(tiny):
    """An independent library's symmetric int8 a row is the control's."""
    theirs = first_linear(loaded(tiny, "quanto_int8", "quanto", weights="qint8")).weight.dequantize()
    ours = first_linear(loaded(tiny, "rtn_int8", "rtn", bits=8)).weight
    assert torch.equal(theirs, ours)


@pytest.mark.parametrize(
    "options",
    [
        {}, {"bits": 1}, {"bits": 9}, {"bits": 4.0}, {"bits": True}, {"bits": 4, "group": 2},
        {"bits": 4, "group_size": -1}, {"bits": 4, "symmetric": 1}, {"bits": 4, "group_size": 2.0},
    ],
)  # fmt: skip
def test_wrong_rtn_options_take_one_line(tiny, options):
    with pytest.raises(QsaeError, match="backend rtn takes options") as caught:
        loaded(tiny, "mine", "rtn", **options)
    one_line(caught.value)


def test_a_group_must_divide_a_row(tiny):
    with pytest.raises(QsaeError, match="group_size 50 does not divide a row of 192") as caught:
        loaded(tiny, "mine", "rtn", bits=4, group_size=50)
    one_line(caught.value)


@pytest.mark.parametrize(
    ("backend", "options", "said"),
    [
        ("transformers", {"quant_method": "no such method"}, "Unknown quantization type"),
        pytest.param("hqq", {"nbits": 9}, "hqq does not take", marks=needs("hqq")),
        pytest.param("hqq", {"bits": 4}, "hqq does not take", marks=needs("hqq")),
        pytest.param(
            "quanto", {"weigths": "qint8"}, "did you mean 'weights'", marks=needs("optimum.quanto")
        ),
        pytest.param("quanto", {"weights": "int8"}, "did you mean 'qint8'", marks=needs("optimum.quanto")),
        pytest.param(
            "torchao", {"config": "Int8WeightOnly"}, "did you mean 'Int8WeightOnlyConfig'",
            marks=needs("torchao"),
        ),
        pytest.param("torchao", {}, "torchao has no config ''", marks=needs("torchao")),
        pytest.param(
            "torchao", {"config": "Int8WeightOnlyConfig", "groups": 3}, "does not take", marks=needs("torchao")
        ),
    ],
)  # fmt: skip
def test_what_a_library_refuses_takes_one_line(tiny, backend, options, said):
    with pytest.raises(QsaeError, match=said) as caught:
        loaded(tiny, "mine", backend, **options)
    assert "'mine'" in one_line(caught.value)


@needs("torchao")
def test_a_granularity_is_named():
    from torchao.quantization import PerRow

    from qsae_bench.models.backends.torchao import named_config

    config = named_config("mine", {"config": "Float8WeightOnlyConfig"})
    assert type(config).__name__ == "Float8WeightOnlyConfig"
    config = named_config(
        "mine", {"config": "Float8DynamicActivationFloat8WeightConfig", "granularity": "PerRow"}
    )
    assert any(isinstance(one, PerRow) for one in config.granularity)


@pytest.mark.parametrize(
    ("backend", "options", "module", "extra"),
    [
        ("hqq", {}, "hqq", "qsae-bench[hqq]"), ("quanto", {}, "optimum.quanto", "qsae-bench[quanto]"),
        ("torchao", {}, "torchao", "qsae-bench[torchao]"),
        ("transformers", {"quant_method": "awq"}, "gptqmodel", "qsae-bench[gptq]"),
        ("transformers", {"quant_method": "bitsandbytes"}, "bitsandbytes", "pip install bitsandbytes"),
    ],
)  # fmt: skip
def test_a_missing_library_is_named_with_its_extra(tiny, monkeypatch, backend, options, module, extra):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        backends.importlib.util, "find_spec", lambda name: None if name == module else real(name)
    )
    with pytest.raises(CannotRun, match=f"'mine' needs {module}") as caught:
        require(Cell(tiny, QuantizationSpec("mine", backend, options)), "cpu")
    assert extra in one_line(caught.value)


def test_every_extra_that_a_message_names_exists():
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert set(EXTRAS.values()) - {""} <= set(project["project"]["optional-dependencies"])


@pytest.mark.parametrize("function", ["nowhere:f", "os:nothing_here"])
def test_missing_function_takes_one_line(tiny, function):
    cell = Cell(tiny, QuantizationSpec("mine", "python", {}, function))
    with pytest.raises(QsaeError, match="can't be imported") as caught:
        load(cell, "cpu", torch.float32)
    one_line(caught.value)


# -- a function of the user's own --------------------------------------------------------------------

MINE = """
import torch

def quantize(model, options):
    weight = model.model.layers[0].mlp.gate_proj.weight
    weight.data = weight.data.mul(2 ** options["bits"]).round().div(2 ** options["bits"])
    return model

def load(model_spec, options, device):
    from transformers import AutoModelForCausalLM
    from qsae_bench.specs import source_path
    model = AutoModelForCausalLM.from_pretrained(source_path(model_spec), dtype=torch.float32).to(device)
    return quantize(model, options)

def one(model):
    return model

def nothing(model, options):
    return None

def text(model, options):
    return "a model"

def breaks(model, options):
    raise ValueError(f"no kernel for {options}")

broken = 3
"""


@pytest.fixture
def beside(tmp_path):
    """``beside(function)`` -> a cell of an entry whose module lies beside its file."""
    (tmp_path / "mine_backend.py").write_text(MINE, encoding="utf-8")

    def cell(model, function):
        entry = QuantizationSpec(
            "mine", "python", {"bits": 4}, f"mine_backend:{function}", folder=str(tmp_path)
        )
        return Cell(model, entry)

    return cell


@pytest.mark.parametrize("function", ["quantize", "load"])
def test_both_kinds_of_function_get_what_they_are_called_with(tiny, beside, function):
    model = load(beside(tiny, function), "cpu", torch.float32).model
    on_grid = first_linear(model).weight * 16
    assert torch.equal(on_grid, on_grid.round())


@pytest.mark.parametrize(
    ("function", "said"),
    [
        ("one", "must be quantize"), ("broken", "must be quantize"), ("nothing", "returned None, not a model"),
        ("text", "returned str, not a model"),
        ("breaks", r"ValueError: no kernel for \{'bits': 4\} \(mine_backend.py:25\)"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_users_function_takes_one_line(tiny, beside, function, said):
    with pytest.raises(QsaeError, match=said) as caught:
        load(beside(tiny, function), "cpu", torch.float32)
    assert "mine" in one_line(caught.value)


def test_a_package_registers_its_backend(tiny, tmp_path, monkeypatch):
    """As an installed distribution does: metadata on the path, nothing of ours named."""
    (tmp_path / "acme_backend.py").write_text(MINE, encoding="utf-8")
    info = tmp_path / "acme-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[qsae_bench.backends]\nacme = acme_backend:quantize\n")
    monkeypatch.syspath_prepend(tmp_path)
    entry = tmp_path / "mine.toml"
    entry.write_text('[quantizations.mine]\nbackend = "acme"\noptions = { bits = 4 }\n')
    spec = load_registry([entry]).quantization("mine")
    on_grid = first_linear(load(Cell(tiny, spec), "cpu", torch.float32).model).weight * 16
    assert torch.equal(on_grid, on_grid.round())
    entry.write_text('[quantizations.mine]\nbackend = "acmee"\n')
    with pytest.raises(QsaeError, match="did you mean 'acme'"):
        load_registry([entry])


def test_two_entries_may_each_have_a_file_of_one_name(tiny, tmp_path):
    grids = {}
    for name, bits in (("a", 2), ("b", 5)):
        (tmp_path / name).mkdir()
        text = MINE.replace('options["bits"]', str(bits))
        (tmp_path / name / "mine_backend.py").write_text(text, encoding="utf-8")
        entry = QuantizationSpec(name, "python", {}, "mine_backend:quantize", folder=str(tmp_path / name))
        weight = first_linear(load(Cell(tiny, entry), "cpu", torch.float32).model).weight
        grids[name] = torch.equal(weight * 4, (weight * 4).round())
    assert grids == {"a": True, "b": False}


def test_a_packed_size_is_of_the_whole_matrix():
    weight = torch.nn.Parameter(torch.zeros(8, 8))
    with pytest.raises(QsaeError, match="a whole matrix of 64 weights") as caught:
        backends.simulates(weight, 4)
    one_line(caught.value)
    backends.simulates(weight, 64)


def test_a_recipe_may_compute_in_other_numbers_on_a_gpu(tiny, tmp_path):
    from qsae_bench.models.loading import dtype_of

    awq = load_registry().quantization("awq_int4")
    assert dtype_of(Cell(tiny, awq), "cuda") == torch.float16
    assert dtype_of(Cell(tiny, awq), "cpu") == torch.float32
    assert dtype_of(Cell(tiny, QuantizationSpec("nf4", "transformers")), "auto") == torch.bfloat16
    entry = tmp_path / "mine.toml"
    entry.write_text('[quantizations.mine]\nbackend = "rtn"\ngpu_dtype = "half"\n')
    with pytest.raises(QsaeError, match="gpu_dtype must be"):
        load_registry([entry])
