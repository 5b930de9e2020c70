"""Entries are written into a thresholds file of any form, and the rest of it stays."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import bounds as drawn_bounds
from builders import one_line
from paths import ROOT
from qsae_bench.errors import QsaeError
from qsae_bench.gate.thresholds import Provenance, table_name
from qsae_bench.metrics import METRICS
from qsae_bench.results.threshold_edit import edited_text
from qsae_bench.results.threshold_update import BoundChange
from threshold_runs import FILE, LAYER, REFERENCE, bounds, cell, parse, run, updated, values, verdict


def test_the_rest_of_the_file_stays_as_it_was():
    _, text = updated()
    was, now = FILE.splitlines(), text.splitlines()
    replaced = {"kl_divergence = { max = 0.6", "fvu_drift   ="}
    kept = [line for line in was if not any(line.startswith(begin) for begin in replaced)]
    assert [line for line in now if line in kept] == kept
    # the comment behind an entry, and the place of a new one: below its table's last, above the next section
    ann = next(index for index, line in enumerate(now) if line.endswith("}   # ask Ann"))
    assert now[ann].startswith('kl_divergence = { max = 0.4, source = "2 × the value"')
    assert now[ann + 1].startswith("top1_agreement = { min = 0.9")
    assert now[ann + 2] == "[tiny_gemma3.nf4.layer3]"
    assert len(now) == len(was) + 1


def test_new_tables_stand_at_the_end():
    document = run(
        REFERENCE, cell("int8"),
        cell("nf4", layers={key: {"metrics": values(LAYER)} for key in ("1", "3")}, gated=[verdict("fvu_drift", 1)]),
    )  # fmt: skip
    _, text = updated(document)
    assert text.startswith(FILE.split("# -- ours")[0])
    headers = [line for line in text.splitlines() if line.startswith("[")]
    was = [line for line in FILE.splitlines() if line.startswith("[")]
    assert headers == [*was, "[tiny_gemma3.int8]", "[tiny_gemma3.int8.layer3]", "[tiny_gemma3.nf4.layer1]"]
    lines = text.splitlines()
    assert lines[lines.index("[tiny_gemma3.int8]") - 1] == ""


def test_a_table_without_an_entry_takes_its_first():
    _, text = updated(file="schema = 1\n[tiny_gemma3.nf4]  # none yet\n\n# -- theirs\n")
    assert text.startswith("schema = 1\n[tiny_gemma3.nf4]  # none yet\nkl_divergence = { max = 0.4")
    assert text.count("[tiny_gemma3.nf4]") == 1


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
            found[path, metric] = replace(
                draw(drawn_bounds.thresholds(metric, st.just("s # no comment"))),
                provisional=draw(st.booleans()), table=table_name(path), provenance=draw(provenances),
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
                ends = zip(("min", "max"), entry.ends, strict=True)
                both = ", ".join(f"{side} = {bound!r}" for side, bound in ends if bound is not None)
                lines.append(draw(st.sampled_from([
                    f'{metric}={{{both.replace(" ", "")},source="x"}}{end}',
                    f"{metric} = {{ {both}, source = 'x' }}{end}",
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
    assert "max = 0.4  # high\n" in text and "provisional" not in text
    assert bounds(text)["tiny_gemma3.nf4 kl_divergence"] == 0.4


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
        assert bounds(text)["tiny_gemma3.nf4 kl_divergence"] == 0.4
        assert len(bounds(text)) == 3


def test_the_repositorys_own_file_takes_an_update(tmp_path):
    """Every entry of it is in a form that the update can edit."""
    file = ROOT / "thresholds.toml"
    text = file.read_text(encoding="utf-8")
    before = parse(text)
    changes = [
        BoundChange(path, replace(entry, bound=entry.bound * (2 if entry.side == "max" else 0.5), source="doubled"), entry, entry)
        for path, found in before.tables.items() for entry in found.values()
    ]  # fmt: skip
    result = edited_text(text, changes, "t.toml")
    comments = [line for line in text.splitlines() if not line or line[0] in "#["]
    assert [line for line in result.splitlines() if not line or line[0] in "#["] == comments
    assert all(
        entry.source == "doubled" for found in parse(result).tables.values() for entry in found.values()
    )
