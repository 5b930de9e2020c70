"""What a quantization is made by: its entry's options, and the files of its own code."""

from __future__ import annotations

import dataclasses

from qsae_bench.registry.entries import load_registry
from qsae_bench.registry.specs import QuantizationSpec
from qsae_bench.run.recipe import recipe_digest, recipe_files


def test_a_recipe_changes_with_options_and_code_but_not_with_its_place(tmp_path):
    for place in ("here", "there"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "mine.py").write_text("def quantize(model, options): return model\n")
    spec = QuantizationSpec(
        "mine", "python", {"bits": 4}, function="mine:quantize", folder=str(tmp_path / "here")
    )
    before = recipe_digest(spec)
    assert before == recipe_digest(dataclasses.replace(spec, folder=str(tmp_path / "there"), default=True))
    assert before != recipe_digest(dataclasses.replace(spec, options={"bits": 3}))
    (tmp_path / "here" / "mine.py").write_text("def quantize(model, options): return None\n")
    assert before != recipe_digest(spec)


def test_built_in_recipes_differ():
    registry = load_registry()
    digests = {recipe_digest(registry.quantization(name)) for name in ("nf4", "fp4", "int8", "rtn_int4")}
    assert len(digests) == 4


def test_a_backend_of_an_installed_package(tmp_path, monkeypatch):
    """Its entry point says where the function is."""
    package = tmp_path / "elsewhere"
    package.mkdir()
    (package / "acmeq.py").write_text("x = 1\n")
    about = package / "acmeq-1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: acmeq\nVersion: 1\n")
    (about / "entry_points.txt").write_text("[qsae_bench.backends]\nacme = acmeq:quantize\n")
    monkeypatch.syspath_prepend(package)
    own = QuantizationSpec("mine", "acme")
    assert recipe_files(own) == [package / "acmeq.py"]
    assert recipe_files(dataclasses.replace(own, backend="other")) == []
