"""Read with today's code what version 0.1.0 wrote before its modules became packages.

``tests/fixtures/before_packages/README.md`` says how the files were made.
"""

from __future__ import annotations

import json
import lzma
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from paths import ROOT
from qsae_bench import metrics
from qsae_bench.errors import QsaeError
from qsae_bench.gate.thresholds import Thresholds
from qsae_bench.machine import environment
from qsae_bench.measure import model_context
from qsae_bench.measure.store.local import LocalStore
from qsae_bench.registry.entries import load_registry
from qsae_bench.registry.specs import Selection, local_folder
from qsae_bench.results import journal
from qsae_bench.results.document import read_run
from qsae_bench.results.history.queries import series
from qsae_bench.results.history.store import History
from qsae_bench.results.history.url import default_url
from qsae_bench.results.rows import read_rows
from qsae_bench.results.run_folder import unfinished_runs
from qsae_bench.stats.bootstrap import estimate
from running import typed

WRITTEN = ROOT / "tests" / "fixtures" / "before_packages"
FINISHED, KILLED = "20261129T025742Z-d26e", "20261129T025810Z-d528"
KEY = "5c1979c10cf2450f01355f19"


@pytest.fixture(scope="module")
def qsae_dir(tmp_path_factory) -> Path:
    """A copy of the directory as the old version left it."""
    place = tmp_path_factory.mktemp("written") / "qsae"
    shutil.copytree(WRITTEN, place)
    for packed in place.rglob("*.xz"):
        packed.with_suffix("").write_bytes(lzma.decompress(packed.read_bytes()))
        packed.unlink()
    return place


@pytest.fixture(scope="module")
def run(qsae_dir) -> Path:
    return qsae_dir / "runs" / FINISHED


def test_a_run_document_is_shown(run):
    status, out, err = typed("show", run)
    assert (status, err) == (0, "")
    rows = [line.split() for line in out.splitlines()]
    assert ["reference", "4.5027", "32.00", "–", "pass"] in rows
    assert [
        "nf4",
        "4.5200",
        "+0.384",
        "±",
        "0.299",
        "3.70e-04",
        "0.9315",
        "4.24",
        "–",
        "inconclusive",
    ] in rows


def test_stored_rows_give_the_metrics_of_the_document(run):
    """The formulas are those of then: no number of an old run reads differently today."""
    for cell in read_run(run).cells:
        found = estimate(
            read_rows(run / "rows" / f"{cell.model}-{cell.quantization}.parquet"), replicates=20
        )
        values = {key: one.value for key, one in found.cell.items()}
        values |= {f"3 {key}": one.value for key, one in found.layers[3].items()}
        then = {key: one.value for key, one in cell.metrics.items()}
        then |= {f"3 {key}": one.value for key, one in cell.layers["3"].metrics.items()}
        common = sorted(values.keys() & then.keys())
        assert len(common) > 50
        for key in common:
            assert values[key] == pytest.approx(then[key], rel=1e-12, nan_ok=True) or then[key] is None, key


@pytest.mark.parametrize("form", ["html", "markdown", "json"])
def test_a_run_document_is_reported(run, tmp_path, form):
    page = tmp_path / "report"
    status, _, err = typed("report", run, "--format", form, "-o", page, "--history", "none")
    assert (status, err) == (0, "")
    assert FINISHED in page.read_text(encoding="utf-8")


def test_its_documents_are_unknown(run):
    status, out, _ = typed("show", run)
    assert status == 0
    assert "248 tokens in 8 sequences, documents unknown (sequence length 32)" in " ".join(out.split())
    assert read_rows(run / "rows" / "tiny_gemma3-nf4.parquet").rows.documents is None


def test_its_quantizations_are_compared(run):
    status, out, err = typed("compare", "--run", run, "--format", "json")
    assert (status, err) == (0, "")
    (overview,) = json.loads(out)["overview"]
    assert [one["name"] for one in overview["recipes"]] == ["reference", "nf4"]


def test_rows_of_other_formulas_are_not_compared(run, tmp_path):
    """Their residuals and SAEs are measured with sinks; today's rows are without."""
    other = tmp_path / "runs" / "other"
    shutil.copytree(run, other)
    document = json.loads((other / "run.json").read_text(encoding="utf-8"))
    (other / "run.json").write_text(json.dumps(document | {"run_id": "other"}), encoding="utf-8")
    status, out, err = typed("compare", run, other, "--format", "json")
    assert status == 2 and out == ""
    assert "metrics version 1" in err and "measure it again to compare it" in err


def test_thresholds_do_not_follow_from_other_formulas(run, tmp_path):
    thresholds = tmp_path / "thresholds.toml"
    thresholds.write_text('schema = 1\n[tiny_gemma3.nf4]\nkl_divergence = { max = 9, source = "x" }\n')
    status, out, err = typed("thresholds", "update", "--from", run, "--thresholds", thresholds, "--dry-run")
    assert status == 2 and out == ""
    assert "metrics version 1" in err


def test_a_history_is_read_and_knows_the_run(qsae_dir):
    arguments = ("history", "--qsae-dir", qsae_dir)
    status, out, err = typed(*arguments, "--model", "tiny_gemma3", "--metric", "kl_divergence")
    assert (status, err) == (0, "")
    assert FINISHED in out
    status, out, err = typed(*arguments, "import", qsae_dir / "runs")
    assert (status, err) == (0, "")
    assert out.strip().endswith("0 imported, 1 already there"), "the digest of the document is what it was"
    assert default_url(qsae_dir).endswith("history.sqlite")


def test_a_run_of_other_formulas_is_added_to_an_old_history_as_a_series_of_its_own(qsae_dir, run):
    document = read_run(run)
    assert document.metrics_version == 1
    newer = document.model_copy(update={"run_id": "20270101T000000Z-aaaa", "metrics_version": 2})
    with History.open(default_url(qsae_dir)) as history:
        assert history.add(newer)
        found = series(history, "tiny_gemma3", "kl_divergence", "nf4")
    assert [(one.metrics_version, len(one.runs)) for one in found] == [(1, 1), (2, 1)]


def test_a_journal_is_read(qsae_dir, run, monkeypatch):
    folder = qsae_dir / "runs" / KILLED
    assert [path for path, _ in unfinished_runs(qsae_dir)] == [folder]
    assert journal.cell_ids(folder) == ["tiny_gemma3-reference"]
    with pytest.raises(QsaeError, match="metrics version 1, today's is"):
        journal.read(folder, "tiny_gemma3-reference")
    # all but its formulas can be read still
    monkeypatch.setattr(metrics, "METRICS_VERSION", 1)
    stored = journal.read(folder, "tiny_gemma3-reference")
    record, (reference, _) = stored.entry.record, read_run(run).cells
    for key in ("cross_entropy", "perplexity", "bits_per_weight"):
        assert record.metrics[key] == reference.metrics[key]
    assert record.layers == reference.layers
    tests = {name.partition("::")[2] for name in stored.entry.tests}
    assert "test_fvu[tiny_gemma3-reference-layer3]" in tests
    result = stored.entry.reference.cell_result(stored.measurement())
    assert result.estimates.cell["perplexity"].value == reference.metrics["perplexity"].value
    assert len(result.measurement.rows) == 8


def test_a_stored_reference_is_used(qsae_dir, run, monkeypatch, sessions):
    """Its key is what it was: no pass builds it again, and the cell's numbers are those of then."""
    entry = qsae_dir / "references" / KEY
    manifest = json.loads((entry / "manifest.json").read_bytes())
    made_from = manifest["made_from"]
    registry = load_registry()
    weights = load_file(local_folder(registry.models["tiny_gemma3"].source) / "model.safetensors")
    save_file({"weight": weights["model.embed_tokens.weight"].float()}, entry / "head.safetensors")

    here = environment()
    versions = here["versions"] | {key: made_from[key] for key in ("torch", "transformers")}
    then = here | {"versions": versions, "gpus": [], "cpu": made_from["hardware"]}
    monkeypatch.setattr(model_context, "environment", lambda: then)
    monkeypatch.setattr(LocalStore, "write", lambda *_: pytest.fail("the reference is built again"))
    # the eight sequences of then are of one document, which would be refused today
    load = model_context.load_corpus
    monkeypatch.setattr(
        model_context, "load_corpus", lambda *given: replace(load(*given), documents=np.arange(8))
    )
    selection = Selection(
        models=("tiny_gemma3",), quantizations=("nf4",), layers="3", tokens=248, max_tokens=248,
        sequence_length=32, sequences_per_document=1000,
    )  # fmt: skip
    session = sessions(registry, Thresholds({}), qsae_dir=qsae_dir, selection=selection)
    (cell,) = registry.select(selection)
    session.require(cell)
    found = session.measure(cell).estimates
    nf4 = read_run(run).cells[1]
    for key, scope, recorded in (
        ("perplexity", found.cell, nf4.metrics), ("kl_divergence", found.cell, nf4.metrics),
        ("fvu_drift", found.layers[3], nf4.layers["3"].metrics),
    ):  # fmt: skip
        assert scope[key].value == pytest.approx(recorded[key].value, rel=0.02), key
    assert sessions.said == [], "nothing is damaged or built again"
