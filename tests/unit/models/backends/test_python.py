"""A function of the user's own quantizes; what is wrong with it takes one line."""

from __future__ import annotations

import pytest
import torch

from builders import one_line
from qsae_bench.errors import QsaeError
from qsae_bench.models.loading import load
from qsae_bench.models.taps import decoder_layers
from qsae_bench.registry.entries import load_registry
from qsae_bench.registry.specs import Cell, QuantizationSpec


def first_linear(model):
    return decoder_layers(model)[0].mlp.gate_proj


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
def user_cell(tmp_path):
    """``user_cell(model, function)`` -> a cell of an entry whose module lies next to its file."""
    (tmp_path / "mine_backend.py").write_text(MINE, encoding="utf-8")

    def cell(model, function):
        entry = QuantizationSpec(
            "mine", "python", {"bits": 4}, f"mine_backend:{function}", folder=str(tmp_path)
        )
        return Cell(model, entry)

    return cell


@pytest.mark.parametrize("function", ["nowhere:f", "os:nothing_here"])
def test_missing_function_takes_one_line(tiny, function):
    cell = Cell(tiny, QuantizationSpec("mine", "python", {}, function))
    with pytest.raises(QsaeError, match="can't be imported") as caught:
        load(cell, "cpu", torch.float32)
    one_line(caught.value)


@pytest.mark.parametrize("function", ["quantize", "load"])
def test_both_kinds_of_function_get_what_they_are_called_with(tiny, user_cell, function):
    model = load(user_cell(tiny, function), "cpu", torch.float32).model
    on_grid = first_linear(model).weight * 16
    assert torch.equal(on_grid, on_grid.round())


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("one", "must be quantize"), ("broken", "must be quantize"), ("nothing", "returned None, not a model"),
        ("text", "returned str, not a model"),
        ("breaks", r"ValueError: no kernel for \{'bits': 4\} \(mine_backend.py:25\)"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_users_function_takes_one_line(tiny, user_cell, function, message):
    with pytest.raises(QsaeError, match=message) as caught:
        load(user_cell(tiny, function), "cpu", torch.float32)
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
