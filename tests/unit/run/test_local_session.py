"""Sessions on the embedded model: the store spares the forward, floors refuse."""

from __future__ import annotations

import numpy as np
import pytest
from transformers import AutoTokenizer

from builders import messages, write_session
from qsae_bench.gate.thresholds import Threshold, Thresholds
from qsae_bench.gate.verdict import GatedMetric
from qsae_bench.measure import evaluation
from qsae_bench.registry.entries import Selection, load_registry
from qsae_bench.registry.specs import local_folder
from qsae_bench.results.document import read_run
from qsae_bench.results.rows import read_rows
from qsae_bench.run import document
from qsae_bench.stats.bootstrap import Estimate, estimate

TOKENS = 2032


@pytest.fixture(scope="module")
def registry():
    return load_registry()


@pytest.fixture
def cells(registry):
    chosen = registry.select(
        Selection(models=("tiny_gemma3",), quantizations=("reference", "rtn_int4", "rtn_int3"))
    )
    return {cell.quantization.name: cell for cell in chosen}


@pytest.fixture
def session(registry, sessions):
    def make(thresholds=None, **options):
        settings = {"selection": Selection(tokens=TOKENS)} | options
        return sessions(registry, thresholds or Thresholds({}), **settings)

    make.said = sessions.said
    return make


def values(measured):
    found = {k: e.value for k, e in measured.estimates.cell.items()}
    for layer, estimates in measured.estimates.layers.items():
        found |= {f"{layer} {k}": e.value for k, e in estimates.items()}
    return found


def test_warm_store_never_runs_the_reference(session, cells, monkeypatch):
    cold = values(session().measure(cells["reference"]))
    monkeypatch.setattr(evaluation, "forward_batches", lambda *_: pytest.fail("the reference ran again"))
    warm = session()
    assert values(warm.measure(cells["reference"])) == cold
    assert warm.loaded_model.loaded is None  # not even loaded


def test_bits_per_byte_are_those_of_the_decoded_text(session, cells):
    one = session()
    measured = one.measure(cells["reference"])
    tokenizer = AutoTokenizer.from_pretrained(local_folder(cells["reference"].model.source))
    texts = tokenizer.batch_decode(one.model(cells["reference"]).corpus.ids, skip_special_tokens=True)
    bits = measured.estimates.cell["cross_entropy"].value * measured.tokens / np.log(2)
    expected = bits / sum(len(text.encode()) for text in texts)
    assert measured.estimates.cell["bits_per_byte"].value == pytest.approx(expected, rel=1e-12)
    assert list(measured.measurement.rows.scalars["bytes"]) == [len(text.encode()) for text in texts]


def test_without_a_store_nothing_is_kept(session, cells, tmp_path):
    one = session(reference_store=None)
    one.measure(cells["reference"])
    kept = one.store.folder
    assert any(kept.iterdir())
    one.close()
    assert not kept.exists()
    assert not (tmp_path / "references").exists()


def test_damaged_entry_is_named_and_rebuilt(session, cells, tmp_path):
    before = values(session().measure(cells["reference"]))
    (entry,) = (tmp_path / "references").iterdir()
    rows = entry / "rows-00000.safetensors"
    rows.write_bytes(rows.read_bytes()[:-7])
    assert values(session().measure(cells["reference"])) == before
    assert any("rows-00000.safetensors is damaged" in line and "rebuilt" in line for line in session.said)


def test_quantized_cell_alone_measures_its_reference_too(session, cells):
    one = session()
    one.require(cells["rtn_int3"])
    one.measure(cells["rtn_int3"])
    record = document.run_document(one)
    assert [cell.quantization for cell in record.cells] == ["reference", "rtn_int3"]
    assert one.measured[cells["rtn_int3"]].estimates.cell["kl_divergence"].low > 0


def test_threshold_below_the_noise_floor_is_refused(session, cells):
    bound = Threshold("kl_divergence", "max", 1.0, "test", table="defaults.rtn_int4")
    one = session(Thresholds({("defaults", "rtn_int4"): {"kl_divergence": bound}}), noise_floor=True)
    one.measure(cells["reference"])
    floor = one.measured[cells["reference"]].noise_floor
    assert 0 <= floor.cell["kl_divergence"].value < 1e-6
    assert messages(one, cells["rtn_int4"], ("kl_divergence",)) == ""
    # in float32 on a CPU numerics move next to nothing: pretend that they moved this much
    floor.cell["kl_divergence"] = Estimate(1.5, 1.0, 2.0)
    del one.measured[cells["rtn_int4"]].verdicts[:]
    message = messages(one, cells["rtn_int4"], ("kl_divergence",))
    assert "INVALID" in message
    assert "below the noise floor" in message
    assert [v.status for v in one.measured[cells["rtn_int4"]].verdicts] == ["invalid"]


def test_an_optional_gate_is_judged_where_a_threshold_bounds_it(session, cells):
    bound = Threshold("delta_p_rms", "max", 1e-12, "test", table="defaults.rtn_int4")
    one = session(Thresholds({("defaults", "rtn_int4"): {"delta_p_rms": bound}}))
    assert one.judge_gate(cells["rtn_int4"], GatedMetric("delta_p_mean", optional=True)) is None
    for _ in range(2):
        failure = one.judge_gate(cells["rtn_int4"], GatedMetric("delta_p_rms", optional=True))
        assert "delta_p_rms FAIL" in failure.message
    assert [v.metric for v in one.measured[cells["rtn_int4"]].verdicts] == ["delta_p_rms"]
    bound = Threshold("splice_excess", "max", 1.0, "test", table="defaults.rtn_int4")
    one = session(Thresholds({("defaults", "rtn_int4"): {"splice_excess": bound}}))
    assert "run with --splice" in messages(one, cells["rtn_int4"], ("splice_excess",), 3)


def test_gemma_3_hides_the_scale_of_a_whole_matrix(session, cells):
    """A property of the architecture, not a blind spot of ours: norms follow, so the scale cancels.

    A backend that gets one matrix's global scale wrong is invisible in Gemma 3 because the model it
    makes is the same model.
    """
    one = session()
    one.measure(cells["reference"])
    layer = one.load(cells["reference"]).model.model.layers[2]
    for name in ("mlp.down_proj", "self_attn.q_proj", "self_attn.v_proj"):
        weight = layer.get_submodule(name).weight.data
        weight.mul_(2)
        found = estimate(one._pass(cells["reference"], forward=True), replicates=20)
        assert 0 <= found.cell["kl_divergence"].value < 1e-10, name
        weight.div_(2)


def test_run_on_disk_says_what_the_session_measured(session, cells):
    one = session(splice=True, noise_floor=True)
    for cell in cells.values():
        one.require(cell)
        one.measure(cell)
    written, folder = write_session(one)
    read = read_run(folder)
    assert read == written
    for name, cell in cells.items():
        stored = estimate(read_rows(folder / "rows" / f"{cell.id}.parquet"))
        measured = one.measured[cell].estimates
        for key, e in stored.cell.items():
            assert e == measured.cell.get(key, e), (name, key)
        assert stored.layers == measured.layers
    three_bits = next(cell for cell in read.cells if cell.quantization == "rtn_int3")
    assert three_bits.metrics["kl_divergence"].low > 0
    assert [part.tokens for part in three_bits.stability] == sorted(p.tokens for p in three_bits.stability)
    for layer in three_bits.layers.values():
        assert len(layer.worst_features) == 20
        assert layer.metrics["splice_loss"].value > 0
    reference = next(cell for cell in read.cells if cell.quantization == "reference")
    assert reference.noise_floor is not None
    assert reference.metrics["kl_divergence"].value == 0
