"""How long a run takes on G workers: schedules against bounds and by hand, costs against a run's numbers."""

from __future__ import annotations

import json
import math
import random
import re
import subprocess
import sys
import time
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from builders import corpus_spec
from documents import run_document
from qsae_bench.app.cli.main import main
from qsae_bench.measure import resources as plan
from qsae_bench.registry.entries import load_registry
from qsae_bench.registry.specs import Cell, ModelSpec, QuantizationSpec, SaeSpec
from qsae_bench.results.document import RunDocument, text_of
from qsae_bench.run.scale.costs import of_plan, of_run, position_flops, repeated, wall_seconds, workers_of
from qsae_bench.run.scale.schedule import CellCost, Piece, pieces, schedule
from qsae_bench.run.workers.dispatch import Dispatcher
from qsae_bench.run.workers.tasks import Task, TaskResult

REGISTRY = load_registry()
SMALL = ModelSpec(
    "small", "some/small", n_layers=3, d_model=16, layers=(0, 2), corpus="tiny",
    sae=SaeSpec(16, release="some", id_template="{layer}", d_sae=100), checkpoint_extra=1000,
    architecture={
        "model_type": "llama", "vocab_size": 1000, "intermediate_size": 40, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 8, "tie_word_embeddings": False,
    },
)  # fmt: skip


def cost(model="m", quantization="reference", seconds=1.0, **changes) -> CellCost:
    """``seconds``: of its pass over ten sequences of ten positions, in batches of one."""
    fields = {"sequences": 10, "sequence_length": 10, "batch_size": 1, "position_seconds": seconds / 100}
    return CellCost(model, quantization, quantization == "reference", **(fields | changes))


times = st.integers(1, 50).map(float)
"""whole, so that sums are exact where they are compared"""


@st.composite
def matrices(draw, plain=False):
    """Cells of a few models; ``plain``: whose times don't depend on where they run."""
    cells = []
    for m in range(draw(st.integers(1, 4))):
        setup = 0.0 if plain else draw(st.sampled_from([0.0, 3.0]))
        recipes = [f"q{k}" for k in range(draw(st.integers(0, 5)))]
        if draw(st.booleans()) or not recipes:
            recipes = ["reference", *recipes]
        for recipe in recipes:
            cells.append(
                cost(
                    f"m{m}", recipe, draw(times), load_seconds=draw(times), timed_seconds=draw(times), other_seconds=draw(times), setup_seconds=setup,
                    sequences=draw(st.integers(1, 20)), batch_size=draw(st.integers(1, 4)), rows_bytes=draw(st.integers(0, 9)),
                    head_bytes=2, byte_seconds=1.0,
                )
            )  # fmt: skip
    return cells


workers = st.integers(1, 9)
shards = st.integers(1, 4)
starts = st.sampled_from([0.0, 5.0])
SLACK = 1 + 1e-9


# -- laws of a schedule -----------------------------------------------------------------------------


@settings(deadline=None)
@given(matrices(), workers, shards, starts)
def test_a_schedule_does_every_task_once_and_keeps_the_order(cells, count, parts, start):
    found = schedule(cells, count, parts, start)
    assert sorted(map(repr, (turn.piece for turn in found.turns if not turn.piece.prepares))) == sorted(
        map(repr, pieces(cells, count, parts))
    )
    ended = {turn.piece.cell.model: turn.end_seconds for turn in found.turns if turn.piece.leads}
    for turn in found.turns:
        if not (turn.piece.leads or turn.piece.prepares):
            assert turn.begin_seconds >= ended.get(turn.piece.cell.model, 0.0)
    for place in {turn.place for turn in found.turns}:
        mine = [turn for turn in found.turns if turn.place == place]
        assert place < count
        assert all(b.begin_seconds >= a.end_seconds for a, b in pairwise(mine))


@settings(deadline=None)
@given(matrices(), workers, shards, starts, st.booleans())
def test_a_makespan_lies_between_its_bounds(cells, count, parts, start, keeps):
    found = schedule(cells, count, parts, start, keeps=keeps)
    assert found.makespan_seconds * SLACK >= found.path_bound_seconds
    assert found.makespan_seconds * SLACK >= found.work_bound_seconds
    assert found.makespan_seconds <= found.list_bound_seconds * SLACK
    assert 0 < found.busy_share <= SLACK


@settings(deadline=None)
@given(matrices(plain=True), workers)
def test_at_most_grahams_factor_over_the_best(cells, count):
    """(2 − 1/G) times a lower bound of the best schedule, where no time depends on the place."""
    found = schedule(cells, count)
    best = max(found.path_bound_seconds, found.work_bound_seconds)
    assert found.makespan_seconds <= (2 - 1 / count) * best * SLACK


@settings(deadline=None)
@given(matrices(plain=True), starts)
def test_one_worker_takes_the_sum(cells, start):
    found = schedule(cells, 1, start_seconds=start)
    assert found.makespan_seconds == pytest.approx(start + sum(cell.seconds for cell in cells))
    assert found.busy_share == pytest.approx(1)


@settings(deadline=None)
@given(matrices(plain=True), shards, starts)
def test_workers_without_end_take_the_longest_path(cells, parts, start):
    found = schedule(cells, 10**6, parts)
    assert found.makespan_seconds == pytest.approx(found.path_bound_seconds)
    # a reference's place goes on, the others must first start
    late = schedule(cells, 10**6, parts, start)
    assert late.path_bound_seconds <= late.makespan_seconds * SLACK
    assert late.makespan_seconds <= (late.path_bound_seconds + start) * SLACK


@settings(deadline=None)
@given(matrices(), shards, starts)
def test_tasks_in_processes_of_their_own_pay_for_everything_and_prepare_nothing(cells, parts, start):
    one = schedule(cells, 1, parts, start, keeps=False)
    every = [
        start + p.cell.setup_seconds + p.cell.load_seconds + p.own_seconds for p in pieces(cells, 1, parts)
    ]
    assert one.makespan_seconds == pytest.approx(sum(every))
    many = schedule(cells, 10**6, parts, start, keeps=False)
    assert many.makespan_seconds == pytest.approx(many.path_bound_seconds)
    assert not [turn for turn in many.turns if turn.piece.prepares]
    assert many.makespan_seconds * SLACK >= schedule(cells, 10**6, parts, start).path_bound_seconds


@given(matrices(), workers, shards)
def test_tasks_are_the_cells(cells, count, parts):
    whole, split = pieces(cells), pieces(cells, count, parts)
    assert sum(piece.positions for piece in split) == sum(piece.positions for piece in whole)
    once = sum(piece.own_seconds - piece.bytes for piece in split)  # a byte takes a second here
    assert once == pytest.approx(
        sum(cell.timed_seconds + cell.other_seconds + cell.pass_seconds for cell in cells)
    )
    # every shard reads the head, and its own rows
    heads = 2 * (sum(piece.measures for piece in split) - len(whole))
    more = sum(piece.bytes for piece in split) - sum(piece.bytes for piece in whole)
    assert more == pytest.approx(heads, abs=1e-6)


@settings(deadline=None)
@given(matrices(plain=True), workers, st.integers(2, 5))
def test_all_times_longer_make_the_run_as_much_longer(cells, count, factor):
    slower = [
        replace(
            cell, load_seconds=factor * cell.load_seconds, timed_seconds=factor * cell.timed_seconds,
            position_seconds=factor * cell.position_seconds, byte_seconds=factor * cell.byte_seconds,
            other_seconds=factor * cell.other_seconds,
        )
        for cell in cells
    ]  # fmt: skip
    before, after = schedule(cells, count), schedule(slower, count)
    assert after.list_bound_seconds >= before.makespan_seconds
    assert schedule(slower, 1).makespan_seconds == pytest.approx(
        factor * schedule(cells, 1).makespan_seconds
    )


# -- by hand ----------------------------------------------------------------------------------------


def test_a_schedule_by_hand():
    """Two models on two workers: both references first, then whoever is free stays with its model."""
    cells = [
        cost("a", "reference", 4), cost("a", "q1", 3), cost("a", "q2", 3),
        cost("b", "reference", 6), cost("b", "q1", 2),
    ]  # fmt: skip
    found = schedule(cells, 2)
    told = [
        (t.piece.cell.id, t.place, round(t.begin_seconds, 9), round(t.end_seconds, 9)) for t in found.turns
    ]
    assert told == [
        ("a-reference", 0, 0, 4), ("b-reference", 1, 0, 6), ("a-q1", 0, 4, 7), ("b-q1", 1, 6, 8), ("a-q2", 0, 7, 10),
    ]  # fmt: skip
    assert found.makespan_seconds == pytest.approx(10)
    assert found.busy_share == pytest.approx(18 / 20)
    assert found.path_bound_seconds == pytest.approx(8)
    assert found.work_bound_seconds == pytest.approx(9)
    # b's chain is the longest: 18 / 2 + 8 / 2
    assert found.list_bound_seconds == pytest.approx(13)


@settings(max_examples=30, deadline=None)
@given(matrices(), shards)
def test_one_worker_goes_through_them_as_the_dispatcher_does(cells, parts):
    """The real one, with an engine that has each task done at once."""
    models = {cell.model: replace(SMALL, name=cell.model) for cell in cells}
    named = {Cell(models[cell.model], QuantizationSpec(cell.quantization, "none")): cell for cell in cells}
    asked = {cell: own for cell, own in named.items() if own.is_reference}
    tasks = [
        Task(cell, shard=piece.shard) for piece in pieces(cells, shards=parts) for cell, own in named.items() if own is piece.cell
    ]  # fmt: skip
    done: list[Task] = []

    class AtOnce:
        places, about, keeps = 1, "", True

        def run(self, place, task, reference):
            done.append(task)
            return TaskResult()

        def close(self):
            pass

    def ready(task):
        known = [cell for cell in asked if cell.model == task.cell.model]
        return task.cell.is_reference or all(any(t.cell == cell for t in ended) for cell in known)

    ended: list[Task] = []
    dispatcher = Dispatcher(
        AtOnce(), ready, lambda task: None, lambda task, outcome: ended.append(task) or []
    )
    dispatcher.add(tasks)
    dispatcher.until(lambda: len(ended) == len(tasks) or None, lambda running, waiting: None)
    dispatcher.close()
    expected = [(turn.piece.cell.id, turn.piece.shard) for turn in schedule(cells, 1, parts).turns]
    assert [(named[task.cell].id, task.shard) for task in done] == expected


def test_what_is_timed_of_a_reference_is_waited_for_by_nobody():
    """The place that had it goes on with it, the other begins with the cells."""
    cells = [
        cost("a", "reference", 4, load_seconds=1, timed_seconds=6, other_seconds=0.5),
        cost("a", "q1", 3, load_seconds=1), cost("a", "q2", 3, load_seconds=1),
    ]  # fmt: skip
    found = schedule(cells, 2, driver_seconds=10)
    told = [
        (t.piece.cell.quantization, t.piece.measures, t.place, t.begin_seconds, t.end_seconds)
        for t in found.turns
        if not t.piece.prepares
    ]
    assert told == [
        ("reference", True, 0, 0, 5.5), ("reference", False, 0, 5.5, 12.5), ("q1", True, 1, 5.5, 9.5),
        ("q2", True, 1, 9.5, 13.5),
    ]  # fmt: skip
    assert found.makespan_seconds == 23.5
    assert found.busy_share == pytest.approx(20.5 / 27)
    assert found.path_bound_seconds == pytest.approx(10 + 5.5 + 7)
    assert found.work_bound_seconds == pytest.approx(10 + 19.5 / 2)
    assert found.list_bound_seconds == pytest.approx(10 + 20.5 / 2 + 12.5 / 2)
    assert [t.end_seconds for t in schedule(cells, 1).turns] == [11.5, 15.5, 19.5]


@pytest.mark.alone
@pytest.mark.parametrize(("count", "parts"), [(1, 1), (2, 1), (3, 2), (8, 4)])
def test_the_dispatcher_takes_as_long_as_its_schedule(count, parts):
    """The real one, with tasks that sleep: the makespan in seconds, to what a machine's clock gives."""
    unit, rng, last, ended = 0.03, random.Random(count), {}, []
    cells = {}
    for m in range(3):
        for recipe in ("reference", "a", "b", "c"):
            taken = {
                "load_seconds": rng.randint(1, 3),
                "timed_seconds": rng.randint(0, 3),
                "setup_seconds": 2,
            }
            own = cost(f"m{m}", recipe, rng.randint(1, 9), **taken)
            cells[Cell(replace(SMALL, name=f"m{m}"), QuantizationSpec(recipe, "none"))] = own
    named = {own: cell for cell, own in cells.items()}

    class Sleeping:
        places, about, keeps = count, "", True

        def run(self, place, task, reference):
            own = Piece(cells[task.cell], measures=False, times=False, prepares=True)
            piece = own if task.prepares else by_task[task]
            time.sleep(unit * piece.seconds(last.get(place), 0.0))
            last[place] = piece
            return TaskResult()

        def close(self):
            pass

    def leads(task):
        return task.cell.is_reference and task.measures

    def ready(task):
        return leads(task) or any(leads(t) and t.cell.model == task.cell.model for t in ended)

    began = time.monotonic()
    dispatcher = Dispatcher(
        Sleeping(), ready, lambda task: None, lambda task, outcome: ended.append(task) or []
    )
    by_task = {
        Task(named[piece.cell], measures=piece.measures, shard=piece.shard): piece
        for piece in pieces(cells.values(), count, parts)
    }
    dispatcher.add(by_task)
    dispatcher.until(lambda: set(by_task) <= set(ended) or None, lambda running, waiting: None)
    took = (time.monotonic() - began) / unit
    dispatcher.close()
    assert took == pytest.approx(schedule(list(cells.values()), count, parts).makespan_seconds, rel=0.1)


def test_what_a_worker_pays_once():
    """Started once, the model's tokens once, a cell's model once however many of its shards come."""
    cells = [
        cost("a", "reference", 10, load_seconds=1, setup_seconds=100),
        cost("a", "q", 10, load_seconds=2, timed_seconds=7, setup_seconds=100),
    ]
    found = schedule(cells, 1, shards=2, start_seconds=1000)
    assert [turn.seconds for turn in found.turns] == pytest.approx([1000 + 100 + 1 + 10, 2 + 7 + 5, 5])
    # the other place starts and fetches tokens while it would wait
    both = schedule(cells, 2, shards=2, start_seconds=1000)
    assert [turn.seconds for turn in both.turns] == pytest.approx([1111, 1000 + 100, 2 + 7 + 5, 2 + 5])
    assert both.turns[1].piece.prepares
    assert both.makespan_seconds == pytest.approx(1111 + 2 + 7 + 5)


def test_one_worker_turns_to_each_model_once():
    cells = [cost(m, q, 1, setup_seconds=10) for m in "abc" for q in ("reference", "q")]
    assert schedule(cells, 1).makespan_seconds == pytest.approx(6 + 3 * 10)


def test_more_shards_than_batches_leave_some_empty():
    split = pieces([cost("a", "q", 6, sequences=3, batch_size=2)], shards=4)
    assert sorted(piece.positions for piece in split) == [0, 0, 10, 20]


def test_a_reference_is_never_split():
    assert len(pieces([cost()], shards=8)) == 1


def test_no_cells_take_no_time():
    found = schedule([], 4, start_seconds=3)
    assert (found.makespan_seconds, found.path_bound_seconds, found.work_bound_seconds) == (0, 0, 0)


def test_a_matrix_repeats_models_and_recipes_in_turn():
    cells = [cost("a"), cost("a", "x"), cost("a", "y"), cost("b"), cost("b", "z"), cost("lonely")]
    made = repeated(cells, 3, 3)
    assert [cell.id for cell in made] == [
        "a-reference", "a-x", "a-y", "a-x#2", "b-reference", "b-z", "b-z#2", "b-z#3",
        "a#2-reference", "a#2-x", "a#2-y", "a#2-x#2",
    ]  # fmt: skip
    assert repeated([cost("lonely")], 3, 3) == []


# -- costs by counting ------------------------------------------------------------------------------

OWN, NF4 = (
    Cell(SMALL, QuantizationSpec("reference", "none")),
    Cell(SMALL, QuantizationSpec("nf4", "transformers", stored_bits=4.5)),
)


def test_flops_by_hand():
    """10368 weights in blocks; a head of 16 · 1000; two SAEs of 16 · 100 each way."""
    assert position_flops(OWN) == (2 * 10368 + 2 * 16000, 2 * 4 * 1600)
    assert position_flops(NF4) == (2 * 10368 + 2 * 2 * 16000, 2 * 2 * 4 * 1600)


def test_counted_costs_by_hand():
    corpus = corpus_spec(sequence_length=10, batch_size=2, tokens=95)
    reference, nf4 = of_plan({OWN: corpus, NF4: corpus}, 1e6, 1e3, 1e4, 5).cells
    assert nf4.positions == 110
    assert nf4.position_seconds == pytest.approx((20736 + 64000) / 1e6 + 25600 / 1e4)
    assert nf4.load_seconds == reference.load_seconds == 2 * (10368 + 32000 + 1000) / 1e3
    assert nf4.setup_seconds == 5 + 2 * 2 * 1600 * 4 / 1e3
    assert nf4.store_seconds == pytest.approx(plan.need(NF4, corpus, on_gpu=True).store / 1e3)
    assert (reference.is_reference, nf4.is_reference) == (True, False)


@pytest.mark.parametrize("named", REGISTRY.select(), ids=lambda cell: cell.id)
def test_what_is_loaded_and_stored_is_what_plan_says(named):
    corpus = corpus_spec(sequence_length=512, tokens=10_000)
    (found,) = of_plan({named: corpus}, 1.0, 1.0).cells
    need = plan.need(named, corpus, on_gpu=True)
    assert found.rows_bytes + found.head_bytes == need.store
    if need.download:
        assert found.load_seconds + found.setup_seconds == pytest.approx(need.download)


# -- costs of a run ---------------------------------------------------------------------------------


def timing(seconds, tokens, flags=()):
    return {
        "seconds": [seconds] * 5, "median_seconds": seconds, "spread_seconds": 0.0, "rounds": 5, "tokens": tokens,
        "flags": list(flags),
    }  # fmt: skip


def document(**changes) -> RunDocument:
    """Of tiny_gemma3: 256 sequences of 128; the reference's overhead timed."""
    found = run_document(models=("tiny_gemma3",), layers=(1, 3, 4), **changes)
    record = found.model_dump()
    reference = record["cells"][0]
    reference["timings"] = {
        "forward": timing(1.0, 4096),
        "evaluation": timing(3.0, 4096),
        "evaluation_floor": timing(2.5, 4096),
    }
    reference["metrics"].pop("evaluation_tokens_per_second")
    for cell in record["cells"][1:]:
        if cell["status"] != "measured":
            continue
        cell["metrics"]["evaluation_tokens_per_second"]["value"] = 1024.0
        cell["metrics"]["load_seconds"]["value"] = 3.0
    return RunDocument.model_validate(record)


def test_measured_costs_by_hand():
    costs = of_run(document(), REGISTRY, setup_seconds=0)
    reference, int8, nf4 = costs.cells
    # a forward, and half of what an evaluation of both sides adds
    assert reference.position_seconds == pytest.approx((1 + (3 - 1) / 2) / 4096)
    assert reference.timed_seconds == pytest.approx(6 * (1 + 3 + 2.5))
    assert (int8.position_seconds, int8.load_seconds) == (1 / 1024, 3.0)
    assert int8.positions == nf4.positions == reference.positions == 256 * 128
    assert int8.timed_seconds == pytest.approx(0.9 + 1.0 + 1.2 + 1.0)  # prefill, with its warm-up
    assert int8.pass_seconds == 32.0
    tiny = next(cell for cell in REGISTRY.select() if cell.id == "tiny_gemma3-nf4")
    corpus = corpus_spec(sequence_length=128, tokens=32512)
    assert int8.rows_bytes + int8.head_bytes == plan.need(tiny, corpus, on_gpu=False).store
    assert int8.store_seconds == 0  # it is in the rate
    slow = of_run(document(), REGISTRY, bandwidth=1e6, setup_seconds=0).cells[1]
    assert slow.store_seconds == pytest.approx((int8.rows_bytes + int8.head_bytes) / 1e6)


def test_other_numbers_of_tokens_take_as_much_longer():
    half = of_run(document(), REGISTRY, tokens=16256, setup_seconds=0).cells[1]
    assert half.positions == 128 * 128
    assert of_run(document(), REGISTRY, tokens=1, setup_seconds=0).cells[1].positions == 128


def busy(seconds=100.0, setup=20.0, **environment) -> RunDocument:
    """70 minutes on one worker, which was at each cell for so long."""
    found = document()
    found = document(environment=found.environment | environment).model_dump()
    for cell in found["cells"]:
        cell |= {
            "busy_seconds": seconds,
            "setup_seconds": setup if cell["quantization"] == "reference" else 0,
        }
    return RunDocument.model_validate(found)


def test_on_one_worker_the_prediction_is_the_run_itself():
    found = busy(executor="local, 1 worker, threads each: 2", worker_start_seconds=7.5)
    costs = of_run(found, REGISTRY)
    assert wall_seconds(found) == 4200
    assert (costs.start_seconds, costs.driver_seconds) == (7.5, 4200 - 7.5 - 300)
    taken = schedule(costs.cells, 1, 1, costs.start_seconds, costs.driver_seconds)
    assert taken.makespan_seconds == pytest.approx(4200)
    reference, int8, _ = costs.cells
    assert {cell.setup_seconds for cell in costs.cells} == {20}
    assert int8.other_seconds == pytest.approx(100 - 3 - int8.timed_seconds - 32)
    assert reference.setup_seconds + reference.seconds == pytest.approx(100)
    assert "3,892.5 s beside its workers" in costs.assumed[0]


def test_a_run_that_does_not_say_what_its_cells_took():
    """The rest is then the driver's."""
    costs = of_run(document(), REGISTRY)
    assert costs.driver_seconds == pytest.approx(4200 - sum(cell.seconds for cell in costs.cells))
    assert schedule(costs.cells, 1, driver_seconds=costs.driver_seconds).makespan_seconds == pytest.approx(
        4200
    )


def test_what_is_beside_the_pass_does_not_grow_with_the_tokens():
    ours, more = (of_run(busy(), REGISTRY, tokens=tokens).cells[1] for tokens in (0, 10**6))
    assert more.positions > ours.positions
    assert more.other_seconds == ours.other_seconds


def test_a_cell_that_took_less_than_its_parts_has_nothing_beside_them():
    assert {cell.other_seconds for cell in of_run(busy(seconds=1.0), REGISTRY).cells} == {0}


@pytest.mark.parametrize(
    ("executor", "expected"),
    [(None, 1), ("local, 1 worker, threads each: 2", 1), ("local, 12 workers, GPUs each: 1", 12), ("ray 2.60.0, 2 nodes", 0)],
)  # fmt: skip
def test_who_measured_it(executor, expected):
    environment = document().environment | ({"executor": executor} if executor else {})
    found = document(environment=environment)
    assert workers_of(found) == expected
    assert (of_run(found, REGISTRY).driver_seconds > 0) == (expected == 1)


def test_what_a_run_lacks_is_told_with_its_command():
    found = document().model_dump()
    found["cells"][2]["metrics"].pop("evaluation_tokens_per_second")
    costs = of_run(RunDocument.model_validate(found), REGISTRY)
    assert [cell.quantization for cell in costs.cells] == ["reference", "int8"]
    assert costs.lacking == (
        "tiny_gemma3-nf4: its pass or load was not timed: pytest benchmarks --models tiny_gemma3 --quantizations nf4",
    )
    found["cells"][0]["timings"].pop("forward")
    costs = of_run(RunDocument.model_validate(found), REGISTRY)
    assert costs.cells == ()
    assert "test_load and test_overhead" in costs.lacking[0]


def test_cells_that_failed_are_no_part_of_it():
    found = of_run(document(statuses={("tiny_gemma3", "nf4"): "oom"}), REGISTRY)
    assert [cell.quantization for cell in found.cells] == ["reference", "int8"]
    assert found.lacking == ()


@settings(max_examples=15, deadline=None)
@given(st.randoms(use_true_random=False))
def test_a_document_with_strange_numbers_is_predicted_or_left_out(rng: random.Random):
    record = document().model_dump()
    strange = [0, 1, 10**6]
    for corpus in record["corpus"].values():
        for key in ("tokens", "sequences", "sequence_length", "batch_size"):
            if rng.random() < 0.3:
                corpus[key] = rng.choice(strange)
    for cell in record["cells"]:
        if rng.random() < 0.3:
            cell["metrics"]["load_seconds"]["value"] = rng.choice([None, 0.0, -1.0])
        if rng.random() < 0.3:
            cell["timings"] = {}
        if rng.random() < 0.3:
            cell["layers"] = {}
    record["started"] = rng.choice([record["started"], "", "2026-11-24"])
    costs = of_run(RunDocument.model_validate(record), REGISTRY)
    for cell in costs.cells:
        assert math.isfinite(cell.seconds) and cell.seconds > 0
    assert schedule(costs.cells, 2).makespan_seconds >= 0


# -- as a user types it -----------------------------------------------------------------------------


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
        ["mine", "--quantizations", "nf4", "--bandwidth", "1e9", "--setup", "3"], [*COUNTED],
        [*COUNTED, "--models", "gemma3_12b", "--layers", "all", "--matrix", "10x12", "--gpus", "1,8,64"],
    ],
)  # fmt: skip
def test_tables_fit(run, arguments):
    status, output, error = run(*arguments)
    assert (status, error) == (0, "")
    assert max(map(len, output.splitlines())) <= 100
    assert "makespan" in output and "assumed:" in output


def test_the_newest_run_of_a_folder(run, tmp_path):
    (tmp_path / "q").mkdir()
    (tmp_path / "q" / "latest").symlink_to(tmp_path / "mine")
    assert run("--qsae-dir", "q") == run("mine")


def test_no_torch_is_imported(tmp_path):
    code = "import sys; from qsae_bench.app.cli.main import main; main(sys.argv[1:]); print('torch' in sys.modules)"
    (tmp_path / "run.json").write_text(text_of(document()), encoding="utf-8")
    for arguments in ([str(tmp_path)], [*COUNTED]):
        done = subprocess.run(
            [sys.executable, "-c", code, "scale", *arguments], capture_output=True, text=True, timeout=60
        )
        assert done.stdout.splitlines()[-1] == "False", done.stderr


def test_a_recipe_brings_its_reference(run):
    _, output, _ = run("mine", "--quantizations", "nf4")
    assert "reference" in output and "int8" not in output
    _, output, _ = run(*COUNTED, "--models", "gemma3_4b", "--quantizations", "nf4")
    assert re.search(r"gemma3_4b +reference .*\n *gemma3_4b +nf4 ", output)


def test_cells_that_cost_the_same_share_a_row(run):
    _, output, _ = run(*COUNTED, "--models", "gemma3_4b")
    assert re.search(r"gemma3_4b +int8 nf4 fp4 ", output)


def test_json_has_what_the_tables_have(run):
    status, output, _ = run("mine", "--format", "json", "--gpus", "1,2")
    found = json.loads(output)
    assert status == 0
    assert [one["workers"] for one in found["schedules"]] == [1, 2]
    assert found["schedules"][0]["makespan_seconds"] == pytest.approx(4200)
    assert len(found["costs"]) == 3 and found["assumed"]


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ([], "run.json: can't be read"),
        (["nowhere"], "nowhere/run.json"),
        (["mine", "--gpus", "1,zero"], "--gpus 'zero'"),
        (["mine", "--gpus", "0"], "--gpus '0'"),
        (["mine", "--shards", "0"], "--shards '0'"),
        (["mine", "--matrix", "10"], "--matrix '10': models x quantizations"),
        (["mine", "--tokens", "0"], "--tokens 0"),
        (["mine", "--models", "gemma9"], "--models gemma9: the run has no such costs; of: tiny_gemma3"),
        (["mine", "--layers", "all"], "--layers: a run has its own"),
        (["mine", "--synthetic"], "--synthetic: a run has its own"),
        (["mine", "-k", "nf4"], "-k: a run has its own"),
        (["mine", "--bandwidth", "0"], "--bandwidth 0: more than 0"),
        (["mine", "--setup", "-1"], "--setup -1"),
        (["mine", "--start", "nan"], "--start nan"),
        (["mine", "--quantizations", "reference", "--matrix", "2x2"], "no quantized cell"),
        (["--flops", "400e12"], "--flops needs --bandwidth"),
        (["mine", *COUNTED], "mine or --flops"),
        ([*COUNTED, "--models", "gemma9"], "gemma9"),
        ([*COUNTED, "--models", "tiny_gemma3", "-k", "fp9"], "nothing to predict"),
    ],
)
def test_what_is_wrong_is_one_line(run, arguments, part):
    status, output, error = run(*arguments)
    assert (status, output) == (2, "")
    assert len(error.splitlines()) == 1
    assert part in error


def test_a_run_without_costs_says_what_measures_them(run, tmp_path):
    record = document().model_dump()
    for cell in record["cells"]:
        cell["timings"] = {}
    (tmp_path / "mine" / "run.json").write_text(json.dumps(record), encoding="utf-8")
    status, _, error = run("mine")
    assert status == 2
    assert "test_overhead of its reference: run pytest benchmarks --models tiny_gemma3" in error
