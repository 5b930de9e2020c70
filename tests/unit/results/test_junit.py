"""Each failing gate is a failing test case: of hand-made documents, and of real runs with planted faults."""

from __future__ import annotations

import os
import xml.etree.ElementTree as ElementTree

import pytest

import warm
from paths import ROOT
from qsae_bench.errors import QsaeError
from qsae_bench.gate.verdict import GateFailure
from qsae_bench.results.junit import GATE, per_gate, properties_of, rewrite, statuses

FAULTS = ROOT / "tests" / "support" / "faults"

TWO = [
    GateFailure("fvu_drift", "fail", "cell layer 3: fvu_drift FAIL\n  measured   0.2 > 0.1"),
    GateFailure("mse", "inconclusive", "cell layer 3: mse INCONCLUSIVE"),
]


def document(*cases, tests, failures):
    suite = (
        f'<testsuite name="pytest" errors="0" failures="{failures}" skipped="0" tests="{tests}" time="3.5">'
    )
    head = '<?xml version="1.0" encoding="utf-8"?><testsuites name="pytest tests">'
    return f"{head}{suite}{''.join(cases)}</testsuite></testsuites>"


def case(name, *children, properties=(), time="1.500"):
    element = ElementTree.Element("testcase", classname="benchmarks.test_sae_fvu", name=name, time=time)
    if properties:
        parent = ElementTree.SubElement(element, "properties")
        for key, value in properties:
            ElementTree.SubElement(parent, "property", name=key, value=value)
    for tag in children:
        ElementTree.SubElement(element, tag, message="both").text = f"{tag}: both gates in one"
    return ElementTree.tostring(element, encoding="unicode")


def consistent(text):
    """The suite, its counts being those of its cases."""
    (suite,) = ElementTree.fromstring(text).iter("testsuite")
    cases = suite.findall("testcase")
    assert int(suite.get("tests")) == len(cases)
    for count, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        assert int(suite.get(count)) == sum(len(one.findall(tag)) for one in cases), count
    return {one.get("name"): one for one in cases}, suite


def test_a_test_that_fails_on_two_gates_becomes_two():
    text = document(
        case("test_fvu[m-int8-layer3]"),
        case("test_fvu[m-nf4-layer3]", "failure", "system-out", properties=properties_of(TWO)),
        case("test_other", "failure"),
        tests=3, failures=2,
    )  # fmt: skip
    cases, suite = consistent(per_gate(text))
    assert list(cases) == [
        "test_fvu[m-int8-layer3]", "test_fvu[m-nf4-layer3-fvu_drift]", "test_fvu[m-nf4-layer3-mse]", "test_other",
    ]  # fmt: skip
    for gate in TWO:
        (failure,) = cases[f"test_fvu[m-nf4-layer3-{gate.metric}]"].findall("failure")
        assert failure.text == failure.get("message") == gate.message
        own = {
            p.get("name"): p.get("value")
            for p in cases[f"test_fvu[m-nf4-layer3-{gate.metric}]"].iter("property")
        }
        assert own == {"qsae_metric": gate.metric, "qsae_status": gate.status}
    assert sum(float(one.get("time")) for one in suite) == pytest.approx(
        4.5
    )  # as before: nothing counted twice
    assert len(list(suite.iter("system-out"))) == 1


def test_what_has_no_failing_gate_stays_as_it_is():
    text = document(
        case("test_a[x]"), case("test_b", "failure"), case("test_c", "skipped"),
        case("test_d[x]", "error", properties=properties_of(TWO)),  # a teardown that failed after the gate
        tests=4, failures=1,
    ).replace('errors="0"', 'errors="1"').replace('skipped="0"', 'skipped="1"')  # fmt: skip
    assert ElementTree.canonicalize(per_gate(text)) == ElementTree.canonicalize(text)


def test_twice_is_once():
    text = document(case("test_fvu[m]", "failure", properties=properties_of(TWO)), tests=1, failures=1)
    assert per_gate(per_gate(text)) == per_gate(text)


def test_a_whole_cell_keeps_the_tests_name_and_what_xml_can_not_hold_is_shown():
    broken = [GateFailure("", "invalid", "m-nf4: INVALID: \x1b[31m\x00 \ud800 é 🙂 <b> & ]]>")]
    text = document(case("test_fvu[m]", "failure", properties=properties_of(broken)), tests=1, failures=1)
    cases, _ = consistent(per_gate(text))
    message = cases["test_fvu[m]"].find("failure").text
    assert message == "m-nf4: INVALID: #x1B[31m#x00 #xD800 é 🙂 <b> & ]]>"


def test_statuses_of_a_report():
    assert statuses([("other", 1), *properties_of(TWO)]) == ("fail", "inconclusive")


@pytest.mark.parametrize("content", ["", "<testsuites>", "not xml", document(tests="x", failures=1)[:-3]])
def test_a_file_that_is_no_junit_is_left_alone(tmp_path, content):
    path = tmp_path / "junit.xml"
    path.write_text(content)
    with pytest.raises(QsaeError, match=r"junit.xml: failing gates have no test case each: \S") as caught:
        rewrite(path)
    assert len(str(caught.value).splitlines()) == 1
    assert path.read_text() == content
    assert list(tmp_path.iterdir()) == [path]


# -- real runs --------------------------------------------------------------------------------------

LOOSE = 'max = 1e9, source = "loose"'
TIGHT = 'max = 1e-12, source = "planted"'


def run(tmp_path, thresholds, *arguments):
    """Two gates in one test, a third in another: (exit status, output, path of the JUnit file)."""
    (tmp_path / "t.toml").write_text(
        f"schema = 1\n[tiny_gemma3.rtn_int4]\nperplexity_increase_pct = {{ {LOOSE} }}\n"
        f"kl_divergence = {{ {thresholds['kl_divergence']} }}\n"
        f"[tiny_gemma3.rtn_int4.layer3]\nfvu_drift = {{ {thresholds['fvu_drift']} }}\nmse = {{ {thresholds['mse']} }}\n"
    )
    junit = tmp_path / "junit.xml"
    asked = [
        "-p", "no:cacheprovider", "--models", "tiny_gemma3",
        "--quantizations", "reference,rtn_int4", "--layers", "3", "-k", "perplexity or fvu", "--tokens", "2032",
        "--thresholds", str(tmp_path / "t.toml"), "--qsae-dir", str(tmp_path), "--junitxml", str(junit), *arguments,
    ]  # fmt: skip
    environment = os.environ | {"PYTHONPATH": str(FAULTS), "COLUMNS": "200"}
    done = warm.run(asked, environment, timeout=300)
    return done.returncode, done.stdout + done.stderr, junit


@pytest.mark.slow
def test_a_red_run_has_a_test_case_for_each_failing_gate(tmp_path):
    status, output, junit = run(tmp_path, {"kl_divergence": TIGHT, "fvu_drift": TIGHT, "mse": TIGHT})
    assert status == 1, output
    cases, _ = consistent(junit.read_text(encoding="utf-8"))
    failing = {
        name: one.find("failure").text for name, one in cases.items() if one.find("failure") is not None
    }
    assert set(failing) == {
        "test_perplexity[tiny_gemma3-rtn_int4-kl_divergence]",
        "test_fvu[tiny_gemma3-rtn_int4-layer3-fvu_drift]",
        "test_fvu[tiny_gemma3-rtn_int4-layer3-mse]",
    }
    for name, message in failing.items():
        metric = name.removesuffix("]").split("-")[-1]
        assert f"{metric} FAIL" in message
        assert "planted" in message
        first = message.splitlines()[0]
        assert output.splitlines().count(first) == 1, "the terminal says each gate once"
    assert set(cases) - set(failing) == {
        "test_perplexity[tiny_gemma3-reference]", "test_fvu[tiny_gemma3-reference-layer3]"
    }  # fmt: skip
    # pytest counts tests, JUnit gates: the line that says so agrees with both
    assert "2 failed, 2 passed" in output
    assert "red: 3 gates failed in 2 tests: 3 fail (exit status 1)" in output
    assert GATE not in junit.read_text(encoding="utf-8")
    # the ids that -k and a rerun use are the tests'
    assert "FAILED benchmarks/test_sae_fvu.py::test_fvu[tiny_gemma3-rtn_int4-layer3]" in output


@pytest.mark.large
def test_a_green_run_has_the_file_that_pytest_wrote(tmp_path):
    status, output, junit = run(tmp_path, dict.fromkeys(("kl_divergence", "fvu_drift", "mse"), LOOSE))
    assert status == 0, output
    cases, suite = consistent(junit.read_text(encoding="utf-8"))
    assert len(cases) == 4
    assert list(suite.iter("property")) == list(suite.iter("failure")) == []


@pytest.mark.large
def test_a_cell_run_apart_tells_its_gates_too(tmp_path):
    """--isolate reads reports that were written down in another process."""
    status, output, junit = run(
        tmp_path, {"kl_divergence": LOOSE, "fvu_drift": TIGHT, "mse": TIGHT}, "--isolate"
    )
    assert status == 1, output
    cases, _ = consistent(junit.read_text(encoding="utf-8"))
    assert {name for name, one in cases.items() if one.find("failure") is not None} == {
        "test_fvu[tiny_gemma3-rtn_int4-layer3-fvu_drift]", "test_fvu[tiny_gemma3-rtn_int4-layer3-mse]"
    }  # fmt: skip
