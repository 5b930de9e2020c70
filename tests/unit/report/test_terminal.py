"""What the terminal summary and `qsae-bench show` say, from documents made by hand."""

from __future__ import annotations

import json
from functools import partial

import pytest

import documents
from documents import run_document
from qsae_bench.app.cli.main import main
from qsae_bench.metrics import METRICS_VERSION
from qsae_bench.report.terminal import summary_lines, verdict_word


def value(x, half=None):
    return {"value": x} if half is None else {"value": x, "low": x - half, "high": x + half}


def cell(quantization, fvu=0.1, bos=0.01, drift=0.0, **changes):
    layer = {
        "fvu": value(fvu, 0.001), "fvu_scalar_bos": value(bos, 0.0001), "fvu_drift": value(drift, 0.001),
        "l0": value(40.0), "resolution_ratio": value(0.5), "feature_survival": value(0.9),
    }  # fmt: skip
    return {
        "model": "m", "quantization": quantization, "status": "measured",
        "metrics": {"perplexity": value(9.0), "perplexity_increase_pct": value(1.25, 0.5)},
        "layers": {"3": {"metrics": layer}},
    } | changes  # fmt: skip


def document(*cells):
    return run_document(cells=list(cells), corpus={})


def text(*cells):
    return "\n".join(summary_lines(document(*cells)))


verdict = partial(documents.verdict, "fvu_drift", 3)


def test_rows_hold_value_and_interval():
    out = text(cell("reference"), cell("nf4", drift=0.02))
    row = next(line for line in out.splitlines() if line.startswith("nf4") and "9.0000" in line)
    assert "+1.250 ± 0.500" in row
    assert "+0.02000 ± 0.00100" in out
    assert max(len(line) for line in out.splitlines()) <= 100


def test_gravest_verdict_is_shown():
    verdicts = [verdict("pass"), verdict("inconclusive"), verdict("fail")]
    row = next(line for line in text(cell("nf4", verdicts=verdicts)).splitlines() if line.startswith("nf4"))
    assert row.split()[-1] == "fail"


def test_a_verdict_names_what_it_judged_if_that_is_not_everything():
    def word(*verdicts, unjudged=()):
        return verdict_word(
            document(cell("nf4", verdicts=list(verdicts), unjudged=list(unjudged))).cells[0]
        )

    loss, survival = {"metric": "kl_divergence"}, {"metric": "feature_survival", "layer": 3}
    assert word(verdict("pass"), unjudged=[loss, survival]) == "pass (fvu_drift only)"
    assert word(verdict("suspicious"), unjudged=[loss]) == "suspicious (fvu_drift only)"
    assert word(verdict("pass")) == "pass"
    assert word(verdict("fail"), unjudged=[loss]) == "fail"
    other_layer = {"metric": "fvu_drift", "layer": 4}
    assert word(verdict("pass"), unjudged=[loss, other_layer]) == "pass (1 of 3 gates)"
    assert word(unjudged=[loss]) == "–"


@pytest.mark.parametrize(
    ("declared", "stored", "named"),
    [(4.13, 4.24, False), (4.13, 3.07, True), (8.1, 7.07, True), (8.1, 8.07, False), (3.7, 4.21, False),
     (4.13, 8.1, True), (0.0, 8.1, False)],
)  # fmt: skip
def test_other_bits_than_the_registry_has_are_named(declared, stored, named):
    quantized = {"share": 1.0, "simulated": False, "declared_bits": declared}
    metrics = {"bits_per_weight": {"value": stored}}
    out = " ".join(text(cell("nf4", quantized=quantized, metrics=metrics)).split())
    said = f"note: nf4: {stored:.2f} bits/w are stored, its registry entry has stored_bits = {declared:g}"
    assert (said in out) is named


def test_bounds_of_other_text_are_named_once_a_cell():
    where = "tiny in sequences of 128"
    verdicts = [verdict("pass", other_text=where), verdict("pass", other_text=where), verdict("pass")]
    out = " ".join(text(cell("nf4", verdicts=verdicts)).split())
    assert out.count("other text") == 1
    assert f"note: nf4: thresholds measured on other text: {where}: fvu_drift" in out


def test_a_ruined_model_and_a_foreign_sae_are_named():
    ruined = cell("nf4", metrics={"kl_divergence": {"value": 11.4}, "top1_agreement": {"value": 0.0247}})
    out = " ".join(text(cell("reference", fvu=1.19), ruined).split())
    assert "note: nf4 is no working model: kl_divergence 11.4, top1_agreement 0.0247" in out
    assert "note: reference is not explained by its SAE: fvu 1.19 at layer 3" in out
    assert "no working model" not in text(cell("nf4", metrics={"kl_divergence": {"value": 0.1}}))


def test_broken_cell_is_invalid_even_unjudged():
    out = text(cell("nf4", reason="non-finite values", metrics={"perplexity": value(None)}))
    row = next(line for line in out.splitlines() if line.startswith("nf4"))
    assert row.split()[-1] == "invalid"
    assert "not finite" in row


def test_cells_that_did_not_run_take_one_line_a_reason():
    skipped = [
        {"model": "big", "quantization": q, "status": "skipped", "reason": "big needs a GPU"}
        for q in ("reference", "int8")
    ]
    assert text(*skipped).splitlines() == ["big: skipped (reference, int8): big needs a GPU"]


def test_definitions_that_disagree_get_a_sentence():
    """FVU up by a fifth, the study's by a thousandth: a BOS of huge norm hides it."""
    out = text(cell("reference"), cell("nf4", fvu=0.12, drift=0.02, bos=0.01001))
    note = " ".join(out[out.index("note: ") :].split())
    assert "nf4: the definitions of FVU disagree about its drift" in note
    assert "layer 3: fvu +20.00%, fvu_scalar_bos +0.10%" in note
    assert note.count("nf4:") == 1
    assert "0.12000 (+20.00%)" in out
    assert "0.01001 (+0.10%)" in out


@pytest.mark.parametrize(
    "quantized",
    [cell("nf4", fvu=0.12, drift=0.02, bos=0.012), cell("nf4", fvu=0.1001, drift=0.0001, bos=0.05)],
    ids=["both see it", "drift is noise"],
)
def test_no_sentence_where_there_is_nothing_to_say(quantized):
    assert "disagree" not in text(cell("reference"), quantized)


def test_a_document_of_other_formulas_says_so():
    newer = document(cell("nf4")).model_copy(update={"metrics_version": METRICS_VERSION + 1})
    assert f"note: measured with metrics version {METRICS_VERSION + 1}" in "\n".join(summary_lines(newer))
    assert "metrics version" not in text(cell("nf4"))


def test_unsettled_headline_is_warned_about():
    out = text(cell("reference"), cell("nf4", still_moving=["kl_divergence"]))
    assert "nf4: kl_divergence still moved" in out
    assert "--tokens" in out


def test_noise_floor_stands_beside_its_threshold():
    floor = {"metrics": {}, "layers": {"3": {"metrics": {"fvu_drift": value(1e-6)}}}}
    out = text(cell("reference", noise_floor=floor), cell("nf4", verdicts=[verdict("pass")]))
    assert "fvu_drift (layer 3): noise floor 1e-06; thresholds: nf4 max 0.3" in out.replace("\n", "")


def written(folder, *cells):
    path = folder / "run.json"
    path.write_text(json.dumps(document(*cells).model_dump()), encoding="utf-8")
    return str(folder)


def test_show_lists_every_metric_of_a_cell(tmp_path, capsys):
    features = [
        {"index": 7, "active_reference": 30, "active_quantized": 2, "correlation": 0.1, "slope": 0.2, "weight": 3.0}
    ]  # fmt: skip
    nf4 = cell("nf4", verdicts=[verdict("fail")])
    nf4["layers"]["3"]["worst_features"] = features
    assert main(["show", written(tmp_path, cell("reference"), nf4), "-k", "nf4"]) == 0
    out = capsys.readouterr().out
    assert "perplexity_increase_pct" in out
    assert "fvu_scalar_bos" in out
    assert "features that lost most" in out
    assert "m-reference" not in out


@pytest.mark.parametrize(("keyword", "what"), [("nf5", "no cell has 'nf5'"), ("", "can't be read")])
def test_show_refuses_in_one_line(tmp_path, capsys, keyword, what):
    folder = written(tmp_path, cell("nf4")) if keyword else str(tmp_path / "nowhere")
    assert main(["show", folder, "-k", keyword]) == 2
    error = capsys.readouterr().err
    assert what in error
    assert len(error.splitlines()) == 1


def test_list_names_everything(capsys):
    assert main(["list"]) == 0
    out = capsys.readouterr().out
    for name in ("tiny_gemma3", "gemma3_12b", "gemma-scope-2-12b-pt-res", "nf4", "rtn_int3", "pile10k"):
        assert name in out


def test_out_of_memory_is_a_line_of_its_own():
    reason = "m-nf4: out of GPU memory: needs about 28.3 GiB, 24.0 GiB are here; try --batch-size 1 (not 4)"
    out = text(cell("reference"), cell("nf4", status="oom", reason=reason, metrics={}, layers={}))
    (line,) = [line for line in out.splitlines() if line.startswith("m: oom (nf4)")]
    assert "28.3 GiB" in out and "--batch-size 1" in out and len(line) <= 100


def test_random_weights_show_no_quality():
    made = document(cell("reference"), cell("nf4")).model_copy(update={"synthetic": True})
    out = "\n".join(summary_lines(made))
    assert "perplexity" not in out and "drift" not in out
    assert [line.split()[-1] for line in out.splitlines() if line.startswith(("reference", "nf4"))] == [
        "n/a"
    ] * 2


def test_the_studys_verdict_reads_all_layers_of_a_quantization():
    layers = {
        str(layer): {
            "metrics": {"resolution_ratio": value(ratio), "mse": value(0.5), "fvu_scalar_bos": value(0.25)}
        }
        for layer, ratio in ((3, 2.0), (4, 0.05))
    }
    made = document(cell("reference", layers=layers), cell("nf4", layers=layers)).model_copy(
        update={"protocol": "study", "published": {"m": {"nf4": {"cross_entropy_delta_pct": 2.7}}}}
    )
    out = "\n".join(summary_lines(made))
    assert "nf4: reading of a flat FVU: with care" in out
    # the variance of an element, and the perturbation's mean square, from what is stored
    assert "2" in next(
        line for line in out.splitlines() if line.startswith("reference") and "0.250000" in line
    )
    assert any("1" in line and "2.00000" in line for line in out.splitlines() if line.startswith("nf4"))
    assert "+2.7" in out


CORPUS = {
    "name": "tiny", "fingerprint": "f", "sequences": 256, "sequence_length": 128, "tokens": 32512,
    "batch_size": 16, "dropped_documents": 0, "dropped_tokens": 0,
}  # fmt: skip


def on_corpus(*cells, **changes):
    lines = summary_lines(run_document(cells=list(cells), corpus={"m": CORPUS | changes}))
    return " ".join(" ".join(lines).split())


def test_the_heading_names_tokens_sequences_and_documents():
    assert (
        "m on tiny: 32,512 tokens in 256 sequences of 131 documents (sequence length 128); 95%"
    ) in on_corpus(cell("nf4"), documents=131)
    old = on_corpus(cell("nf4"))
    assert "32,512 tokens in 256 sequences, documents unknown (sequence length 128)" in old


def test_a_cell_that_ran_on_has_its_own_sequences_and_documents():
    more = {"tokens": 65024, "looks": 2, "sequences": 512, "documents": 260}
    assert (
        "32,512 to 65,024 tokens a cell, the most in 512 sequences of 260 documents (sequence length 128;"
    ) in on_corpus(cell("int8"), cell("nf4", **more), documents=131)


def test_pieces_and_repeats_get_a_sentence():
    found = on_corpus(cell("nf4"), documents=128, is_one_document=True, dropped_repeats=1200)
    assert "in 256 sequences of 128 pieces of one document" in found
    assert "note: its text is one document: pieces of one document count as documents" in found
    assert "note: 1,200 sequences were left out: each equals one that was taken" in found
    assert "note" not in on_corpus(cell("nf4"), documents=128)


def with_sinks(gained=0, lost=0, **layer):
    """A cell of a model that has sinks, and its reference."""
    sinks = {
        "layer": 9,
        "multiple": 3.74,
        "positions": 4088,
        "reference": 17,
        "gained": gained,
        "lost": lost,
    }
    made = cell("nf4", sinks=sinks)
    counts = {"sinks_gained": value(1000 * gained / 4088), "sinks_lost": value(1000 * lost / 4088)}
    made["layers"]["3"]["metrics"] |= counts | layer
    return cell("reference", sinks=sinks | {"gained": 0, "lost": 0}), made


def test_the_rule_for_sinks_is_shown():
    out = " ".join(text(*with_sinks()).split())
    assert (
        "note: sinks: 17 of 4,088 positions (4.16‰) have a residual of more than 3.74 times the median norm "
        "at layer 9;"
    ) in out
    assert "sinks + ‰" not in out and "became a sink" not in out


def test_sinks_gained_and_lost_have_columns_and_a_sentence():
    out = text(*with_sinks(gained=1, lost=2))
    (heading,) = [line for line in out.splitlines() if "survival" in line]
    assert heading.count("sinks") == 2
    assert [line for line in out.splitlines() if line.startswith("nf4") and line.endswith("0.24   0.49")]
    said = "nf4: 1 of 4,088 positions became a sink and 2 of 4,088 positions stopped being one"
    assert said in " ".join(out.split())
    assert max(len(line) for line in out.splitlines()) <= 100


@pytest.mark.parametrize(
    ("metrics", "said"),
    [
        (  # one sink is most of the perturbation: the real int8's numbers
            {"perturbation_nsr": value(0.0066, 0.0005), "perturbation_nsr_all": value(0.311, 0.2)},
            "perturbation_nsr 0.311, not 0.0066",
        ),
        ({"fvu_drift": value(0.015, 0.002), "fvu_drift_all": value(-0.015, 0.031)}, "fvu_drift -0.015, not 0.015"),
        ({"perturbation_nsr": value(0.11, 0.01), "perturbation_nsr_all": value(0.12, 0.01)}, ""),
        ({"fvu_drift": value(0.001, 0.002), "fvu_drift_all": value(-0.01, 0.031)}, ""),
    ],
)  # fmt: skip
def test_a_sentence_where_sinks_would_tell_otherwise(metrics, said):
    out = " ".join(text(*with_sinks(**metrics)).split())
    assert ("layer 3: with sinks it would be" in out) == bool(said)
    assert said in out


@pytest.mark.parametrize(
    ("survival", "reading"), [(0.95, "a finding"), (0.0, "blind")], ids=["as it was", "moved by a position"]
)
def test_a_flat_fvu_is_read_with_what_agrees(survival, reading):
    made = cell("nf4")
    made["layers"]["3"]["metrics"] |= {
        "perturbation_nsr": value(1.6, 0.1), "cross_fvu": value(0.12), "drift_resolution": value(0.0006),
        "feature_survival": value(survival),
    }  # fmt: skip
    (row,) = [line for line in text(cell("reference"), made).splitlines() if reading in line]
    assert row.startswith("nf4") and row.endswith(reading)
