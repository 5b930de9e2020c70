"""Whatever a run, a registry or a thresholds file holds: what is printed stays within 100 columns and acts on nothing."""

from __future__ import annotations

import json
import re
from typing import get_args

import pytest

from nights import night
from qsae_bench.app.cli.main import main
from qsae_bench.gate.verdict import Status
from qsae_bench.metrics import METRICS_VERSION
from qsae_bench.report.tables import WIDTH
from qsae_bench.results.document import RunDocument

HOSTILE = "\x1b]0;t\x07\x1b[2J\x1b[31m<script>alert('x')</script>\n\r\n# \u202e\u2066lr\u2069\u200f\"q\"|`\x9b1m\u2028\x85\x00\t{0}"
LONG = "a_name_of_sixty_characters_that_nobody_would_ever_give_v1.00"
WIDE = "量化模型" * 15
TALE = "a reason that tells all it knows and more, " * 12

BIG = 12_345_678.5


def value(middle=BIG, half=1_234_567.25):
    return {"value": middle, "low": middle - half, "high": middle + half}


METRICS = (
    "perplexity", "perplexity_increase_pct", "kl_divergence", "top1_agreement", "cross_entropy",
    "cross_entropy_delta", "cross_entropy_delta_pct", "bits_per_weight", "weight_gain_error", "load_seconds",
    "prefill_tokens_per_second", "decode_tokens_per_second", "sae_tokens_per_second", "weight_bytes",
    "evaluation_tokens_per_second", "evaluation_overhead", "peak_memory_bytes",
)  # fmt: skip
OF_LAYERS = (
    "fvu", "fvu_drift", "fvu_scalar", "fvu_scalar_bos", "l0", "mse", "feature_survival", "resolution_ratio",
    "splice_loss", "splice_excess", "loss_recovered", "perturbation_rel_l2", "perturbation_token_l2",
)  # fmt: skip


def scoped(factor=1.0):
    metrics = {key: value(factor * BIG) for key in METRICS}
    return {
        "metrics": metrics,
        "layers": {"17": {"metrics": {key: value(factor * BIG) for key in OF_LAYERS}}},
    }


def cell(quantization, **changes):
    feature = {
        "index": 12345678, "active_reference": 12345678, "active_quantized": 2, "correlation": 0.1,
        "slope": 0.2, "weight": BIG,
    }  # fmt: skip
    found = scoped() | {
        "model": "m", "quantization": quantization, "status": "measured", "reason": "a reason",
        "verdicts": [
            {
                "metric": "fvu_drift", "layer": 17, "status": status, "side": "max", "bound": BIG, "source": "s",
                "provisional": False, "tokens": 12345678, "reason": "why", "attribution": "moved", "fallback": "f",
            }
            for status in get_args(Status)
        ],
        "stability": [scoped() | {"tokens": tokens} for tokens in (16_256, 12_345_678)],
        "still_moving": ["kl_divergence"],
        "quantized": {
            "share": 0.5, "simulated": True, "skipped": ["a module"], "worst_matrix": "3.mlp", "worst_gain": 3.0,
        },
        "warnings": ["a warning"], "tokens": 12345678, "planned_tokens": 23456789, "looks": 2,
    }  # fmt: skip
    found["layers"]["17"]["worst_features"] = [feature]
    return found | changes


def document(**changes):
    corpus = {
        "name": "c", "fingerprint": "f" * 32, "sequences": 12345678, "sequence_length": 12345678,
        "tokens": 12345678, "batch_size": 4, "dropped_documents": 0, "dropped_tokens": 0, "source": "s",
    }  # fmt: skip
    return {
        "schema_version": 1, "metrics_version": METRICS_VERSION, "run_id": "r", "started": "2026-01-01T00:00:00+00:00", "finished": "f",
        "command": "pytest", "corpus": {"m": corpus}, "published": {"m": {"q": {"cross_entropy_delta_pct": 1.0}}},
        "environment": {"cpu": "a CPU", "gpus": [{"name": "a GPU"}], "versions": {"torch": "2"}, "driver": "d"},
        "cells": [
            cell("reference", noise_floor=scoped()), cell("q", beside=scoped(0.5)),
            cell("gone", status="error"), cell("oom", status="oom"),
        ],
    } | changes  # fmt: skip


KEPT = ("reference", "schema_version")


def filled(tree, text, path=()):
    """Each string of the document that may be any, and each name of a model, a quantization or a layer."""
    if isinstance(tree, dict):
        named = path and path[-1] in ("corpus", "published", "layers", "versions")
        return {text if named else key: filled(part, text, (*path, key)) for key, part in tree.items()}
    if isinstance(tree, list):
        return [filled(part, text, (*path, "[]")) for part in tree]
    fixed = ("status", "side", "protocol", "metric", "started", "still_moving")
    free = isinstance(tree, str) and tree not in KEPT and not set(fixed) & set(path)
    return text if free else tree


TEXTS = pytest.mark.parametrize(
    "text", [HOSTILE, LONG, WIDE, TALE], ids=["hostile", "long", "wide", "tale"]
)


def check_inert(printed, width=WIDTH):
    from terminal_width import shown

    acting = {c for c in printed if not c.isprintable() and c != "\n"}
    assert acting == set()
    if width:
        assert [line for line in printed.splitlines() if shown(line) > width] == []


@pytest.fixture
def call(capsys, tmp_path, monkeypatch):
    """``call(*arguments)`` -> (status, standard output); both streams are inert."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        status = main([str(one) for one in arguments])
        out, err = capsys.readouterr()
        check_inert(out, 0 if "json" in arguments else WIDTH)
        check_inert(err, 0)
        assert len(err.splitlines()) <= 1
        return status, out

    return run


def put(folder, tree):
    RunDocument.model_validate(tree)
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps(tree), encoding="utf-8")
    return folder


@TEXTS
@pytest.mark.parametrize(
    "kind", [{}, {"protocol": "study"}, {"synthetic": True}], ids=["own", "study", "synthetic"]
)
def test_show(call, tmp_path, text, kind):
    folder = put(tmp_path / "run", filled(document(**kind), text))
    status, out = call("show", folder)
    assert status == 0 and "invalid" in out
    status, out = call("show", folder, "-k", "reference")
    assert status == 0 and "perplexity_increase_pct" in out and "suspicious" in out
    for line in out.splitlines():
        assert not re.search(r"perplexity_increase_pc(?!t)", line), "a metric's name is whole"


def test_numbers_of_eight_digits_are_whole(call, tmp_path):
    _, out = call("show", put(tmp_path / "run", document()))
    for number in ("12345678.5000", "+12345678.500 ± 1234567.250", "1.23e+07", "12,345,678"):
        assert number in out


@TEXTS
@pytest.mark.parametrize(
    "arguments",
    [["compare", "--run", "run"], ["compare", "q", "--run", "run"], ["compare", "--run", "run", "--format", "json"],
     ["thresholds", "check", "--run", "run", "--thresholds", "t.toml"], ["show", "run", "-k", "nowhere"]],
    ids=lambda arguments: "-".join(arguments[:2]),
)  # fmt: skip
def test_whatever_is_asked_of_a_hostile_run(call, tmp_path, text, arguments):
    put(tmp_path / "run", filled(document(), text))
    (tmp_path / "t.toml").write_text("")
    status, out = call(*arguments)
    assert (status, bool(out)) in ((0, True), (2, False))


@TEXTS
def test_history(call, tmp_path, text):
    text = text.replace("\x00", "")  # which no database keeps
    for number in range(1, 4):
        tree = json.loads(night(number, gpu=text, versions={"torch": f"{text}{number}"}).model_dump_json())
        tree["run_id"] = f"{tree['run_id']}-{text}"
        put(tmp_path / "runs" / str(number), tree)
    assert call("history", "--history", "sqlite:///h.sqlite", "import", "runs")[0] == 0
    status, out = call(
        "history", "--history", "sqlite:///h.sqlite", "--model", "tiny", "--metric", "kl_divergence"
    )
    assert status == 0 and "0.01 ± 0.002" in out
    call("history", "--history", "sqlite:///h.sqlite", "--model", text, "--metric", "kl_divergence")


REGISTRY = """
[models.m_a_name_of_sixty_characters_that_nobody_would_ever_give_0]
source = {text}
n_layers = 99999999
d_model = 8
layers = [1]
corpus = "tiny"
sae = {{ folder = {text}, d_in = 8 }}
[quantizations.q_a_name_of_sixty_characters_that_nobody_would_ever_give_]
backend = "transformers"
options = {{ {text} = {text} }}
"""


@TEXTS
@pytest.mark.parametrize("command", ["list", "plan"])
def test_a_registry(call, tmp_path, text, command):
    quoted = '"' + "".join(f"\\U{ord(c):08x}" for c in text) + '"'
    (tmp_path / "r.toml").write_text(REGISTRY.format(text=quoted), encoding="utf-8")
    status, out = call(command, "--registry", "r.toml")
    assert status == 0
    if command == "list":
        assert re.search(r"m_a_nam\w*…\w*give_0", out)
    for wrong in (f"[models.{quoted}]", f"[{quoted}]", f"[models.gpt2_small]\n{quoted} = 1"):
        (tmp_path / "w.toml").write_text(wrong, encoding="utf-8")
        assert call(command, "--registry", "w.toml")[0] == 2


@TEXTS
def test_a_thresholds_file(call, tmp_path, text):
    put(tmp_path / "run", document())
    quoted = '"' + "".join(f"\\U{ord(c):08x}" for c in text) + '"'
    for wrong in (f"[{quoted}]\nfvu = {{ max = 1 }}", f"[defaults.nf4]\n{quoted} = {{ max = 1 }}"):
        (tmp_path / "t.toml").write_text(wrong, encoding="utf-8")
        assert call("thresholds", "check", "--run", "run", "--thresholds", "t.toml")[0] == 2


@pytest.mark.parametrize("command", ["list", "plan"])
def test_the_registrys_own_names_fit(call, command):
    selected = (
        [] if command == "list" else ["--device", "cuda", "-k", "gemma or llama or qwen or tiny or gpt2"]
    )
    assert call(command, *selected)[0] == 0
