"""What a quantization backend can get wrong, planted: each is caught, and said in one line."""

from __future__ import annotations

import dataclasses
import sys
import traceback

import pytest
import torch

from builders import messages, one_line, threshold
from paths import ROOT
from qsae_bench.errors import QsaeError
from qsae_bench.gate.threshold_file import load_thresholds
from qsae_bench.gate.thresholds import Thresholds
from qsae_bench.registry.entries import Selection, load_registry
from qsae_bench.registry.specs import Cell
from qsae_bench.report.terminal import summary_lines
from qsae_bench.run import document
from qsae_bench.run.local_session import LocalSession
from qsae_bench.run.session import SessionOptions

FAULTS = ROOT / "tests" / "support" / "faults"


@pytest.fixture(scope="module")
def registry():
    return load_registry([FAULTS / "faults.toml"])


@pytest.fixture(scope="module")
def session(registry, tmp_path_factory):
    """One session for all faults: they must not get in each other's way either."""
    folder = tmp_path_factory.mktemp("planted")
    said = []
    opened = LocalSession(
        SessionOptions(
            registry, load_thresholds(ROOT / "thresholds.toml"), folder, "test", on_warning=said.append,
            selection=Selection(tokens=2032),
        )
    )  # fmt: skip
    opened.said = said
    yield opened
    opened.close()


@pytest.fixture
def planted_cell(registry):
    return lambda name: Cell(registry.model("tiny_gemma3"), registry.quantization(name))


def summary(session):
    """The terminal's summary, unwrapped."""
    return " ".join(line.strip() for line in summary_lines(document.run_document(session)))


def test_a_backend_that_does_nothing_is_invalid_and_not_perfect(session, planted_cell):
    session.require(planted_cell("nothing"))
    measured = session.measure(planted_cell("nothing"))
    assert measured.estimates.cell["kl_divergence"].value == 0  # what would pass every gate
    assert measured.quantized.share == 0
    assert "left the model unquantized" in messages(session, planted_cell("nothing"), ("kl_divergence",))
    assert {v.status for v in measured.verdicts} == {"invalid"}
    assert "invalid" in summary(session)


def test_half_the_layers_are_reported_by_share_and_by_name(session, planted_cell):
    session.require(planted_cell("half"))
    measured = session.measure(planted_cell("half"))
    assert measured.quantized.share == 0.5
    assert measured.quantized.simulated
    assert measured.quantized.skipped == ("everything in layers 3–5",)
    text = summary(session)
    assert (
        "half: 50% of the decoder's weights are quantized; left as they were: everything in layers 3–5"
        in text
    )
    record = next(c for c in document.run_document(session).cells if c.quantization == "half")
    assert (record.quantized.share, record.metrics["quantized_share"].value) == (0.5, 0.5)


def test_a_threshold_on_the_share_is_gated(session, planted_cell, monkeypatch):
    bound = threshold(0.99, "min", "quantized_share")
    thresholds = Thresholds({("tiny_gemma3", "half"): {"quantized_share": bound}})
    monkeypatch.setattr(session, "judge", dataclasses.replace(session.judge, thresholds=thresholds))
    assert "quantized_share FAIL" in messages(session, planted_cell("half"), ("quantized_share",))


def test_scales_that_are_one_percent_off_are_caught_where_behaviour_hides_them(
    session, planted_cell, registry, monkeypatch
):
    """Gemma 3 normalises behind its matrices: every gate on behaviour passes at rtn_int8's own bounds."""
    one = planted_cell("scales_off")
    session.require(one)
    thresholds = load_thresholds(ROOT / "thresholds.toml")
    bound = thresholds.find("tiny_gemma3", "rtn_int8", "kl_divergence")
    assert session.measure(one).estimates.cell["kl_divergence"].high < bound.bound  # hidden indeed
    tables = {
        ("defaults", "scales_off"): thresholds.tables["defaults", "rtn_int8"],
        ("tiny_gemma3", "scales_off"): {"kl_divergence": bound},
    }
    monkeypatch.setattr(session, "judge", dataclasses.replace(session.judge, thresholds=Thresholds(tables)))
    message = messages(session, one, ("kl_divergence", "weight_gain_error"))
    assert "weight_gain_error FAIL" in message
    assert "kl_divergence" not in message
    # and without any threshold, as a backend's author has none, the run says so
    assert "scales_off: scales: its matrices are on average 1% off" in summary(session)


def test_a_kernel_that_is_wrong_for_one_row_alone_is_red(session, planted_cell, monkeypatch):
    """Whatever reads whole texts is as good as rtn_int8's; what it writes is noise."""
    one, right = planted_cell("noise_for_one_row"), planted_cell("rtn_int8")
    given = session.judge.thresholds.tables
    tables = {
        (owner, one.quantization.name, *layer): bounds
        for (owner, name, *layer), bounds in given.items() if name == right.quantization.name
    }  # fmt: skip
    monkeypatch.setattr(session, "judge", dataclasses.replace(session.judge, thresholds=Thresholds(tables)))
    gates = ("kl_divergence", "top1_agreement", "weight_gain_error", "decode_kl_divergence")
    session.require(one)
    message = messages(session, one, gates)
    assert "decode_kl_divergence FAIL" in message and message.count("FAIL") == 1
    found, good = (session.measure(cell).estimates.cell for cell in (one, right))
    assert found["kl_divergence"] == good["kl_divergence"]
    assert found["decode_kl_divergence"].value > 1 and good["decode_kl_divergence"].value < 1e-9


def test_the_shift_of_the_weights_against_the_weights_themselves(session, planted_cell):
    """The probe's estimates against ‖W_q − W_r‖² / ‖W_r‖² and ⟨W_q, W_r⟩ / ‖W_r‖² from the matrices."""
    from qsae_bench.models.backends import block_linears

    reference = Cell(planted_cell("half").model, session.registry.quantizations["reference"])
    theirs = [m.weight.double().clone() for m in block_linears(session.load(reference).model)]
    for name in ("rtn_int3", "rtn_int4"):
        measured = session.measure(planted_cell(name))
        mine = [m.weight.double() for m in block_linears(session.load(planted_cell(name)).model)]
        pairs = list(zip(mine, theirs, strict=True))
        nsr = sum(float((q - r).square().sum() / r.square().sum()) for q, r in pairs) / len(pairs)
        gain = sum(float((q * r).sum() / r.square().sum()) for q, r in pairs) / len(pairs)
        values = measured.quantized.values
        assert values["weight_nsr"] == pytest.approx(nsr, rel=0.05)
        assert values["weight_gain_error"] == pytest.approx(abs(gain - 1), abs=0.003)


@pytest.mark.parametrize(
    ("fault", "share", "simulated"),
    [("transposed", 0, False), ("in_two_parts", 0, False), ("rounds_as_it_multiplies", 1, True)],
)
def test_only_what_moved_counts_as_quantized(session, planted_cell, fault, share, simulated):
    """The same floats stored otherwise are no quantization; the same floats multiplied otherwise are."""
    measured = session.measure(planted_cell(fault))
    assert (measured.quantized.share, measured.quantized.simulated) == (share, simulated)
    assert bool(measured.invalid_reason) == (share == 0)
    if share == 0:
        assert measured.estimates.cell["kl_divergence"].value < 1e-9


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("elsewhere", "model.embed_tokens.weight on meta; cpu was asked for"),
        ("one_matrix_elsewhere", "layers.4.mlp.up_proj.weight on meta"),
        ("in_bfloat16", "its input embedding in bfloat16, not in float32"),
        ("blocks_in_bfloat16", "layer 0's self_attn.q_proj.weight in bfloat16"),
        ("more_tokens", "vocabulary 2624, the reference's is 2560"),
        ("fewer_layers", "decoder blocks 5, the reference's is 6"),
        (
            "fails_forward",
            r"first forward failed: NotImplementedError: no kernel for this shape \(planted.py:",
        ),
    ],
)
def test_another_model_than_was_asked_for_is_refused(session, planted_cell, fault, said):
    with pytest.raises(QsaeError, match=said) as caught:
        session.measure(planted_cell(fault))
    assert f"tiny_gemma3-{fault}" in one_line(caught.value)
    kept = session.refused[planted_cell(fault)]  # must not keep the frames that hold the model
    assert kept.__context__ is None
    assert not [f for f in traceback.extract_tb(kept.__traceback__) if f.filename.endswith("loading.py")]
    with pytest.raises(QsaeError, match=said):  # at once, the second time
        session.measure(planted_cell(fault))


def test_a_leak_is_said_with_what_it_holds(session, planted_cell):
    session.require(planted_cell("leaks"))
    session.measure(planted_cell("leaks"))
    (planted,) = (m for name, m in sys.modules.items() if name.endswith("_planted"))  # beside its entry
    model_bytes = 15_258_624
    assert sum(t.nbytes for t in planted.HELD[0].values()) == model_bytes
    session.release()  # as the next cell's load does
    (warning,) = session.warnings[planted_cell("leaks")]
    assert "15.3 MB were not given back" in warning
    assert warning in session.said
    assert "tiny_gemma3-leaks: 15.3 MB" in summary(session)
    assert session.costs(planted_cell("leaks"))["peak_memory_bytes"] > 0
    assert planted_cell("rtn_int3") not in session.warnings  # nothing of its own
    planted.HELD.clear()


def test_a_cell_after_all_faults_measures_what_it_did_before(session, planted_cell, registry, tmp_path):
    fresh = LocalSession(
        SessionOptions(registry, Thresholds({}), tmp_path, "test", selection=Selection(tokens=2032))
    )
    alone = fresh.measure(planted_cell("rtn_int3")).estimates
    fresh.close()
    assert (
        session.measure(planted_cell("rtn_int3")).estimates.cell["kl_divergence"]
        == alone.cell["kl_divergence"]
    )


def test_a_matrix_of_another_scale_or_place_is_named(session, planted_cell):
    for name, said in (
        ("scale_doubled", "2.mlp.gate_proj most: 2 times the reference's"),
        ("layers_swapped", "times the reference's. A wrong scale, another layer's weights"),
    ):
        session.require(planted_cell(name))
        session.measure(planted_cell(name))
        assert said in summary(session)
    matrix, gain = session.measure(planted_cell("layers_swapped")).quantized.furthest
    assert matrix.split(".")[0] in "23"
    assert abs(gain) < 0.2


def test_rows_of_a_matrix_are_told_apart_by_bits_alone():
    from qsae_bench.models.weights.inspection import row_checksums

    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        weight = torch.randn(5, 33, generator=torch.Generator().manual_seed(0)).to(dtype)
        before = row_checksums(weight)
        other = weight.clone()
        other[2, 7] = (
            torch.nextafter(other[2, 7].float(), torch.tensor(9.0)).to(dtype)
            if dtype != torch.bfloat16
            else other[2, 7] * 1.01
        )
        other[4, [0, 1]] = other[4, [1, 0]]
        assert (row_checksums(other) != before).tolist() == [False, False, True, False, True]
        assert torch.equal(row_checksums(weight.clone()), before)
        assert torch.equal(torch.cat([row_checksums(weight[:2]), row_checksums(weight[2:])]), before)
