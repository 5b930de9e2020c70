"""Missing libraries are named with their extras; a packed size is declared of a whole matrix."""

from __future__ import annotations

import importlib.util
import inspect
import tomllib

import pytest
import torch

from builders import one_line
from paths import ROOT
from qsae_bench.errors import CannotRun, QsaeError
from qsae_bench.models import backends
from qsae_bench.models.loading import require
from qsae_bench.registry.backends import EXTRAS
from qsae_bench.registry.specs import Cell, QuantizationSpec


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
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert set(EXTRAS.values()) - {""} <= set(project["project"]["optional-dependencies"])


def test_a_packed_size_is_of_the_whole_matrix():
    weight = torch.nn.Parameter(torch.zeros(8, 8))
    with pytest.raises(QsaeError, match="a whole matrix of 64 weights") as caught:
        backends.simulates(weight, 4)
    one_line(caught.value)
    backends.simulates(weight, 64)


def test_users_files_may_pass_what_replaces_a_layer_by_name():
    """The names of parameters are promised as the functions are."""
    assert list(inspect.signature(backends.replace_linears).parameters) == ["model", "made"]
