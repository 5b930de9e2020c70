"""A comparison of two quantizations of the embedded model, on all its tokens."""

from __future__ import annotations

from builders import write_session
from comparable_runs import as_json


def test_nf4_against_fp4_on_the_embedded_model(tmp_path):
    """The residual stream and the SAEs tell the two apart at every layer; nothing speaks for FP4."""
    from qsae_bench.gate.thresholds import Thresholds
    from qsae_bench.registry.entries import Selection, load_registry
    from qsae_bench.run.local_session import LocalSession
    from qsae_bench.run.session import SessionOptions

    registry = load_registry()
    session = LocalSession(SessionOptions(registry, Thresholds({}), tmp_path, "test"))
    for cell in registry.select(
        Selection(models=("tiny_gemma3",), quantizations=("reference", "nf4", "fp4"))
    ):
        session.require(cell)
        session.measure(cell)
    _, folder = write_session(session)
    session.close()
    (one,) = as_json("nf4", "fp4", at=folder)["comparisons"]
    assert one["sequences"] == 256
    said = {(d["metric"], d["layer"]): d["verdict"] for d in one["differences"]}
    for layer in (1, 3, 4):
        assert said["fvu_drift", layer] == said["perturbation_nsr", layer] == "better"
    assert "worse" not in said.values()
    kl = next(d for d in one["differences"] if d["metric"] == "kl_divergence")
    # heavy tails: a few positions carry most of the mean, so 256 sequences show its sign and no more
    assert kl["difference"] < 0
