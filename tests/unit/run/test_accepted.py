"""A cell of a running session beside the rows of the last accepted run."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pytest

from comparable_runs import measured, record, written
from qsae_bench.gate.cell_result import CellResult
from qsae_bench.gate.thresholds import Thresholds
from qsae_bench.registry.entries import load_registry
from qsae_bench.registry.specs import Cell
from qsae_bench.run.accepted import AcceptedComparison
from qsae_bench.stats.bootstrap import Estimate, Estimates, estimate

REGISTRY = load_registry()
MODEL = dataclasses.replace(REGISTRY.model("tiny_gemma3"), layers=(1, 3))
NF4 = Cell(MODEL, REGISTRY.quantization("nf4"))
REFERENCE = Cell(MODEL, REGISTRY.quantization("reference"))
VERDICT = {
    "metric": "kl_divergence", "layer": None, "status": "pass", "side": "max", "bound": 1.0, "source": "", "provisional": False,
    "tokens": 9, "reason": "",
}  # fmt: skip
SAES = {"tiny_gemma3": {str(layer): MODEL.sae_name(layer) for layer in MODEL.layers}}


def rows(noise=0.2, seed=1):
    return measured("nf4", "tiny_gemma3", noise, seed)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with one accepted night."""
    folder = tmp_path_factory.mktemp("qsae")
    (folder / "runs").mkdir()
    reference = record(measured("reference", "tiny_gemma3", 0.0))
    written(
        folder / "runs" / "night", [rows()], [reference], {"nf4": {"verdicts": [VERDICT], "recipe": "a" * 12}},
        saes=SAES, started="2026-01-01T03:00:00+00:00", environment={"cpu": "one", "versions": {"torch": "2.12.0"}},
    )  # fmt: skip
    return folder


def session(home, measurement, noise_floor=None, versions=None, **options):
    """What of a session the comparison reads."""
    given = {"strict": False, "accepted": "", "thresholds": Thresholds({})} | options
    said = []
    result = CellResult(measurement, Estimates({}, {}), (1,), 1)
    reference = CellResult(measurement, estimate(measurement, 0), (1,), 1, noise_floor=noise_floor)
    return SimpleNamespace(
        measured={NF4: result, REFERENCE: reference}, hardware="one", hardware_of=lambda cell: "one",
        environment={"cpu": "one", "versions": {"torch": versions or "2.12.0"}}, latest=home / "latest", said=said,
        corpora={"tiny_gemma3": SimpleNamespace(fingerprint=measurement.corpus_fingerprint, batch_size=4)},
        registry=SimpleNamespace(reference_of=lambda cell: REFERENCE),
        options=SimpleNamespace(
            qsae_dir=home, on_warning=said.append, selection=SimpleNamespace(protocol=""), **given
        ),
    )  # fmt: skip


def compared(home, measurement, **more):
    here = session(home, measurement, **more)
    comparison = AcceptedComparison(here)
    found = comparison(NF4)
    assert comparison(NF4) is found
    return found, here.said


def test_the_same_rows_are_not_tested(home):
    found, said = compared(home, rows())
    assert (found.run, found.tests, found.is_worse, found.not_compared) == ("night", 0, False, "")
    assert found.tokens == round(rows().rows.scalars["tokens"].sum()) and said == []


def test_more_noise_is_worse_and_says_so_once(home):
    found, (line,) = compared(home, rows(0.3), versions="2.13.0")
    assert ("perturbation_nsr", 3) in [(d.metric, d.layer) for d in found.worse]
    assert found.tests == 9
    assert (
        line.startswith("tiny_gemma3-nf4: worse than accepted: ")
        and "against run night of 2026-01-01" in line
    )
    # its recipe is the built-in one, not what the night's document says
    assert "torch 2.12.0 → 2.13.0" in found.moved and "entry or code aaaaaaaa → " in found.moved
    assert "the reference" in found.moved and found.moved.endswith("on this hardware")


def test_less_noise_is_not_worse(home):
    found, said = compared(home, rows(0.1))
    assert (found.tests, found.worse, said) == (9, (), [])


def test_rounding_is_not_worse(home):
    """Every column moved by a few parts in ten thousand, the cell's always for the worse."""
    own = rows()

    def moved(one):
        return dataclasses.replace(
            one, scalars={k: v if k.endswith("_r") or k == "tokens" else v * 1.0003 for k, v in one.scalars.items()}
        )  # fmt: skip

    numerics = dataclasses.replace(
        own, rows=moved(own.rows), layers={k: moved(one) for k, one in own.layers.items()}
    )
    found, said = compared(home, numerics)
    assert (found.worse, said) == ((), [])


def test_a_measured_noise_floor_is_believed(home):
    far = {key: Estimate(1e9) for key in estimate(rows(), 0).cell}
    layers = {k: {key: Estimate(1e9) for key in one} for k, one in estimate(rows(), 0).layers.items()}
    found, _ = compared(home, rows(0.3), noise_floor=Estimates(far, layers))
    assert {d.metric for d in found.worse} <= {"feature_survival"}  # which a floor has no value of here


def test_another_reference_is_said(home):
    found, said = compared(home, rows(0.3, seed=2))
    assert found.run == "night" and "another reference: " in found.not_compared
    assert (found.worse, said) == ((), [])


def test_rows_that_lack_a_column_are_said(home):
    here = session(home, rows(0.3))
    measurement = here.measured[NF4].measurement
    lacking = {key: column for key, column in measurement.rows.scalars.items() if key != "kl"}
    here.measured[NF4].measurement = dataclasses.replace(
        measurement, rows=dataclasses.replace(measurement.rows, scalars=lacking)
    )
    found = AcceptedComparison(here)(NF4)
    assert found.not_compared == "can't be compared with run night: its rows have no column 'kl'"


def test_another_sae_is_left_out(home):
    here = session(home, rows(0.3))
    other = dataclasses.replace(MODEL, sae=dataclasses.replace(MODEL.sae, folder="elsewhere"))
    cell = Cell(other, NF4.quantization)
    here.measured[cell] = here.measured[NF4]
    found = AcceptedComparison(here)(cell)
    assert found.tests == 3 and {d.layer for d in found.worse} <= {None}


def test_no_run_before_is_no_reason_to_warn(tmp_path):
    found, said = compared(tmp_path, rows())
    assert found.run == "" and "no accepted run of tiny_gemma3-nf4 on one in " in found.not_compared
    assert said == []


def test_what_has_no_quality_is_not_compared(home):
    here = session(home, rows(0.3))
    assert AcceptedComparison(here)(REFERENCE) is None
    assert AcceptedComparison(here)(Cell(MODEL, REGISTRY.quantization("int8"))) is None  # not measured
    here.measured[NF4].invalid_reason = "non-finite values"
    assert AcceptedComparison(here)(NF4) is None


@pytest.mark.parametrize(
    ("options", "fails"),
    [
        ({}, False), ({"strict": True}, True), ({"accepted": "fail"}, True), ({"accepted": "warn"}, False),
        ({"accepted": "warn", "strict": True}, False), ({"accepted": "fail", "strict": True}, True),
    ],
)  # fmt: skip
def test_what_a_worse_cell_does(home, options, fails):
    assert AcceptedComparison(session(home, rows(), **options)).fails is fails


def test_the_message_has_commands_for_both_runs(home):
    here = session(home, rows(0.3))
    comparison = AcceptedComparison(here)
    lines = comparison.message(NF4, comparison(NF4)).splitlines()
    assert lines[-2:] == [
        f"  more       qsae-bench compare {home}/latest:nf4 {home}/runs/night:nf4 --model tiny_gemma3",
        f"  accept it  qsae-bench thresholds update --from {home}/latest -k tiny_gemma3-nf4",
    ]


def test_a_cell_that_is_measured_again_is_compared_again(home):
    here = session(home, rows(0.3))
    comparison = AcceptedComparison(here)
    assert comparison(NF4).is_worse
    here.measured[NF4].measurement = rows()
    comparison.forget(NF4)
    assert not comparison(NF4).is_worse
