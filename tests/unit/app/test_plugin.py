"""What pytest shows of a run: JUnit, exit statuses, the last line. In this process, on a fake session."""

from __future__ import annotations

import pytest

import fake_session
from benchmark_suite import LOOSE, TIGHT
from qsae_bench.errors import CannotRun, QsaeError

QUALITY = "perplexity or fvu or test_divergence"
FOUR = {
    "perplexity_increase_pct": LOOSE, "kl_divergence": LOOSE, "fvu_drift": LOOSE, "top1_agreement": LOOSE.replace("max = 1e9", "min = 1e-9"),
}  # fmt: skip


def failing(suite):
    return {
        name: case.find("failure")
        for name, case in suite.cases().items()
        if case.find("failure") is not None
    }


def properties(case):
    return {one.get("name"): one.get("value") for one in case.iter("property")}


def test_every_gate_is_a_test(suite):
    suite.gates(**FOUR)
    result = suite.run("--quantizations=reference,nf4", "-k", QUALITY)
    assert result.ret == 0, result.stdout.str()
    assert list(suite.cases()) == [
        "test_divergence[small-reference]", "test_perplexity[small-reference-perplexity]",
        "test_fvu[small-reference-layer3-fvu]", "test_fvu[small-reference-layer3-l0]",
        "test_divergence[small-nf4-kl_divergence]", "test_divergence[small-nf4-top1_agreement]",
        "test_perplexity[small-nf4-perplexity_increase_pct]", "test_fvu[small-nf4-layer3-fvu_drift]",
    ]  # fmt: skip
    result.assert_outcomes(passed=8)
    # all but the one of a reference that has nothing to hold
    result.stdout.fnmatch_lines(["green: 7 gates passed (exit status 0)"])


def test_a_failing_gate_is_a_failing_test_case(suite):
    suite.gates(**FOUR | {"kl_divergence": TIGHT, "mse": TIGHT})
    result = suite.run("--quantizations=nf4", "-k", QUALITY)
    assert result.ret == 1
    found = failing(suite)
    assert set(found) == {"test_divergence[small-nf4-kl_divergence]", "test_fvu[small-nf4-layer3-mse]"}
    output = result.stdout.str()
    for name, failure in found.items():
        metric = name.removesuffix("]").split("-")[-1]
        assert f"{metric} FAIL" in failure.text and "planted" in failure.text
        assert output.splitlines().count(failure.text.splitlines()[0]) == 1, "the terminal shows it once"
        assert properties(suite.cases()[name]) == {"qsae_status": "fail"}
    result.assert_outcomes(failed=2, passed=3)
    result.stdout.fnmatch_lines(["red: 2 gates failed: 2 fail (exit status 1)"])


def test_provisional_bounds_are_counted_and_under_strict_they_are_none(suite):
    entries = "".join(f"{metric} = {{ {bound} }}\n" for metric, bound in FOUR.items())
    suite.thresholds(f"[defaults.nf4]\n{entries}")
    result = suite.run("--quantizations=nf4", "-k", QUALITY)
    assert result.ret == 0
    result.stdout.fnmatch_lines(
        ["green: 7 gates passed; 4 of 7 gates by provisional bounds (exit status 0)"]
    )
    result = suite.run("--quantizations=nf4", "-k", QUALITY, "--strict")
    assert result.ret == 1
    found = failing(suite)
    assert len(found) == 4
    assert all("UNSET" in one.text and "the bound is provisional" in one.text for one in found.values())
    result.stdout.fnmatch_lines(["red: 4 gates failed: 4 unset (exit status 1)"])


def test_a_verdict_names_what_it_judged(suite):
    suite.gates(**FOUR)
    shown = suite.run("--quantizations=nf4", "-k", "fvu_drift").stdout.str()
    assert "pass (fvu_drift only)" in shown
    shown = suite.run("--quantizations=reference,nf4", "-k", "evaluation").stdout.str()
    assert "; no gate judged small-nf4 (exit status 0)" in " ".join(shown.split())


def test_a_ruined_model_is_red_or_named(suite, monkeypatch):
    """With the numbers of 2 bits a weight, and no bounds but the defaults."""
    monkeypatch.setitem(fake_session.RUINED, "small-nf4", True)
    entries = 'fvu_drift = { max = 1e9, source = "s" }\nkl_divergence = { max = 0.1, source = "s" }\n'
    suite.thresholds(f"[defaults.nf4]\n{entries}")
    assert suite.run("--quantizations=nf4", "-k", "kl_divergence").ret == 1
    result = suite.run("--quantizations=nf4", "-k", "fvu_drift")
    assert result.ret == 0
    shown = " ".join(result.stdout.str().split())
    said = "is no working model: kl_divergence 1.38, top1_agreement 0.1"
    assert f"note: nf4 {said}, whatever was judged" in shown
    assert "green: 4 gates passed; 1 of 4 gates by provisional bounds; small-nf4 " + said in shown


@pytest.mark.parametrize(
    ("keyword", "names"),
    [
        ("fvu_drift", ["test_fvu[small-nf4-layer3-fvu_drift]"]),
        (
            "kl_divergence",
            ["test_divergence[small-nf4-kl_divergence]", "test_generation[small-nf4-decode_kl_divergence]"],
        ),
        ("layer3 and not drift", []),
    ],
)
def test_a_metric_can_be_selected(suite, keyword, names):
    suite.gates(**FOUR)
    suite.run("--quantizations=nf4", "-k", f"({keyword}) and not features")
    assert list(suite.cases()) == names


def test_a_ratio_of_timings_is_selected_by_its_metric(suite):
    suite.thresholds(
        '[small.nf4]\nprefill_speed_ratio = { min = 1, source = "s" }\n[small.reference]\n'
        'evaluation_overhead = { max = 2, source = "s" }\n'
        'evaluation_forward_ratio = { min = 0.5, source = "s" }\n'
    )
    suite.run("--quantizations=nf4,reference", "-k", "evaluation_overhead or speed_ratio")
    ratio = "test_prefill[small-nf4-prefill_speed_ratio]"
    assert list(suite.cases()) == ["test_overhead[small-reference-evaluation_overhead]", ratio]
    suite.run("--quantizations=nf4,reference", "-k", "prefill or test_decode or test_overhead")
    assert list(suite.cases()) == [
        "test_overhead[small-reference-evaluation_forward_ratio]",
        "test_overhead[small-reference-evaluation_overhead]", "test_prefill[small-reference]",
        "test_decode[small-reference]", "test_overhead[small-nf4]", ratio, "test_decode[small-nf4]",
    ]  # fmt: skip


def test_a_metric_without_a_threshold_is_unset(suite):
    result = suite.run("--quantizations=nf4", "-k", "test_divergence and kl_divergence")
    assert result.ret == 1
    (failure,) = failing(suite).values()
    assert "kl_divergence UNSET" in failure.text and "add kl_divergence to thresholds.toml" in failure.text


def test_an_optional_gate_of_other_hardware_is_skipped(suite):
    suite.thresholds(f'[small.nf4.hardware."NVIDIA H200"]\nmse = {{ {TIGHT} }}\n')
    result = suite.run("--quantizations=nf4", "-k", "mse", "-rs")
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines([f"*mse: no threshold for {fake_session.CPU}"])
    suite.thresholds(f'[small.nf4.hardware."{fake_session.CPU}"]\nmse = {{ {TIGHT} }}\n')
    assert suite.run("--quantizations=nf4", "-k", "mse").ret == 1


def test_what_makes_a_cell_invalid_is_explained_once(suite, monkeypatch):
    monkeypatch.setitem(fake_session.NONFINITE, "small-nf4", True)
    suite.gates(**FOUR)
    result = suite.run("--quantizations=nf4", "-k", QUALITY)
    assert result.ret == 3, "nothing is known about the quantized model"
    texts = [failure.text for failure in failing(suite).values()]
    assert len(texts) == 4
    assert all("INVALID" in text and "non-finite values" in text for text in texts)
    assert [len(text.splitlines()) for text in texts][1:] == [1, 1, 1]
    assert len(texts[0].splitlines()) > 3
    result.stdout.fnmatch_lines(["red, but no regression: 4 gates failed: 4 invalid (exit status 3)"])


def test_a_regression_beside_an_invalid_cell_is_a_regression(suite, monkeypatch):
    monkeypatch.setitem(fake_session.NONFINITE, "small-nf4", True)
    suite.thresholds(
        "".join(f"[small.{name}]\nkl_divergence = {{ {TIGHT} }}\n" for name in ("nf4", "int8"))
    )
    assert suite.run("--quantizations=nf4,int8", "-k", "kl_divergence").ret == 1


@pytest.mark.parametrize(
    ("arguments", "outcome", "status"), [([], "skipped", 3), (["--strict"], "failed", 3)]
)
def test_a_machine_that_lacks_something_is_not_green(suite, monkeypatch, arguments, outcome, status):
    monkeypatch.setitem(fake_session.REFUSED, "small-nf4", CannotRun("small needs a GPU"))
    result = suite.run("--quantizations=nf4", "-k", "perplexity", "-rs", *arguments)
    assert result.ret == status
    counts = result.parseoutcomes()
    assert counts[outcome if outcome in counts else "errors"] == 1
    assert "small needs a GPU" in result.stdout.str()


def test_a_cell_that_fails_to_load_fails_its_tests_in_one_line(suite, monkeypatch):
    monkeypatch.setitem(fake_session.REFUSED, "small-nf4", QsaeError("no such folder\x1b[2J"))
    result = suite.run("--quantizations=nf4")
    assert result.ret == 3
    output = result.stdout.str()
    assert "no such folder [2J" in output and "Traceback" not in output


def test_a_run_that_can_not_be_written_is_not_green(suite):
    suite.gates(**FOUR)
    (suite.pytester.path / "q").mkdir()
    (suite.pytester.path / "q" / "runs").write_text("a file where the folder should be")
    result = suite.run("--quantizations=nf4", "-k", "kl_divergence", "--qsae-dir=q")
    assert result.ret == 3
    assert "ERROR: " in result.stdout.str()


def test_only_collecting_is_0_and_nothing_selected_is_3(suite):
    assert suite.run("--collect-only", "-q").ret == 0
    result = suite.run("-k", "nf5")
    assert result.ret == 3
    result.stdout.fnmatch_lines(["qsae-bench: -k 'nf5' leaves nothing to measure; models: tiny_gemma3, *"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--quantizations=nf5"], "unknown quantization 'nf5' (did you mean 'nf4'?)"),
        (["--registry=nowhere.toml"], "nowhere.toml: can't be read"),
        (["--thresholds=nowhere.toml"], "nowhere.toml: can't be read"),
        (["--tokens=0"], "--tokens 0: at least 1 is needed"),
        (["--models=smal"], "unknown model 'smal'"),
        (["no_such_folder"], "file or directory not found: no_such_folder"),
        (["--isolate", "--isolate-timeout=0"], "--isolate-timeout 0: must be more than 0 seconds"),
        (["--isolate", "--isolate-timeout=-1"], "--isolate-timeout -1: must be more than 0 seconds"),
        (["--isolate", "--isolate-timeout=nan"], "--isolate-timeout nan: must be more than 0 seconds"),
        (["--isolate-timeout=60"], "--isolate-timeout: needs --isolate or --workers"),
        (["-k", "nf4 and ("], "Wrong expression passed to '-k'"),
    ],
)
def test_usage_is_2_with_one_line(suite, capsys, arguments, message):
    assert suite.status(*arguments) == 2
    output = "".join(capsys.readouterr())
    lines = [line for line in output.splitlines() if "ERROR" in line]
    assert len(lines) == 1 and lines[0].startswith(f"ERROR: {message}")
    assert "leaves nothing to measure" not in output


def test_what_pytest_can_not_parse_keeps_its_own_status(suite, capsys):
    """It is refused before any plugin is asked: docs/ci.md says so."""
    assert suite.status("--no-such-option") == 4
    assert "unrecognized arguments: --no-such-option" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[defaults.nf4\n", "not valid TOML"),
        ("[defaults.nf4]\nperplexty = { max = 1.0, source = 's' }\n", "unknown metric"),
        ("[defaults.nf5]\nfvu = { max = 1.0, source = 's' }\n", "unknown quantization"),
        ("[defaults.nf4]\nfvu = { max = 1.0 }\n", "source"),
        (
            "[small.nf4]\nkl_divergence = { min = 0.0037, source = 's' }\n",
            "[small.nf4] kl_divergence: min = 0.0037 lets every damage pass, because lower is better: write max",
        ),
        ("[small.nf4]\ntop1_agreement = { min = 90.2, source = 's' }\n", "90.2% is 0.902"),
        ("[small.nf4.layer7]\nfvu = { max = 1.0, source = 's' }\n", "layers: 3"),
        ("[small.nf4.hardware.'nvidia H200']\nfvu = { max = 1.0, source = 's' }\n", "'NVIDIA H200'"),
    ],
)
def test_a_wrong_thresholds_file_is_named(suite, capsys, text, message):
    suite.thresholds(text)
    assert suite.status() == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "ERROR" in line]
    assert "thresholds.toml" in line and message in line


@pytest.mark.parametrize(
    ("marker", "message"),
    [
        ("gates('kl_divergenc')", "gates: unknown metric 'kl_divergenc' (did you mean 'kl_divergence'"),
        ("gates(also=('los',))", "gates: unknown group of metrics 'los' (did you mean 'loss'?)"),
        ("gates('fvu', alos=('loss',))", "gates: unknown argument 'alos'"),
    ],
)
def test_a_wrong_marker_names_the_test(suite, capsys, marker, message):
    suite.pytester.makepyfile(
        test_mine=f"import pytest\n@pytest.mark.{marker}\ndef test_it(measured, gate):\n    gate()\n"
    )
    assert suite.status(path="test_mine.py") == 2
    assert message in "".join(capsys.readouterr())


def test_a_benchmark_of_ones_own(suite):
    """Each metric of the marker is a test; without it the fixture says what it needs."""
    suite.gates(mse=TIGHT, fvu=LOOSE)
    suite.pytester.makepyfile(
        test_mine="import pytest\n"
        "@pytest.mark.gates('fvu', also=('reconstruction',))\n"
        "def test_both(measured, gate, layer):\n    gate()\n"
        "def test_unmarked(measured, gate):\n    gate()\n"
    )
    result = suite.run("--quantizations=nf4", path="test_mine.py")
    assert list(suite.cases()) == [
        "test_both[small-nf4-layer3-fvu]", "test_both[small-nf4-layer3-mse]", "test_unmarked[small-nf4]"
    ]  # fmt: skip
    assert result.ret == 1
    assert "the fixture gate needs the marker @pytest.mark.gates(metric, …)" in result.stdout.str()


def test_a_cells_load_and_pass_come_first_and_its_reference_before_it(suite):
    result = suite.run("--quantizations=nf4,reference", "--collect-only", "-q")
    tests = [line.partition("::")[2] for line in result.outlines if "::" in line]
    cells = [test.partition("[")[2].split("-")[1].rstrip("]") for test in tests]
    assert cells == sorted(cells, key=["reference", "nf4"].index)
    nf4 = [test for test in tests if "nf4" in test]
    assert nf4[:2] == ["test_load[small-nf4]", "test_evaluation[small-nf4]"]


def test_xdist_is_refused_for_the_benchmarks(suite, capsys):
    assert suite.status("-n", "2") == 2
    assert "use --workers N" in capsys.readouterr().err


# -- against the last accepted run

WORSE = "test_worse_than_accepted[small-nf4]"


def skipped(suite):
    return suite.cases()[WORSE].find("skipped").get("message")


@pytest.fixture
def damaged(suite, monkeypatch):
    """``damaged(*options)``: the second run, in which a cell is damaged within its bounds."""
    suite.gates(**FOUR)
    arguments = ("--quantizations=reference,nf4", "-k", f"{QUALITY} or worse_than")
    first = suite.run(*arguments)
    assert first.ret == 0, first.stdout.str()
    assert skipped(suite).startswith("no accepted run of small-nf4 on Fake CPU in ")
    assert "worse than accepted" not in first.stdout.str()
    monkeypatch.setitem(fake_session.DAMAGED, "small-nf4", True)
    return lambda *options: suite.run(*arguments, *options)


def test_a_cell_that_is_worse_than_accepted_passes_with_a_warning(suite, damaged):
    result = damaged()
    assert result.ret == 0
    assert suite.cases()[WORSE].find("failure") is None
    assert properties(suite.cases()[WORSE])["qsae_status"] == "worse than accepted"
    output = " ".join(result.stdout.str().split())
    assert "qsae-bench: small-nf4: worse than accepted: " in output
    assert "note: nf4: worse than accepted: " in output and "moved: the quantized model: " in output
    result.stdout.fnmatch_lines(["green: 7 gates passed; 1 cell worse than accepted (exit status 0)"])
    page = (suite.pytester.path / ".qsae" / "latest" / "summary.md").read_text()
    assert "### Worse than accepted" in page and "perturbation_nsr" in page
    # what was not accepted is not compared with: it stays worse until it is repaired or accepted
    again = damaged()
    again.stdout.fnmatch_lines(["green: 7 gates passed; 1 cell worse than accepted (exit status 0)"])


@pytest.mark.parametrize("option", ["--strict", "--accepted=fail"])
def test_a_cell_that_is_worse_than_accepted_fails_where_that_is_asked(suite, damaged, option):
    result = damaged(option)
    assert result.ret == 1
    failure = failing(suite)[WORSE].text
    assert failure.startswith("small-nf4: WORSE THAN ACCEPTED in ")
    assert "kl_divergence" in failure and "qsae-bench thresholds update --from .qsae/latest" in failure
    result.stdout.fnmatch_lines(["red: 1 gate failed: 1 worse than accepted (exit status 1)"])


def test_only_what_is_asked_fails(suite, damaged):
    assert damaged("--strict", "--accepted=warn").ret == 0
