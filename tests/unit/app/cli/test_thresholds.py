"""``qsae-bench thresholds check`` and ``update``, as a user types them."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qsae_bench.app.cli.main import main
from qsae_bench.gate.verdict import decide
from qsae_bench.report.notes import notes
from qsae_bench.results.document import RunDocument, verdict_record
from qsae_bench.results.threshold_edit import edited_text
from qsae_bench.stats.bootstrap import Estimate
from threshold_runs import (
    CELL,
    FILE,
    HARDWARE,
    LAYER,
    REFERENCE,
    cell,
    parse,
    run,
    updated,
    values,
    verdict,
)

# -- as a user types it -----------------------------------------------------------------------------


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a thresholds.toml and ``.qsae/latest``; what was measured is the file's to change."""
    monkeypatch.chdir(tmp_path)
    Path("thresholds.toml").write_text(FILE, encoding="utf-8")
    put_run(run())
    return tmp_path


def put_run(document: RunDocument, folder=".qsae/latest") -> Path:
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    (path / "run.json").write_text(json.dumps(document.model_dump(mode="json")), encoding="utf-8")
    return path


@pytest.fixture
def thresholds(capsys, place):
    """``thresholds("update", …)`` -> (status, standard output, standard error)."""

    def call(*arguments):
        status = main(["thresholds", *map(str, arguments)])
        return (status, *capsys.readouterr())

    return call


UPDATE = ("update", "--from", ".qsae/latest")


def test_an_update_prints_what_it_changes_and_writes_it(thresholds):
    status, out, err = thresholds(*UPDATE)
    assert (status, err) == (0, "")
    assert out.splitlines() == [
        "[tiny_gemma3.nf4]",
        "  kl_divergence   ≤ 0.6 → ≤ 0.4  tighter",
        "  top1_agreement  ≥ 0.8 → ≥ 0.9  tighter, so far [defaults.nf4]",
        "[tiny_gemma3.nf4.layer3]",
        "  fvu_drift       ≤ 0.007 → ≤ 0.004  tighter",
        "thresholds.toml: 3 tighter, from run 20261124T120000Z-abcd",
    ]
    assert Path("thresholds.toml").read_text(encoding="utf-8") == updated()[1]
    status, out, err = thresholds(*UPDATE)
    assert (status, err) == (0, "") and "nothing to write" in out


def test_loosening_without_a_reason_is_refused_and_writes_nothing(thresholds):
    status, out, err = thresholds(*UPDATE, "--margin", 5)
    assert (status, out) == (2, "")
    assert err.count("\n") == 1 and "--reason" in err
    assert "[tiny_gemma3.nf4] kl_divergence ≤ 0.6 → ≤ 1" in err
    assert Path("thresholds.toml").read_text(encoding="utf-8") == FILE
    status, out, err = thresholds(*UPDATE, "--margin", 5, "--dry-run")
    assert (status, err) == (0, "")
    assert out.endswith('--dry-run: nothing is written; --reason "…" is needed to loosen 3\n')
    assert Path("thresholds.toml").read_text(encoding="utf-8") == FILE
    status, out, err = thresholds(*UPDATE, "--margin", 5, "--reason", " a new\nkernel ")
    assert (status, err) == (0, "") and "≤ 0.6 → ≤ 1  looser" in out
    assert 'reason = "a new kernel"' in Path("thresholds.toml").read_text(encoding="utf-8")


def test_k_narrows_what_is_written(thresholds):
    put_run(run(REFERENCE, cell(), cell("int8")))
    status, out, _ = thresholds(*UPDATE, "-k", "int8")
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
def test_mistakes_take_one_line(thresholds, arguments, part):
    status, out, err = thresholds(*UPDATE, *arguments)
    assert (status, out) == (2, "") and err.count("\n") == 1 and part in err
    assert Path("thresholds.toml").read_text(encoding="utf-8") == FILE


def test_a_model_that_the_registry_lacks_is_named(thresholds):
    put_run(run(REFERENCE, cell(model="ours")))
    status, _, err = thresholds(*UPDATE)
    assert status == 2 and "unknown model 'ours'" in err and err.count("\n") == 1


def test_a_link_stays_a_link_and_the_mode_stays(thresholds, place):
    (place / "shared").mkdir()
    real = place / "shared" / "limits.toml"
    os.replace("thresholds.toml", real)
    real.chmod(0o640)
    Path("thresholds.toml").symlink_to(real)
    assert thresholds(*UPDATE)[0] == 0
    assert Path("thresholds.toml").is_symlink() and real.stat().st_mode & 0o777 == 0o640
    assert "2 × the value" in real.read_text(encoding="utf-8")
    assert sorted(path.name for path in real.parent.iterdir()) == ["limits.toml"]


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(thresholds, place, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("qsae_bench.results.threshold_edit.put", full)
    status, out, err = thresholds(*UPDATE)
    assert (status, out) == (2, "")
    assert err == "qsae-bench: thresholds.toml: can't be written: No space left on device\n"
    assert Path("thresholds.toml").read_text(encoding="utf-8") == FILE
    assert sorted(path.name for path in place.iterdir()) == [".qsae", "thresholds.toml"]


def test_a_file_that_changed_meanwhile_is_left_alone(thresholds, monkeypatch):
    from qsae_bench.results import threshold_edit

    def changed(text, *rest):
        Path("thresholds.toml").write_text(FILE + "# Ann was here\n", encoding="utf-8")
        return edited_text(text, *rest)

    monkeypatch.setattr(threshold_edit, "edited_text", changed)
    status, _, err = thresholds(*UPDATE)
    assert status == 2 and "was changed meanwhile" in err
    assert Path("thresholds.toml").read_text(encoding="utf-8") == FILE + "# Ann was here\n"


# -- check ------------------------------------------------------------------------------------------


def row(out: str, *words: str) -> list[str]:
    pattern = r"\s+".join(map(re.escape, words)) + r"\s"
    (line,) = [line for line in out.splitlines() if re.match(pattern, line.strip() + " ")]
    return re.split(r"\s{2,}", line.strip())


def test_check_says_what_each_bound_takes(thresholds):
    status, out, err = thresholds("check")
    assert (status, err) == (0, "")
    assert max(map(len, out.splitlines())) <= 100
    assert out.startswith(
        "thresholds.toml: 5 bounds in 4 tables, 2 of them provisional; nothing in it is wrong\n"
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


def test_check_warns_where_max_tokens_cant_decide(thresholds):
    put_run(run(REFERENCE, cell(metrics=CELL | {"kl_divergence": (0.59, 0.5, 0.68)})))
    status, out, _ = thresholds("check")
    assert status == 0
    assert row(out, "kl_divergence")[3].endswith("!")
    flat = " ".join(out.split())
    assert (
        "warning: tiny_gemma3-nf4 kl_divergence: 260,096 tokens (max_tokens) can't decide ≤ 0.6 at 0.59 ± 0.09"
        in flat
    )
    assert flat.count("warning: ") == 1


def test_a_ratio_of_timings_takes_rounds_not_tokens(thresholds):
    ratio = {"prefill_speed_ratio": (0.8, 0.7, 0.9)}
    put_run(run(REFERENCE, cell(metrics=CELL | ratio, gated=[verdict("prefill_speed_ratio")])))
    bound = '[tiny_gemma3.nf4]\nprefill_speed_ratio = { min = 0.3, source = "s" }'
    Path("thresholds.toml").write_text(FILE.replace("[tiny_gemma3.nf4]", bound), encoding="utf-8")
    assert row(thresholds("check")[1], "prefill_speed_ratio") == [
        "prefill_speed_ratio", "≥ 0.3", "0.8 ± 0.1", "by rounds", "–", "pass",
    ]  # fmt: skip
    assert thresholds(*UPDATE)[0] == 0
    found = parse(Path("thresholds.toml").read_text(encoding="utf-8"))
    entry = found.find("tiny_gemma3", "nf4", "prefill_speed_ratio")
    assert (entry.bound, entry.source, entry.provenance.tokens) == (0.6, "2 × the loss", None)


def test_a_run_shows_where_a_general_bound_stood_in():
    """In its notes, green or red, and what the bound rests on."""
    threshold = parse(updated()[1] + HARDWARE[len(FILE) :].replace("H200", "B200")).find(
        "tiny_gemma3", "nf4", "top1_agreement", hardware="NVIDIA A100"
    )
    judged = decide("top1_agreement", Estimate(0.95, 0.94, 0.96), threshold, 32512)
    kept = verdict_record(judged)
    assert kept.source.startswith(
        "2 × the loss; measured 0.95 [0.94, 0.96] on 32512 tokens of tiny in sequences of 128, NVIDIA H200"
    )
    document = run(REFERENCE, cell(verdicts=[kept.model_dump()]))
    assert "nf4: general thresholds: no entry for NVIDIA A100: top1_agreement" in list(
        notes(document.cells, document)
    )


def test_check_shows_where_a_general_bound_stands_in(thresholds):
    Path("thresholds.toml").write_text(HARDWARE.replace("H200", "B200"), encoding="utf-8")
    out = " ".join(thresholds("check")[1].split())
    assert "[defaults.nf4], general: no entry for NVIDIA H200: top1_agreement" in out
    Path("thresholds.toml").write_text(HARDWARE, encoding="utf-8")
    assert row(thresholds("check")[1], "top1_agreement")[1] == "≥ 0.9"


def test_check_without_a_run_reads_the_file_only(thresholds, place):
    (place / ".qsae" / "latest" / "run.json").unlink()
    (place / ".qsae" / "latest").rmdir()
    status, out, err = thresholds("check")
    assert (status, err) == (0, "") and "no run in .qsae/latest" in out
    status, out, err = thresholds("check", "--run", "nowhere")
    assert (status, out) == (2, "") and err.count("\n") == 1
    Path("thresholds.toml").write_text(FILE.replace("nf4.layer3", "nf5.layer3"), encoding="utf-8")
    status, out, err = thresholds("check")
    assert (status, out) == (2, "") and "did you mean 'nf4'?" in err


def test_check_narrows_by_k(thresholds):
    put_run(run(REFERENCE, cell(), cell("int8")))
    out = thresholds("check", "-k", "int8")[1]
    assert "tiny_gemma3-nf4" not in out
    assert "bound nothing" not in out


@given(
    st.sampled_from(["abc", "3", "-1", "9" * 400, "03"]),
    st.integers(-(10**30), 10**30),
    st.text(max_size=5),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=30)
def test_odd_run_documents_are_no_crash(thresholds, layer, tokens, text):
    odd = cell(layers={layer: {"metrics": values(LAYER | {text: (1,)})}}, tokens=tokens, reason="")
    put_run(
        run(
            REFERENCE,
            odd,
            run_id=text,
            finished=text,
            environment={"cpu": text, "gpus": [text], "versions": text},
        )
    )
    for arguments in (("check",), (*UPDATE, "--dry-run")):
        status, _, err = thresholds(*arguments)
        assert status == 0 or (status == 2 and err.count("\n") == 1)
