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
from qsae_bench.registry.entries import load_registry
from qsae_bench.registry.sae_spec import SaeSpec
from qsae_bench.registry.specs import Cell, ModelSpec, QuantizationSpec
from qsae_bench.results.document import RunDocument, text_of
from qsae_bench.run.scale import (
    CellCost,
    costs_of_matrix,
    costs_of_plan,
    costs_of_run,
    position_flops,
    run_time,
)

REGISTRY = load_registry()
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
costs = st.lists(
    st.builds(CellCost, st.just("m"), st.just("nf4"), seconds, seconds, seconds, seconds),
    min_size=1,
    max_size=6,
)
models = st.lists(st.tuples(seconds, seconds, seconds, costs), min_size=1, max_size=3)


def cells_of(models):
    found = []
    for number, (load, passed, setup, quantized) in enumerate(models):
        name = f"m{number}"
        found.append(CellCost(name, "reference", load, 0.0, passed, setup))
        found += [
            CellCost(name, f"q{k}", one.load_seconds, one.timed_seconds, one.pass_seconds, setup)
            for k, one in enumerate(quantized)
        ]
    return found


def list_schedule(cells, workers):
    """When the last ends if whoever is free takes the first that is ready; each worker sets a model up once."""
    free, ready_at, known, waiting = [0.0] * workers, {}, [set() for _ in range(workers)], list(cells)
    now, end = 0.0, 0.0
    while waiting:
        ready = [
            cell for cell in waiting if cell.is_reference or ready_at.get(cell.model, float("inf")) <= now
        ]
        idle = [k for k in range(workers) if free[k] <= now]
        if ready and idle:
            cell, worker = ready[0], idle[0]
            waiting.remove(cell)
            setup = 0.0 if cell.model in known[worker] else cell.setup_seconds
            known[worker].add(cell.model)
            free[worker] = now + setup + cell.seconds
            end = max(end, free[worker])
            if cell.is_reference:
                ready_at[cell.model] = free[worker]
        else:
            now = min(one for one in (*free, *ready_at.values()) if one > now)
    return end


@settings(deadline=None)
@given(models, st.integers(1, 5))
def test_a_schedule_lies_between_the_bounds(models, workers):
    cells = cells_of(models)
    found, taken = run_time(cells, workers), list_schedule(cells, workers)
    assert found.at_least_seconds <= taken * (1 + 1e-9) + 1e-9
    assert taken <= found.at_most_seconds * (1 + 1e-9) + 1e-9


@given(models, seconds)
def test_one_worker_takes_the_sum(models, start):
    cells = cells_of(models)
    total = start + sum(cell.seconds for cell in cells) + sum(setup for _, _, setup, _ in models)
    found = run_time(cells, 1, start_seconds=start)
    assert found.at_least_seconds == pytest.approx(total)
    assert found.at_most_seconds == pytest.approx(total)


REFERENCE, LONG, SHORT = (
    CellCost("m", "reference", 2.0, 5.0, 10.0, 3.0),
    CellCost("m", "long", 4.0, 1.0, 20.0, 0.0),
    CellCost("m", "short", 1.0, 0.0, 2.0, 0.0),
)
THREE = (REFERENCE, LONG, SHORT)


def test_many_workers_take_the_longest_chain():
    """Setup 3, the reference's load and pass 12 (nobody waits for what is timed of it), the long cell 25."""
    found = run_time(THREE, 1000, start_seconds=7.0)
    assert found.chain_seconds == found.at_least_seconds == 7 + 3 + 12 + 25
    # at most: the long cell's process sets the model up, too; of all work a thousandth
    work = 17 + 25 + 3 + 2 + 3 * 4
    assert found.at_most_seconds == pytest.approx(7 + work / 1000 + 0.999 * (3 + 12 + 3 + 25))


def test_shards_share_the_pass_and_load_each():
    found = run_time(THREE, 10, shards=4)
    assert found.chain_seconds == 3 + 12 + 4 + 1 + 20 / 4
    assert found.work_seconds == pytest.approx((3 + 17 + 25 + 3) / 10)
    again = 2 + 3 * 4 + 3 * 1  # the reference's timed works, and three shards of each cell
    assert found.at_most_seconds == pytest.approx(
        (17 + 25 + 3 + again + 3 * (2 + 8)) / 10 + 0.9 * (3 + 12 + 3 + 10)
    )


def test_a_process_for_each_task_pays_for_its_start_and_setup():
    found = run_time(THREE, 2, start_seconds=7.0, fresh=True)
    assert found.work_seconds == pytest.approx((17 + 25 + 3 + 4 * 10) / 2)
    assert found.chain_seconds == 10 + 12 + 10 + 25


def test_a_matrix_repeats_models_and_cells_in_turn():
    other = (CellCost("n", "reference", 1.0, 1.0, 1.0, 1.0), CellCost("n", "only", 2.0, 2.0, 2.0, 2.0))
    made = costs_of_matrix((*THREE, *other, CellCost("alone", "reference", 9.0, 9.0, 9.0, 9.0)), 3, 3)
    assert [(cell.model, cell.quantization) for cell in made] == [
        ("m#1", "reference"), ("m#1", "long"), ("m#1", "short"), ("m#1", "long"),
        ("n#2", "reference"), ("n#2", "only"), ("n#2", "only"), ("n#2", "only"),
        ("m#3", "reference"), ("m#3", "long"), ("m#3", "short"), ("m#3", "long"),
    ]  # fmt: skip
    assert {cell.seconds for cell in made if cell.quantization == "only"} == {6.0}
    with pytest.raises(QsaeError, match="--matrix needs"):
        costs_of_matrix([REFERENCE], 2, 2)


# -- costs by counting


def test_flops_by_hand():
    """10368 weights in blocks; a head of 16 · 1000; two SAEs of 16 · 100 each way."""
    assert position_flops(OWN) == (2 * 10368 + 2 * 16000, 2 * 4 * 1600)
    assert position_flops(NF4) == (2 * 10368 + 2 * 2 * 16000, 2 * 2 * 4 * 1600)


def test_counted_costs_by_hand():
    corpus = corpus_spec(sequence_length=10, batch_size=2, tokens=95)
    reference, nf4 = costs_of_plan({OWN: corpus, NF4: corpus}, 1e6, 1e3, 1e4, 5)
    stored = resources.estimate_need(NF4, corpus, on_gpu=True).store / 1e3
    assert nf4.pass_seconds == pytest.approx(110 * ((20736 + 64000) / 1e6 + 25600 / 1e4) + stored)
    assert nf4.load_seconds == reference.load_seconds == 2 * (10368 + 32000 + 1000) / 1e3
    assert nf4.setup_seconds == 5 + 2 * 2 * 1600 * 4 / 1e3
    assert (reference.is_reference, nf4.is_reference) == (True, False)


def test_what_is_loaded_is_what_plan_says():
    corpus = corpus_spec(sequence_length=512, tokens=10_000)
    for cell in REGISTRY.select():
        (found,) = costs_of_plan({cell: corpus}, 1.0, 1.0)
        if download := resources.estimate_need(cell, corpus, on_gpu=True).download:
            assert found.load_seconds + found.setup_seconds == pytest.approx(download)


def test_a_cell_without_a_shape_is_refused():
    shapeless = replace(OWN, model=replace(SMALL, architecture={}))
    with pytest.raises(QsaeError, match="no architecture"):
        costs_of_plan({shapeless: corpus_spec()}, 1.0, 1.0)


# -- costs of a run


def document(busy=100.0, setup=20.0) -> RunDocument:
    """Of tiny_gemma3: reference, int8 and nf4, 32,512 tokens each; workers were busy with each for so long."""
    record = run_document(models=("tiny_gemma3",), layers=(1, 3, 4)).model_dump()
    for cell in record["cells"]:
        own = setup if cell["quantization"] == "reference" else 0.0
        cell |= {"busy_seconds": busy, "setup_seconds": own}
        if cell["status"] == "measured":
            cell["metrics"]["load_seconds"]["value"] = 3.0
        cell["timings"] = {
            "prefill": {
                "seconds": [0.2] * 5, "median_seconds": 0.2, "spread_seconds": 0.0, "rounds": 5, "tokens": 64,
            }
        }  # fmt: skip
    return RunDocument.model_validate(record)


def test_measured_costs_by_hand():
    reference, int8, _ = costs_of_run(document())
    timed = pytest.approx(6 * 0.2)  # five rounds and a warm-up
    assert (reference.load_seconds, reference.timed_seconds, reference.setup_seconds) == (3.0, timed, 20.0)
    assert reference.pass_seconds == pytest.approx(100 - 20 - 3 - 1.2)
    assert int8.pass_seconds == pytest.approx(100 - 3 - 1.2)
    found = run_time(costs_of_run(document()), 1)
    assert found.at_least_seconds == pytest.approx(300), "on one worker: what the run's own cells took"


def test_other_numbers_of_tokens_take_as_much_longer():
    whole, half = costs_of_run(document())[1], costs_of_run(document(), tokens=16256)[1]
    assert half.pass_seconds == pytest.approx(whole.pass_seconds / 2)
    assert (half.load_seconds, half.timed_seconds) == (whole.load_seconds, whole.timed_seconds)


def test_a_cell_that_took_less_than_its_parts_has_no_negative_costs():
    for cell in costs_of_run(document(busy=1.0)):
        assert min(cell.load_seconds, cell.timed_seconds, cell.pass_seconds) >= 0


def test_a_run_that_does_not_record_what_its_cells_took_is_refused():
    with pytest.raises(QsaeError, match="records no busy_seconds"):
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
    "arguments",
    [
        ["mine"], ["mine", "--matrix", "10x12", "--tokens", "500000", "--gpus", "1,8,64"], ["mine", "--shards", "4"],
        [*COUNTED, "--models", "gemma3_12b", "--layers", "all", "--matrix", "10x12", "--gpus", "1,8,64"],
    ],
)  # fmt: skip
def test_tables_fit(run, arguments):
    status, output, error = run(*arguments)
    assert (status, error) == (0, "")
    assert max(map(len, output.splitlines())) <= 100
    for part in ("at least", "work / workers", "longest chain", "at most", "assumed:"):
        assert part in output


def test_the_newest_run_of_a_folder(run, tmp_path):
    (tmp_path / "q").mkdir()
    (tmp_path / "q" / "latest").symlink_to(tmp_path / "mine")
    assert run("--qsae-dir", "q") == run("mine")


def test_no_torch_is_imported(tmp_path):
    code = "import sys; from qsae_bench.app.cli.main import main; main(sys.argv[1:]); print('torch' in sys.modules)"
    arguments = [sys.executable, "-c", code, "scale", *COUNTED]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "False", done.stderr


def test_a_quantization_brings_its_reference(run):
    _, output, _ = run("mine", "--quantizations", "nf4")
    assert "reference" in output and "int8" not in output
    _, output, _ = run(*COUNTED, "--models", "gemma3_4b", "--quantizations", "nf4")
    assert "references: 1, quantized cells: 1\n" in output


def test_json_has_what_the_tables_have(run):
    status, output, _ = run("mine", "--format", "json", "--gpus", "1,2", "--start", "5")
    found = json.loads(output)
    assert status == 0
    assert [one["workers"] for one in found["run_times"]] == [1, 2]
    assert found["run_times"][0]["at_least_seconds"] == pytest.approx(305)
    assert len(found["costs"]) == found["cells"] == 3


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ([], "run.json: can't be read"),
        (["nowhere"], "nowhere/run.json"),
        (["mine", "--gpus", "1,zero"], "--gpus 'zero'"),
        (["mine", "--shards", "0"], "--shards '0'"),
        (["mine", "--matrix", "10"], "--matrix '10': models x quantizations"),
        (["mine", "--matrix", "0x3"], "--matrix '0x3'"),
        (["mine", "--tokens", "0"], "--tokens 0"),
        (["mine", "--models", "gemma9"], "--models gemma9: the run has no such costs; of: tiny_gemma3"),
        (["mine", "--layers", "all"], "--layers: a run has its own"),
        (["mine", "--synthetic"], "--synthetic: a run has its own"),
        (["mine", "-k", "nf4"], "-k: a run has its own"),
        (["mine", "--setup", "1"], "--setup: a run has its own"),
        ([*COUNTED, "--setup", "-1"], "--setup -1"),
        (["mine", "--start", "nan"], "--start nan"),
        (["mine", "--quantizations", "reference", "--matrix", "2x2"], "--matrix needs"),
        (["--flops", "400e12"], "--flops needs --bandwidth"),
        (["--flops", "1", "--bandwidth", "0"], "--bandwidth 0: more than 0"),
        (["mine", *COUNTED], "mine or --flops"),
        ([*COUNTED, "--models", "gemma9"], "gemma9"),
        ([*COUNTED, "--models", "tiny_gemma3", "-k", "fp9"], "leaves no cell"),
    ],
)
def test_what_is_wrong_is_one_line(run, arguments, part):
    status, output, error = run(*arguments)
    assert (status, output) == (2, "")
    assert len(error.splitlines()) == 1
    assert part in error
