"""``qsae-bench thresholds``: from a run to entries, how they are written, and what is refused."""

from __future__ import annotations

import datetime
import json
import math
import os
import re
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from builders import measurement, one_line, self_measurement, synthetic
from paths import ROOT
from qsae_bench import metrics
from qsae_bench.app.cli.main import main
from qsae_bench.errors import QsaeError
from qsae_bench.gate.cell_result import CellResult
from qsae_bench.gate.thresholds import Provenance, Threshold, Thresholds, parse_thresholds, table_name
from qsae_bench.gate.verdict import decide, reason_below_noise_floor
from qsae_bench.machine import hardware_of
from qsae_bench.metrics import METRICS
from qsae_bench.metrics.base import LEAST_RELATIVE, NOT_NEGATIVE, Metric
from qsae_bench.metrics.measurement import merge
from qsae_bench.report.notes import notes
from qsae_bench.results.document import RunDocument, value_record, verdict_record
from qsae_bench.results.threshold_edit import edited_text
from qsae_bench.results.threshold_update import BoundChange, UpdateOptions, update_from
from qsae_bench.stats.bootstrap import Estimate, estimate

# -- runs and files ---------------------------------------------------------------------------------

CELL = {
    "kl_divergence": (0.2, 0.1, 0.25),
    "top1_agreement": (0.95, 0.94, 0.96),
    "perplexity": (4.3, 4.2, 4.4),
}
LAYER = {"fvu_drift": (0.002, 0.001, 0.003), "fvu": (0.08, 0.079, 0.081)}
OWN = {"kl_divergence": (0, 0, 0), "top1_agreement": (1, 1, 1), "perplexity": (4.2, 4.1, 4.3)}
OWN_LAYER = {"fvu_drift": (0, 0, 0), "fvu": (0.076, 0.075, 0.077)}


def values(found):
    return {
        key: dict(zip(("value", "low", "high"), [e if e is None else float(e) for e in ends], strict=False))
        for key, ends in found.items()
    }


def verdict(metric, layer=None, status="pass", reason=""):
    return {
        "metric": metric, "layer": layer, "status": status, "side": "max", "bound": 1.0, "source": "s",
        "provisional": False, "tokens": 32512, "reason": reason,
    }  # fmt: skip


def cell(quantization="nf4", metrics=None, layer=None, model="tiny_gemma3", gated=(), **changes):
    judged = [*[verdict(m) for m in ("kl_divergence", "top1_agreement")], verdict("fvu_drift", 3), *gated]
    return {
        "model": model, "quantization": quantization, "status": "measured", "metrics": values(metrics or CELL),
        "layers": {"3": {"metrics": values(layer or LAYER)}}, "verdicts": judged, "tokens": 32512,
    } | changes  # fmt: skip


REFERENCE = cell("reference", OWN, OWN_LAYER, verdicts=[])
GPU = {
    "cpu": "AMD EPYC", "gpus": [{"name": "NVIDIA H200", "memory_bytes": 1}], "driver": "580.1", "cuda": "13.0",
    "versions": {"torch": "2.13.0", "numpy": "2", "transformers": "5.23.0", "bitsandbytes": "0.50.2"},
}  # fmt: skip
CORPUS = {
    "name": "tiny", "fingerprint": "f", "sequences": 256, "sequence_length": 128, "tokens": 32512,
    "batch_size": 16, "dropped_documents": 0, "dropped_tokens": 0,
}  # fmt: skip


def run(*cells, **changes) -> RunDocument:
    made = {
        "schema_version": 1, "run_id": "20261124T120000Z-abcd", "started": "2026-11-24T11:59:00+00:00",
        "finished": "2026-11-24T12:00:00+00:00", "command": "pytest benchmarks", "environment": GPU,
        "corpus": {"tiny_gemma3": CORPUS}, "cells": list(cells) or [REFERENCE, cell()],
    } | changes  # fmt: skip
    return RunDocument.model_validate(made)


FILE = """\
# what everybody agreed on
schema = 1   # of this file

[defaults.nf4]   # any model
kl_divergence = { max = 0.4, provisional = true, source = "a publication" }
top1_agreement = { min = 0.8, source = "a publication" }

# -- ours ------------------------------------------------------------------------
# measured by hand

[tiny_gemma3.nf4]
kl_divergence = { max = 0.6, source = "by hand" }   # ask Ann
[tiny_gemma3.nf4.layer3]
fvu_drift   =   {max = 0.007, source = 'by hand'}

# -- theirs ----------------------------------------------------------------------

[gemma3_12b.nf4]
kl_divergence = { max = 0.1, source = "guessed" }
"""


def parse(text: str) -> Thresholds:
    return parse_thresholds(tomllib.loads(text), "t.toml")


def updated(document: RunDocument | None = None, file: str = FILE, **options):
    """(the update, the text that it makes of the file)."""
    found = update_from(document or run(), parse(file), UpdateOptions(**options))
    return found, edited_text(file, found.needed, "t.toml")


def bounds(text: str) -> dict[str, float]:
    return {
        f"{table_name(path)} {metric}": entry.bound
        for path, entries in parse(text).tables.items() for metric, entry in entries.items()
    }  # fmt: skip


# -- from a run to entries --------------------------------------------------------------------------


def test_every_gated_metric_becomes_an_entry_with_its_measurement():
    update, text = updated()
    assert [
        (change.kind, table_name(change.path), change.new.metric, change.new.bound)
        for change in update.changes
    ] == [
        ("tighter", "tiny_gemma3.nf4", "kl_divergence", 0.5),  # 2 × 0.25
        ("tighter", "tiny_gemma3.nf4", "top1_agreement", 0.88),  # 1 - 2 × 0.06
        ("tighter", "tiny_gemma3.nf4.layer3", "fvu_drift", 0.006),
    ]
    found = parse(text).find("tiny_gemma3", "nf4", "kl_divergence")
    assert found.provenance == Provenance(
        0.2, 0.1, 0.25, 32512, "NVIDIA H200",
        "torch 2.13.0, transformers 5.23.0, bitsandbytes 0.50.2, driver 580.1, CUDA 13.0",
        datetime.date(2026, 11, 24), "20261124T120000Z-abcd", "",
    )  # fmt: skip
    assert not found.provisional
    assert str(found) == (
        "≤ 0.5 ([tiny_gemma3.nf4]: 2 × high; measured 0.2 [0.1, 0.25] on 32512 tokens, NVIDIA H200, 2026-11-24)"
    )


def test_the_rest_of_the_file_stays_as_it_was():
    _, text = updated()
    was, now = FILE.splitlines(), text.splitlines()
    replaced = {"kl_divergence = { max = 0.6", "fvu_drift   ="}
    kept = [line for line in was if not any(line.startswith(begin) for begin in replaced)]
    assert [line for line in now if line in kept] == kept
    # the comment behind an entry, and the place of a new one: below its table's last, above the next section
    ann = next(index for index, line in enumerate(now) if line.endswith("}   # ask Ann"))
    assert now[ann].startswith('kl_divergence = { max = 0.5, source = "2 × high"')
    assert now[ann + 1].startswith("top1_agreement = { min = 0.88")
    assert now[ann + 2] == "[tiny_gemma3.nf4.layer3]"
    assert len(now) == len(was) + 1


def test_new_tables_stand_with_their_kin_and_before_the_next_section():
    document = run(
        REFERENCE, cell("int8"),
        cell("nf4", layers={key: {"metrics": values(LAYER)} for key in ("1", "3")}, gated=[verdict("fvu_drift", 1)]),
    )  # fmt: skip
    _, text = updated(document)
    headers = [line for line in text.splitlines() if line.startswith(("[", "# -- "))]
    assert [line.split("   ")[0] for line in headers] == [
        "[defaults.nf4]", "# -- ours ------------------------------------------------------------------------",
        "[tiny_gemma3.nf4]", "[tiny_gemma3.nf4.layer3]", "[tiny_gemma3.nf4.layer1]",
        "[tiny_gemma3.int8]", "[tiny_gemma3.int8.layer3]",
        "# -- theirs ----------------------------------------------------------------------", "[gemma3_12b.nf4]",
    ]  # fmt: skip
    lines = text.splitlines()
    assert lines[lines.index("[tiny_gemma3.int8]") - 1] == ""
    assert (
        lines[
            lines.index(
                "# -- theirs ----------------------------------------------------------------------"
            )
            - 1
        ]
        == ""
    )


def test_the_reference_says_what_harmless_is():
    _, text = updated(run(REFERENCE, cell(gated=[verdict("fvu", 3), verdict("perplexity")])))
    found = bounds(text)
    assert found["tiny_gemma3.nf4.layer3 fvu"] == 0.086  # 0.076 + 2 · 0.005
    assert found["tiny_gemma3.nf4 perplexity"] == 4.6  # 4.2 + 2 · 0.2
    # on this cell's own tokens, where the reference was measured on fewer
    beside = {"metrics": values({"perplexity": (4.0, 4, 4)}), "layers": {}}
    _, text = updated(run(REFERENCE, cell(gated=[verdict("perplexity")], beside=beside)))
    assert bounds(text)["tiny_gemma3.nf4 perplexity"] == 4.8


BITS_PER_TOKEN = Metric(
    key="bits_per_token", unit="bits/token", scope="cell", sides="model", better="lower",
    limits=NOT_NEGATIVE, harmless=None, least_harm=LEAST_RELATIVE, suspicious=None, headline_in=(),
    interval="bootstrap", not_own_when=(), formula=lambda s: s["nll_q"] / s["tokens"] / math.log(2),
)  # fmt: skip
"""cross_entropy in another unit, as a user may add it"""


def records(found) -> dict:
    """Estimates of a cell as its record has them."""
    return {key: value_record(e).model_dump() for key, e in found.items()}


def ran_on() -> RunDocument:
    """A cell that was undecided and read on, where the text is harder, beside a reference that did not."""
    first, harder = synthetic(0), synthetic(1)
    harder = replace(harder, nll_r=harder.nll_r + 1, nll_q=harder.nll_q + 1)
    own, whole = measurement(first), merge([measurement(first), measurement(harder)])
    measured = CellResult(whole, estimate(whole, 100), looks=(1, 2), planned_tokens=2)
    beside = {"metrics": records(measured.beside.cell), "layers": {}}
    tokens = [int(one.rows.scalars["tokens"].sum()) for one in (own, whole)]
    reference = cell("reference", CELL, verdicts=[], tokens=tokens[0])
    reference["metrics"] = records(estimate(self_measurement(first), 100).cell)
    quantized = cell(
        "nf4", CELL, verdicts=[verdict("cross_entropy"), verdict("bits_per_token")], beside=beside
    )
    quantized |= {"metrics": records(measured.estimates.cell), "tokens": tokens[1]}
    return run(reference, quantized)


def test_a_metric_of_ones_own_gets_the_bound_of_the_quantity_that_it_is(monkeypatch):
    """Harm is measured from the reference on the cell's own tokens, for every metric of one model."""
    monkeypatch.setitem(metrics._METRICS, "bits_per_token", BITS_PER_TOKEN)
    document = ran_on()
    found = {
        change.new.metric: change.new.bound for change in updated(document, file="schema = 1\n")[0].changes
    }
    reference, quantized = document.cells
    ratio = found["bits_per_token"] * math.log(2) / found["cross_entropy"]
    assert ratio == pytest.approx(1, rel=0.005)  # bounds are rounded to two digits of the harm
    old = quantized.beside.metrics["cross_entropy"].value - reference.metrics["cross_entropy"].value
    assert old > 0.3, "the tokens make a difference that the test would see"


@pytest.mark.parametrize("metric", ["perplexity", "cross_entropy"])
def test_no_bound_follows_from_a_reference_on_other_tokens(metric):
    document = ran_on()
    reference, quantized = document.cells
    without = quantized.model_copy(update={"beside": None, "verdicts": [
        quantized.verdicts[0].model_copy(update={"metric": name}) for name in (metric, "kl_divergence")
    ]})  # fmt: skip
    update, _ = updated(document.model_copy(update={"cells": [reference, without]}), file="schema = 1\n")
    # of a pair's metric the reference's value does not depend on the tokens
    assert [change.new.metric for change in update.changes] == ["kl_divergence"]
    (note,) = update.notes
    assert f"{metric}: no bound: the run has no value of the reference on the same tokens" in note


def test_a_run_of_other_formulas_sets_no_thresholds():
    with pytest.raises(QsaeError) as caught:
        updated(run(metrics_version=metrics.METRICS_VERSION + 1))
    assert "can't set thresholds: metrics version" in one_line(caught.value)


def test_the_noise_floor_of_the_run_is_heeded():
    floor = {"metrics": values({"kl_divergence": (0.4, 0.3, 0.7)}), "layers": {}}
    update, _ = updated(run(REFERENCE | {"noise_floor": floor}, cell()), reason="noise")
    change = next(change for change in update.changes if change.new.metric == "kl_divergence")
    assert change.new.bound == 0.7 and "noise floor" in change.new.source
    assert reason_below_noise_floor(change.new, Estimate(0.4, 0.3, 0.7), Estimate(0.0, 0.0, 0.0)) == ""


def test_metrics_that_a_threshold_bounds_are_updated_though_no_test_judged_them():
    unjudged = cell(verdicts=[])
    update, _ = updated(run(REFERENCE, unjudged))
    assert {change.new.metric for change in update.changes} == {
        "kl_divergence",
        "top1_agreement",
        "fvu_drift",
    }
    update, _ = updated(run(REFERENCE, unjudged), file="schema = 1\n")
    assert update.changes == ()


def test_a_metric_without_a_better_side_needs_one_from_the_file():
    document = run(
        cell("reference", OWN, {"l0_ratio": (1, 1, 1)}, verdicts=[]),
        cell(layer={"l0_ratio": (1.1, 1.0, 1.2)}, verdicts=[verdict("l0_ratio", 3, "unset")]),
    )
    update, _ = updated(document, file="schema = 1\n")
    assert update.changes == ()
    assert update.notes == (
        "tiny_gemma3-nf4 layer 3 l0_ratio: neither direction is better: bound it by hand",
    )
    file = 'schema = 1\n[defaults.nf4]\nl0_ratio = { max = 1.5, source = "s" }\n'
    update, _ = updated(document, file=file)
    assert [(change.new.side, change.new.bound) for change in update.changes] == [("max", 1.4)]


def test_twice_from_the_same_run_changes_nothing():
    for options in ({}, {"hardware_specific": True}, {"margin": 5, "reason": "wide"}):
        _, text = updated(**options)
        again, same = updated(file=text, **options)
        assert again.needed == () and same == text
        if "reason" in options:  # it stays where it was given, and is not asked for again
            again, _ = updated(file=text, margin=5)
            assert again.needed == ()


# -- loosening --------------------------------------------------------------------------------------


def test_loosening_keeps_its_reason_as_long_as_the_bound_stands():
    update, text = updated(margin=4, reason="a new kernel")  # kl 1.0, above 0.6
    assert {change.new.metric: change.kind for change in update.changes} == {
        "kl_divergence": "looser", "top1_agreement": "looser", "fvu_drift": "looser",
    }  # fmt: skip
    assert [change.new.provenance.reason for change in update.changes] == ["a new kernel"] * 3
    assert "loosened: a new kernel" in str(parse(text).find("tiny_gemma3", "nf4", "kl_divergence"))
    later = run(run_id="20261125T120000Z-ef01")
    _, kept = updated(later, file=text, margin=4)
    assert parse(kept).find("tiny_gemma3", "nf4", "kl_divergence").provenance.reason == "a new kernel"
    assert "20261125T120000Z-ef01" in kept
    _, tight = updated(later, file=kept)
    assert "a new kernel" not in tight


def test_a_default_is_loosened_too_when_a_special_entry_takes_its_place():
    file = 'schema = 1\n[defaults.nf4]\nkl_divergence = { max = 0.4, source = "s", provisional = true }\n'
    update, _ = updated(file=file)
    assert [c.kind for c in update.changes if c.new.metric == "kl_divergence"] == ["looser"]


HARDWARE = (
    FILE
    + """
[defaults.nf4.hardware."NVIDIA H100"]
kl_divergence = { max = 0.3, source = "there" }
[tiny_gemma3.nf4.hardware."NVIDIA H200"]
top1_agreement = { min = 0.9, source = "there" }
"""
)


def test_a_general_entry_loosens_what_it_displaces_on_other_hardware():
    """It comes before the defaults of any hardware."""
    file = HARDWARE.replace("[tiny_gemma3.nf4]\nkl_divergence", "[tiny_gemma3.nf4]\nfvu")
    update, _ = updated(file=file)
    change = next(c for c in update.changes if c.new.metric == "kl_divergence")
    assert change.old.bound == 0.4 and change.new.bound == 0.5 and change.kind == "looser"
    assert {one.bound for one in change.displaced} == {0.4, 0.3}
    # a model's own entry for a hardware is not displaced
    change = next(c for c in update.changes if c.new.metric == "top1_agreement")
    assert (change.kind, {one.bound for one in change.displaced}) == ("tighter", {0.8})
    assert (
        "tiny_gemma3-nf4 top1_agreement: an entry of its own still decides on NVIDIA H200" in update.notes
    )


def test_hardware_specific_entries_stand_apart():
    _, text = updated(hardware_specific=True, reason="less exact there")
    special = '[tiny_gemma3.nf4.hardware."NVIDIA H200"]'
    lines = text.splitlines()
    at = lines.index(special)
    assert lines[at - 1].startswith("fvu_drift   =") and lines[at + 1].startswith(
        "kl_divergence = { max = 0.5"
    )
    assert lines[at + 3] == special.replace('"]', '".layer3]')
    found = parse(text)
    assert found.find("tiny_gemma3", "nf4", "kl_divergence", hardware="NVIDIA H200").bound == 0.5
    assert found.find("tiny_gemma3", "nf4", "kl_divergence", hardware="NVIDIA H100").bound == 0.6
    on_cpu = run(environment=GPU | {"device": "cpu"})
    _, text = updated(on_cpu, hardware_specific=True)
    assert '[tiny_gemma3.nf4.hardware."AMD EPYC"]' in text
    with pytest.raises(QsaeError, match="leave --hardware-specific out"):
        updated(run(environment={}), hardware_specific=True)


numbers = st.floats(0, 0.9).map(lambda x: round(x, 4))


@given(numbers, numbers, numbers, st.floats(1, 10), st.booleans())
def test_every_change_is_looser_exactly_where_it_lets_more_through(value, low, high, margin, specific):
    """And every bound holds for the run that it came from."""
    low, value, high = sorted((value, low, high))
    document = run(
        REFERENCE, cell(metrics={"kl_divergence": (value, low, high), "top1_agreement": (value, low, high)})
    )
    file = HARDWARE
    update, text = updated(document, file=file, margin=margin, reason="r", hardware_specific=specific)
    before, after = parse(file), parse(text)
    looser = set()
    for name in ("", "NVIDIA H200", "NVIDIA H100", "another"):
        for metric, layer in (
            ("kl_divergence", None),
            ("top1_agreement", None),
            ("fvu_drift", 3),
            ("fvu_drift", 4),
        ):
            old = before.find("tiny_gemma3", "nf4", metric, layer, name)
            new = after.find("tiny_gemma3", "nf4", metric, layer, name)
            if old and (new.bound > old.bound if new.side == "max" else new.bound < old.bound):
                looser.add(metric)
    assert {change.new.metric for change in update.changes if change.kind == "looser"} == looser
    for change in update.changes:
        measured = change.new.provenance
        estimate = Estimate(measured.measured, measured.low, measured.high)
        assert decide(change.new.metric, estimate, change.new, 1).status == "pass"


# -- runs that nothing is taken from ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("document", "parts"),
    [
        (run(REFERENCE, cell(), cell("int8", status="skipped", reason="needs\na GPU")), ["-int8", "skipped", "needs a GPU"]),
        (run(REFERENCE, cell(), cell("int8", status="oom", reason="8 GiB")), ["tiny_gemma3-int8 (oom: 8 GiB)"]),
        (run(REFERENCE, cell(), cell("int8", status="error", reason="x")), ["tiny_gemma3-int8 (error: x)"]),
        (run(REFERENCE, cell(reason="non-finite values")), ["tiny_gemma3-nf4 (invalid: non-finite values)"]),
        (run(REFERENCE | {"reason": "perplexity 900"}, cell()), ["tiny_gemma3-reference (invalid: perplexity 900)"]),
        (
            run(REFERENCE, cell(gated=[verdict("splice_excess", 3, "invalid", "was not measured")])),
            ["tiny_gemma3-nf4 (invalid: splice_excess: was not measured)"],
        ),
        (run(synthetic=True), ["random weights"]),
        (run(protocol="study"), ["'study'", "without --protocol"]),
        (run(REFERENCE), ["no measured quantized cell", "it has: none"]),
        (run(REFERENCE, cell(metrics={"kl_divergence": (None,), "top1_agreement": (1,)})), ["kl_divergence is not finite"]),
    ],
)  # fmt: skip
def test_what_a_run_may_not_set(document, parts):
    with pytest.raises(QsaeError) as caught:
        updated(document)
    message = one_line(caught.value)
    assert [part for part in [*parts, "20261124T120000Z-abcd"] if part not in message] == [], message


def test_a_threshold_below_the_noise_floor_is_no_fault_of_the_cell():
    """Else the way out that its message names, loosening it, would be barred."""
    reason = reason_below_noise_floor(
        Threshold("kl_divergence", "max", 0.1, "s"), Estimate(0.2), Estimate(0.0)
    )
    update, _ = updated(run(REFERENCE, cell(gated=[verdict("kl_divergence", None, "invalid", reason)])))
    assert update.changes


def test_what_is_suspicious_is_said():
    update, _ = updated(run(REFERENCE, cell(gated=[verdict("fvu_drift", 3, "suspicious", "too good")])))
    assert update.notes == ("tiny_gemma3-nf4 layer 3 fvu_drift is suspicious: too good",)


# -- writing into any file --------------------------------------------------------------------------

names = st.sampled_from(["tiny_gemma3", "gemma3_12b", "defaults", "a.b"])
paths = st.tuples(names, st.sampled_from(["nf4", "int8"])).flatmap(
    lambda owner: st.sampled_from(
        [owner, (*owner, "layer3"), (*owner, "layer12"), (*owner, "hardware", "NVIDIA H200"),
         (*owner, "hardware", 'a "b" \\ c', "layer3")]
    )
)  # fmt: skip
layered = [key for key, metric in METRICS.items() if metric.gateable and metric.scope == "layer"]
provenances = st.builds(
    Provenance,
    measured=st.none() | st.floats(-1e9, 1e9),
    tokens=st.none() | st.integers(1, 10**9),
    hardware=st.sampled_from(["", "NVIDIA H200", 'a "quoted" name']),
    date=st.none() | st.dates(),
    reason=st.sampled_from(["", "because # of \\ that"]),
)


@st.composite
def entries(draw, count):
    found = {}
    for path in draw(st.lists(paths, unique=True, max_size=count)):
        for metric in draw(st.lists(st.sampled_from(layered), unique=True, min_size=1, max_size=3)):
            found[path, metric] = Threshold(
                metric, draw(st.sampled_from(["max", "min"])), draw(st.floats(-1e6, 1e6)), "s # no comment",
                draw(st.booleans()), table_name(path), draw(provenances),
            )  # fmt: skip
    return found


def written_by_hand(draw, found) -> str:
    """A file as people write them: comments, blank lines, single quotes, any spacing, any order of tables."""
    lines = ["# head", "schema = 1 # one"]
    for path in dict.fromkeys(path for path, _ in found):
        key = ".".join(name if re.fullmatch(r"\w+", name) else json.dumps(name) for name in path)
        lines += draw(st.sampled_from([[], [""], ["", "# -- section --", ""], ["# note"]]))
        lines.append(f"[{key}]" + draw(st.sampled_from(["", "  # here"])))
        for (at, metric), entry in found.items():
            if at == path:
                end = draw(st.sampled_from(["", " # why", "\n", "\n# below"]))
                lines.append(draw(st.sampled_from([
                    f'{metric}={{{entry.side}={entry.bound!r},source="x"}}{end}',
                    f"{metric} = {{ {entry.side} = {entry.bound!r}, source = 'x' }}{end}",
                ])))  # fmt: skip
    text = "\n".join(lines) + draw(st.sampled_from(["", "\n"]))
    return text.replace("\n", draw(st.sampled_from(["\n", "\r\n"])))


@given(st.data())
@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
def test_any_file_takes_any_changes_and_keeps_the_rest(data):
    old = data.draw(entries(4))
    text = written_by_hand(data.draw, old)
    before = parse(text)
    assert {(path, m) for path, found in before.tables.items() for m in found} == set(old)
    wanted = data.draw(entries(3))
    changes = [
        BoundChange(path, entry, None, before.tables.get(path, {}).get(metric))
        for (path, metric), entry in wanted.items()
    ]
    result = edited_text(text, changes, "t.toml")
    after = parse(result)
    for path in {path for path, _ in [*old, *wanted]}:
        for metric in {m for p, m in [*old, *wanted] if p == path}:
            expected = wanted.get((path, metric)) or before.tables[path][metric]
            assert after.tables[path][metric] == expected
    assert sum(map(len, after.tables.values())) == len({*old, *wanted})
    # every line that held no changed entry is there, in its order, to the byte
    replaced = {metric for path, metric in wanted if (path, metric) in old}
    kept = [line for line in text.split("\n") if not any(line.startswith(m) for m in replaced)]
    lines = iter([*result.split("\n")])
    assert all(
        any(line.rstrip("\r") == other.rstrip("\r") for other in lines) for line in kept if line.strip()
    )
    bare = result.replace("\r\n", "")
    assert "\r" not in bare
    assert "\n" not in bare if "\r\n" in text else "\r\n" not in result


def test_an_entry_in_a_table_of_its_own_is_edited_there():
    file = 'schema = 1\n[tiny_gemma3.nf4.kl_divergence]\nmax = 0.6  # high\nsource = "by hand"\nprovisional = true\n'
    _, text = updated(file=file)
    assert "max = 0.5  # high\n" in text and "provisional" not in text
    assert bounds(text)["tiny_gemma3.nf4 kl_divergence"] == 0.5


@pytest.mark.parametrize(
    "file",
    [
        'schema = 1\ntiny_gemma3 = { nf4 = { kl_divergence = { max = 0.6, source = "s" } } }\n',
        'schema = 1\ntiny_gemma3.nf4.kl_divergence = { max = 0.6, source = "s" }\n',
        'schema = 1\n[tiny_gemma3]\nnf4.kl_divergence = { max = 0.6, source = "s" }\n',
    ],
)
def test_other_forms_are_edited_rightly_or_refused(file):
    try:
        _, text = updated(file=file)
    except QsaeError as error:
        assert "can't be edited in place" in one_line(error)
    else:
        assert bounds(text)["tiny_gemma3.nf4 kl_divergence"] == 0.5
        assert len(bounds(text)) == 3


# -- as a user types it -----------------------------------------------------------------------------


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a thresholds.toml and ``.qsae/latest``; what was measured is the file's to change."""
    monkeypatch.chdir(tmp_path)
    Path("thresholds.toml").write_text(FILE, encoding="utf-8")
    keep(run())
    return tmp_path


def keep(document: RunDocument, folder=".qsae/latest") -> Path:
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    (path / "run.json").write_text(json.dumps(document.model_dump(mode="json")), encoding="utf-8")
    return path


@pytest.fixture
def said(capsys, place):
    """``said("update", …)`` -> (status, standard output, standard error)."""

    def call(*arguments):
        status = main(["thresholds", *map(str, arguments)])
        return (status, *capsys.readouterr())

    return call


UPDATE = ("update", "--from", ".qsae/latest")


def test_an_update_prints_what_it_changes_and_writes_it(said):
    status, out, err = said(*UPDATE)
    assert (status, err) == (0, "")
    assert out.splitlines() == [
        "[tiny_gemma3.nf4]",
        "  kl_divergence   ≤ 0.6 → ≤ 0.5  tighter",
        "  top1_agreement  ≥ 0.8 → ≥ 0.88  tighter, so far [defaults.nf4]",
        "[tiny_gemma3.nf4.layer3]",
        "  fvu_drift       ≤ 0.007 → ≤ 0.006  tighter",
        "thresholds.toml: 3 tighter, from run 20261124T120000Z-abcd",
    ]
    assert Path("thresholds.toml").read_text(encoding="utf-8") == updated()[1]
    status, out, err = said(*UPDATE)
    assert (status, err) == (0, "") and "nothing to write" in out


def test_loosening_without_a_reason_is_refused_and_writes_nothing(said):
    status, out, err = said(*UPDATE, "--margin", 4)
    assert (status, out) == (2, "")
    assert err.count("\n") == 1 and "--reason" in err
    assert "[tiny_gemma3.nf4] kl_divergence ≤ 0.6 → ≤ 1" in err
    assert Path("thresholds.toml").read_text(encoding="utf-8") == FILE
    status, out, err = said(*UPDATE, "--margin", 4, "--dry-run")
    assert (status, err) == (0, "")
    assert out.endswith('--dry-run: nothing is written; --reason "…" is needed to loosen 3\n')
    assert Path("thresholds.toml").read_text(encoding="utf-8") == FILE
    status, out, err = said(*UPDATE, "--margin", 4, "--reason", " a new\nkernel ")
    assert (status, err) == (0, "") and "≤ 0.6 → ≤ 1  looser" in out
    assert 'reason = "a new kernel"' in Path("thresholds.toml").read_text(encoding="utf-8")


def test_k_narrows_what_is_written(said):
    keep(run(REFERENCE, cell(), cell("int8")))
    status, out, _ = said(*UPDATE, "-k", "int8")
    assert status == 0 and "[tiny_gemma3.int8]" in out and "[tiny_gemma3.nf4]" not in out


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("--margin", "0.5"), "--margin 0.5: a number from 1 to 100"),
        (("--margin", "nan"), "--margin nan"),
        (("--margin", "1e999"), "--margin inf"),
        (("--reason", " "), "--reason is empty"),
        (("-k", "fp4"), "no measured quantized cell with 'fp4' in its id; it has: tiny_gemma3-nf4"),
        (("--thresholds", "none.toml"), "none.toml: can't be read"),
        (("--registry", "none.toml"), "none.toml: can't be read"),
        (("--from", "nowhere"), "nowhere/run.json: can't be read"),
    ],
)
def test_mistakes_take_one_line(said, arguments, part):
    status, out, err = said(*UPDATE, *arguments)
    assert (status, out) == (2, "") and err.count("\n") == 1 and part in err
    assert Path("thresholds.toml").read_text(encoding="utf-8") == FILE


def test_a_model_that_the_registry_lacks_is_named(said):
    keep(run(REFERENCE, cell(model="ours")))
    status, _, err = said(*UPDATE)
    assert status == 2 and "unknown model 'ours'" in err and err.count("\n") == 1


def test_a_link_stays_a_link_and_the_mode_stays(said, place):
    (place / "shared").mkdir()
    real = place / "shared" / "limits.toml"
    os.replace("thresholds.toml", real)
    real.chmod(0o640)
    Path("thresholds.toml").symlink_to(real)
    assert said(*UPDATE)[0] == 0
    assert Path("thresholds.toml").is_symlink() and real.stat().st_mode & 0o777 == 0o640
    assert "2 × high" in real.read_text(encoding="utf-8")
    assert sorted(path.name for path in real.parent.iterdir()) == ["limits.toml"]


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(said, place, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("qsae_bench.results.threshold_edit.put", full)
    status, out, err = said(*UPDATE)
    assert (status, out) == (2, "")
    assert err == "qsae-bench: thresholds.toml: can't be written: No space left on device\n"
    assert Path("thresholds.toml").read_text(encoding="utf-8") == FILE
    assert sorted(path.name for path in place.iterdir()) == [".qsae", "thresholds.toml"]


def test_a_file_that_changed_meanwhile_is_left_alone(said, monkeypatch):
    from qsae_bench.results import threshold_edit

    def changed(text, *rest):
        Path("thresholds.toml").write_text(FILE + "# Ann was here\n", encoding="utf-8")
        return edited_text(text, *rest)

    monkeypatch.setattr(threshold_edit, "edited_text", changed)
    status, _, err = said(*UPDATE)
    assert status == 2 and "was changed meanwhile" in err
    assert Path("thresholds.toml").read_text(encoding="utf-8") == FILE + "# Ann was here\n"


# -- check ------------------------------------------------------------------------------------------


def row(out: str, *words: str) -> list[str]:
    pattern = r"\s+".join(map(re.escape, words)) + r"\s"
    (line,) = [line for line in out.splitlines() if re.match(pattern, line.strip() + " ")]
    return re.split(r"\s{2,}", line.strip())


def test_check_says_what_each_bound_takes(said):
    status, out, err = said("check")
    assert (status, err) == (0, "")
    assert max(map(len, out.splitlines())) <= 100
    assert out.startswith(
        "thresholds.toml: 5 bounds in 4 tables, 1 of them provisional; nothing in it is wrong\n"
    )
    assert "run 20261124T120000Z-abcd on NVIDIA H200" in out
    assert "tiny_gemma3-nf4: measured on 32,512 tokens of tiny; max_tokens is 260,096" in out
    assert row(out, "kl_divergence")[:3] == ["kl_divergence", "≤ 0.6", "0.2 ± 0.075"]
    # (0.075/1.96 · (critical + 0.8416) / 0.4)² · 32512, the critical value a little above 1.96
    needed = int(row(out, "kl_divergence")[3].replace(",", ""))
    plain = 32512 * (0.075 / 1.959964 * (1.959964 + 0.841621) / 0.4) ** 2
    assert plain < needed < 1.2 * plain
    assert row(out, "3", "fvu_drift")[2] == "≤ 0.007"
    assert "bound nothing in this run: [defaults.nf4] kl_divergence" in out
    assert "bounds of models and quantizations that this run did not measure: 1" in out
    assert "warning" not in out


def test_check_warns_where_max_tokens_cant_decide(said):
    keep(run(REFERENCE, cell(metrics=CELL | {"kl_divergence": (0.59, 0.5, 0.68)})))
    status, out, _ = said("check")
    assert status == 0
    assert row(out, "kl_divergence")[3].endswith("!")
    flat = " ".join(out.split())
    assert (
        "warning: tiny_gemma3-nf4 kl_divergence: 260,096 tokens (max_tokens) can't decide ≤ 0.6 at 0.59 ± 0.09"
        in flat
    )
    assert flat.count("warning: ") == 1


def test_a_ratio_of_timings_takes_rounds_not_tokens(said):
    ratio = {"prefill_speed_ratio": (0.8, 0.7, 0.9)}
    keep(run(REFERENCE, cell(metrics=CELL | ratio, gated=[verdict("prefill_speed_ratio")])))
    bound = '[tiny_gemma3.nf4]\nprefill_speed_ratio = { min = 0.3, source = "s" }'
    Path("thresholds.toml").write_text(FILE.replace("[tiny_gemma3.nf4]", bound), encoding="utf-8")
    assert row(said("check")[1], "prefill_speed_ratio") == [
        "prefill_speed_ratio", "≥ 0.3", "0.8 ± 0.1", "by rounds", "–", "pass",
    ]  # fmt: skip
    assert said(*UPDATE)[0] == 0
    found = parse(Path("thresholds.toml").read_text(encoding="utf-8"))
    entry = found.find("tiny_gemma3", "nf4", "prefill_speed_ratio")
    assert (entry.bound, entry.source, entry.provenance.tokens) == (0.4, "2 × the loss at low", None)


def test_a_run_shows_where_a_general_bound_stood_in():
    """In its notes, green or red, and what the bound rests on."""
    threshold = parse(updated()[1] + HARDWARE[len(FILE) :].replace("H200", "B200")).find(
        "tiny_gemma3", "nf4", "top1_agreement", hardware="NVIDIA A100"
    )
    judged = decide("top1_agreement", Estimate(0.95, 0.94, 0.96), threshold, 32512)
    kept = verdict_record(judged)
    assert kept.source.startswith(
        "2 × the loss at low; measured 0.95 [0.94, 0.96] on 32512 tokens, NVIDIA H200"
    )
    document = run(REFERENCE, cell(verdicts=[kept.model_dump()]))
    assert "nf4: general thresholds: no entry for NVIDIA A100: top1_agreement" in list(
        notes(document.cells, document)
    )


@pytest.mark.parametrize(
    ("environment", "hardware"),
    [
        (GPU, "NVIDIA H200"),
        (GPU | {"device": "cuda"}, "NVIDIA H200"),
        (GPU | {"device": "cpu"}, "AMD EPYC"),
        (GPU | {"gpus": []}, "AMD EPYC"),
        ({"cpu": " two\nlines\x1b[1m "}, "two lines [1m"),
        ({"cpu": 3, "gpus": "none"}, ""),
        ({"gpus": [3]}, ""),
        ({}, ""),
    ],
)
def test_which_hardware_a_run_was_on(environment, hardware):
    assert hardware_of(environment) == hardware


def test_check_shows_where_a_general_bound_stands_in(said):
    Path("thresholds.toml").write_text(HARDWARE.replace("H200", "B200"), encoding="utf-8")
    out = " ".join(said("check")[1].split())
    assert "[defaults.nf4], general: no entry for NVIDIA H200: top1_agreement" in out
    Path("thresholds.toml").write_text(HARDWARE, encoding="utf-8")
    assert row(said("check")[1], "top1_agreement")[1] == "≥ 0.9"


def test_check_without_a_run_reads_the_file_only(said, place):
    (place / ".qsae" / "latest" / "run.json").unlink()
    (place / ".qsae" / "latest").rmdir()
    status, out, err = said("check")
    assert (status, err) == (0, "") and "no run in .qsae/latest" in out
    status, out, err = said("check", "--run", "nowhere")
    assert (status, out) == (2, "") and err.count("\n") == 1
    Path("thresholds.toml").write_text(FILE.replace("nf4.layer3", "nf5.layer3"), encoding="utf-8")
    status, out, err = said("check")
    assert (status, out) == (2, "") and "did you mean 'nf4'?" in err


def test_check_narrows_by_k(said):
    keep(run(REFERENCE, cell(), cell("int8")))
    out = said("check", "-k", "int8")[1]
    assert "tiny_gemma3-nf4" not in out
    assert "bound nothing" not in out


@given(
    st.sampled_from(["abc", "3", "-1", "9" * 400, "03"]),
    st.integers(-(10**30), 10**30),
    st.text(max_size=5),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=30)
def test_odd_run_documents_are_no_crash(said, layer, tokens, text):
    odd = cell(layers={layer: {"metrics": values(LAYER | {text: (1,)})}}, tokens=tokens, reason="")
    keep(
        run(
            REFERENCE,
            odd,
            run_id=text,
            finished=text,
            environment={"cpu": text, "gpus": [text], "versions": text},
        )
    )
    for arguments in (("check",), (*UPDATE, "--dry-run")):
        status, _, err = said(*arguments)
        assert status == 0 or (status == 2 and err.count("\n") == 1)


def test_the_repositorys_own_file_takes_an_update(tmp_path):
    """Every entry of it is in a form that the update can edit."""
    file = ROOT / "thresholds.toml"
    text = file.read_text(encoding="utf-8")
    before = parse(text)
    changes = [
        BoundChange(path, replace(entry, bound=entry.bound * 2, source="doubled"), entry, entry)
        for path, found in before.tables.items() for entry in found.values()
    ]  # fmt: skip
    result = edited_text(text, changes, "t.toml")
    comments = [line for line in text.splitlines() if not line or line[0] in "#["]
    assert [line for line in result.splitlines() if not line or line[0] in "#["] == comments
    assert all(
        entry.source == "doubled" for found in parse(result).tables.values() for entry in found.values()
    )
