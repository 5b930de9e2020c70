"""Bounds of a run's time, against closed forms and a list scheduler; costs by hand; the command."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from builders import corpus_spec
from documents import run_document
from qsae_bench.app.cli.main import main
from qsae_bench.errors import QsaeError
from qsae_bench.measure import resources
from qsae_bench.registry.sae_spec import SaeSpec
from qsae_bench.registry.specs import Cell, ModelSpec, QuantizationSpec
from qsae_bench.results.document import RunDocument, text_of
from qsae_bench.run.scale import CellCost, costs_of_plan, costs_of_run, run_time

SMALL = ModelSpec(
    "small", "some/small", n_layers=3, d_model=16, layers=(0, 2), corpus="tiny",
    sae=SaeSpec(16, release="some", id_template="{layer}", d_sae=100), checkpoint_extra=1000,
    architecture={
        "model_type": "llama", "vocab_size": 1000, "intermediate_size": 40, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 8, "tie_word_embeddings": False,
    },
)  # fmt: skip
OWN, NF4 = (
    Cell(SMALL, QuantizationSpec("reference", "none")),
    Cell(SMALL, QuantizationSpec("nf4", "transformers", stored_bits=4.5)),
)

# -- bounds

seconds = st.floats(0, 100)
models = st.lists(
    st.tuples(seconds, seconds, st.lists(seconds, min_size=1, max_size=6)), min_size=1, max_size=3
)


def cells_of(models):
    return [
        CellCost(f"m{number}", f"q{k}" if k else "reference", setup, rest)
        for number, (setup, stored, quantized) in enumerate(models)
        for k, rest in enumerate([stored, *quantized])
    ]


def list_schedule(cells, workers):
    """When the last ends if whoever is free takes the first that is ready; each worker sets a model up once."""
    free, ready_at, known, waiting = [0.0] * workers, {}, [set() for _ in range(workers)], list(cells)
    now, end = 0.0, 0.0
    while waiting:
        ready = [
            cell
            for cell in waiting
            if cell.quantization == "reference" or ready_at.get(cell.model, float("inf")) <= now
        ]
        idle = [k for k in range(workers) if free[k] <= now]
        if ready and idle:
            cell, worker = ready[0], idle[0]
            waiting.remove(cell)
            setup = 0.0 if cell.model in known[worker] else cell.setup
            known[worker].add(cell.model)
            free[worker] = now + setup + cell.rest
            end = max(end, free[worker])
            if cell.quantization == "reference":
                ready_at[cell.model] = free[worker]
        else:
            now = min(one for one in (*free, *ready_at.values()) if one > now)
    return end


@settings(deadline=None)
@given(models, st.integers(1, 5))
def test_a_schedule_lies_between_the_bounds(models, workers):
    cells = cells_of(models)
    found, taken = run_time(cells, workers), list_schedule(cells, workers)
    assert found.at_least <= taken * (1 + 1e-9) + 1e-9
    assert taken <= found.at_most * (1 + 1e-9) + 1e-9


@given(models, seconds)
def test_one_worker_takes_the_sum(models, start):
    cells = cells_of(models)
    total = start + sum(cell.rest for cell in cells) + sum(setup for setup, _, _ in models)
    found = run_time(cells, 1, start)
    assert found.at_least == pytest.approx(total)
    assert found.at_most == pytest.approx(total)


THREE = (
    CellCost("m", "reference", 3.0, 17.0, timed=5.0),
    CellCost("m", "long", 0.0, 25.0, timed=1.0),
    CellCost("m", "short", 0.0, 3.0),
)


def test_many_workers_take_the_longest_chain():
    """Setup 3, the reference without what is timed of it 12 (nobody waits for that), the long cell 25."""
    found = run_time(THREE, 1000, start=7.0)
    assert found.longest_chain == found.at_least == 7 + 3 + 12 + 25
    assert found.work_per_worker == pytest.approx(7 + (3 + 17 + 25 + 3) / 1000)
    # at most: what is timed of the reference is a fourth task, of 17 at most; each has a process of its own
    work = 12 + 17 + 25 + 3 + 4 * (7 + 3)
    assert found.at_most == pytest.approx(work / 1000 + 0.999 * (7 + 3 + 12 + 7 + 3 + 25))


# -- costs by counting


def test_counted_costs_by_hand():
    """10368 weights in blocks; a head of 16 · 1000; two SAEs of 16 · 100 each way; a reference has one side."""
    corpus = corpus_spec(sequence_length=10, batch_size=2, tokens=95)
    reference, nf4 = costs_of_plan({OWN: corpus, NF4: corpus}, flops=1e6, bandwidth=1e3)
    read = 2 * (10368 + 32000 + 1000) + resources.estimate_need(NF4, corpus, on_gpu=True).store
    one_side = 16000 + 2 * 2 * 1600
    assert reference.rest == pytest.approx(110 * 2 * (10368 + one_side) / 1e6 + read / 1e3)
    assert nf4.rest == pytest.approx(110 * 2 * (10368 + 2 * one_side) / 1e6 + read / 1e3)
    assert nf4.setup == 2 * 2 * 1600 * 4 / 1e3
    with pytest.raises(QsaeError, match="no architecture"):
        costs_of_plan({replace(OWN, model=replace(SMALL, architecture={})): corpus}, 1.0, 1.0)


# -- costs of a run


def document(busy=100.0) -> RunDocument:
    """Of tiny_gemma3: reference, int8 and nf4; workers were busy with each for so long."""
    record = run_document(models=("tiny_gemma3",), layers=(1, 3, 4)).model_dump()
    record["environment"]["worker_start_seconds"] = 5.0
    for cell in record["cells"]:
        own = 20.0 if cell["quantization"] == "reference" else 0.0
        cell |= {"busy_seconds": busy, "setup_seconds": own}
        cell["timings"] = {
            "prefill": {
                "seconds": [0.2] * 5, "median_seconds": 0.2, "spread_seconds": 0.0, "rounds": 5, "tokens": 64,
            }
        }  # fmt: skip
    return RunDocument.model_validate(record)


def test_measured_costs_by_hand():
    reference, int8, _ = costs_of_run(document())
    assert reference.timed == pytest.approx(6 * 0.2)  # five rounds and a warm-up
    assert (reference.setup, reference.rest, int8.rest) == (20.0, 80.0, 100.0)
    short, *_ = costs_of_run(document(busy=20.5))
    assert (short.rest, short.timed) == (0.5, 0.5), "no part is longer than the whole"
    with pytest.raises(QsaeError, match="does not record what its cells took"):
        costs_of_run(document(busy=0.0))


# -- the command


@pytest.fixture
def run(capsys, tmp_path, monkeypatch):
    """``run(*arguments)`` -> (status, output, error), where ``mine`` is a run's folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "run.json").write_text(text_of(document()), encoding="utf-8")

    def call(*arguments):
        status = main(("scale", *arguments))
        return (status, *capsys.readouterr())

    return call


COUNTED = ("--flops", "400e12", "--bandwidth", "2e9")


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["mine", "--gpus", "1,8,64"], "assumed"),
        ([*COUNTED, "--models", "gemma3_4b", "--quantizations", "nf4"], "cells: gemma3_4b-reference, gemma3_4b-nf4\n"),
    ],
)  # fmt: skip
def test_a_table_of_the_bounds(run, arguments, part):
    status, output, error = run(*arguments)
    assert (status, error) == (0, "")
    assert max(map(len, output.splitlines())) <= 100
    for expected in ("at least", "work per worker", "longest chain", "at most", part):
        assert expected.lower() in output.lower()


def test_the_newest_run_of_a_folder_as_json(run, tmp_path):
    (tmp_path / "q").mkdir()
    (tmp_path / "q" / "latest").symlink_to(tmp_path / "mine")
    status, output, _ = run("--qsae-dir", "q", "--format", "json", "--gpus", "1,2")
    one, two = json.loads(output)
    assert (status, one["workers"], two["workers"]) == (0, 1, 2)
    assert one["at_least"] == one["at_most"] == pytest.approx(305), "what its cells took, and the start"


def test_no_torch_is_imported():
    code = "import sys; from qsae_bench.app.cli.main import main; main(sys.argv[1:]); print('torch' in sys.modules)"
    arguments = [sys.executable, "-c", code, "scale", *COUNTED]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "False", done.stderr


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ([], "run.json: can't be read"),
        (["nowhere"], "nowhere/run.json"),
        (["mine", "--gpus", "1,zero"], "--gpus 'zero'"),
        (["mine", "--layers", "all"], "--layers: goes with --flops"),
        (["mine", "-k", "nf4"], "-k: goes with --flops"),
        (["mine", *COUNTED], "--flops: goes with --flops F --bandwidth B, and without a run"),
        (["--flops", "400e12"], "--flops: goes with --flops F --bandwidth B"),
        (["--flops", "1", "--bandwidth", "0"], "--bandwidth 0: more than 0"),
        ([*COUNTED, "--models", "gemma9"], "gemma9"),
    ],
)
def test_what_is_wrong_is_one_line(run, arguments, part):
    status, output, error = run(*arguments)
    assert (status, output) == (2, "")
    assert len(error.splitlines()) == 1
    assert part in error
