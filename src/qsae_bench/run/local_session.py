"""Measure in the session's own process: each cell is loaded once, measured once, and freed.

Independent of pytest: the plugin's fixtures use it, and so do workers.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

from qsae_bench.errors import Crashed, OutOfMemory, QsaeError
from qsae_bench.gate.cell_result import CellResult
from qsae_bench.gate.judge import mark_invalid
from qsae_bench.gate.verdict import GatedMetric
from qsae_bench.metrics.loss import BYTES_COLUMN
from qsae_bench.metrics.measurement import Measurement, first_sequences
from qsae_bench.models.memory import configure_malloc, is_out_of_memory
from qsae_bench.progress import TokenProgress, progress_of, progress_to
from qsae_bench.registry.specs import WHOLE, Cell, Shard
from qsae_bench.results.corpus_record import CorpusRecord
from qsae_bench.run.session import Session, SessionOptions
from qsae_bench.run.stopwatch import Stopwatch, TimeSpent
from qsae_bench.run.timed_workloads import TimedResult, time_workload
from qsae_bench.stats.bootstrap import estimate

if TYPE_CHECKING:
    from qsae_bench.measure.model_context import ModelContext
    from qsae_bench.measure.store import Store
    from qsae_bench.measure.store.entry import StoredReference
    from qsae_bench.models.loading import Loaded

T = TypeVar("T")


def other_batch_size(batch_size: int) -> int:
    """Return the noise floor's batch size: a third, so that it differs by more than a power of 2."""
    return max(1, batch_size // 3) if batch_size > 1 else 2


class LocalSession(Session):
    """Load, measure and judge cells in this process, in any order.

    Registry order is the cheapest: a model's tokens, SAEs and reference are then loaded once.
    """

    def __init__(self, options: SessionOptions) -> None:
        from qsae_bench.measure.loaded_model import LoadedModel
        from qsae_bench.models.loading import default_device

        self.device = default_device(options.device)
        self.timing, self.timing_flags = options.timing, options.timing_flags
        super().__init__(options)
        configure_malloc()
        self.stopwatch = Stopwatch()
        self._model: ModelContext | None = None
        self.loaded_model = LoadedModel(self.device, self.record, self.warn)
        self._parts: dict[tuple[Cell, int], Measurement] = {}

    @cached_property
    def environment(self) -> Mapping[str, Any]:
        from qsae_bench.machine import environment

        return environment() | {"device": self.device}

    def shares_device(self, cell: Cell) -> bool:
        return bool(self.timing_flags)

    def hardware_of(self, cell: Cell) -> str:
        return self.hardware

    def spent(self, cell: Cell) -> TimeSpent:
        return self.stopwatch.spent(cell)

    # -- loading

    def require(self, cell: Cell) -> None:
        from qsae_bench.models.loading import require

        if cell not in self.requested:
            self.requested.append(cell)
        if cell in self.refused:
            raise self.refused[cell]
        with self.stopwatch.own(cell):
            self.guarded(cell, lambda: require(cell, self.device, device_named=bool(self.options.device)))

    def load(self, cell: Cell) -> Loaded:
        """Return the cell's model, loaded unless it already is."""
        if cell in self.refused:
            raise self.refused[cell]
        return self.guarded(cell, lambda: self.loaded_model.load(cell))

    def release(self) -> None:
        """Free the loaded model, if there is one."""
        self.loaded_model.release()

    def free(self, cell: Cell) -> None:
        if self._is_loaded(cell):
            self.release()

    def _is_loaded(self, cell: Cell) -> bool:
        return self.loaded_model.loaded is not None and self.loaded_model.loaded.cell == cell

    def model(self, cell: Cell) -> ModelContext:
        """Return what the cell shares with the others of its model: corpus, SAEs, stored references."""
        if self._model is None or self._model.spec != cell.model:
            from qsae_bench.measure.model_context import ModelContext

            self._model = None
            corpus = self.registry.corpus_of(cell.model, self.options.selection)
            resources = (self.device, self.store, self.options.qsae_dir, self.options.on_warning)
            with self.stopwatch.setup(cell):
                self._model = self.guarded(cell, lambda: ModelContext(cell.model, corpus, *resources))
            self.corpora[cell.model.name] = CorpusRecord.of(self._model.corpus)
        return self._model

    def shared(self, cell: Cell) -> None:
        """Load tokens and SAEs: what is wrong with them shows before the model is fetched and loaded."""
        with self.stopwatch.setup(cell):
            lines = self.guarded(cell, lambda: self.model(cell).sae_notes())
        reference = self.registry.reference_of(cell)
        for line in lines:
            if line not in self.warnings.get(reference, ()):
                self.warn(reference, line)

    def reference(self, cell: Cell, look: int = 0, rows: range = range(0)) -> StoredReference:
        """Return the stored reference of the sequences that a look adds, built first if there is none.

        The files of ``rows`` are fetched and checked now, before the pass is timed.
        """
        from qsae_bench.models.memory import PeakMemory

        own = self.registry.reference_of(cell)
        costs = dict(self.costs(own))
        built = False

        def load() -> Loaded:
            nonlocal built
            built = True
            return self.load(own)

        def work() -> StoredReference:
            model = self.model(cell)
            with self.stopwatch.own(own):
                stored = model.reference(load, self.options.progress, look)
            stored.fetch(rows.start, rows.stop)
            if rows:
                model.check_saes(stored, rows.start)
            return stored

        with PeakMemory(self.device) as peak:
            reference = self.guarded(cell, lambda: self.model(cell).retry_if_damaged(look, work))
        if built and look:
            self._costs[own] = costs  # its own pass recorded these; now it was only loaded again
        elif built:
            self.record(own, "peak_memory_bytes", peak.bytes)
        return reference

    @cached_property
    def store(self) -> Store:
        """The store of references"""
        from qsae_bench.measure.store import open_store

        options = self.options
        return open_store(options.reference_store, options.qsae_dir, options.reference_store_bytes)

    # -- measuring

    def time_workload(self, cell: Cell, name: str) -> TimedResult:
        with self.stopwatch.own(cell):
            return time_workload(self, cell, name)

    def rows(self, cell: Cell, look: int = 0, shard: Shard = WHOLE) -> range:
        """Return those of the sequences that a look adds which belong to the shard."""
        corpus = self.model(cell).part(look)
        return shard.of_batches(len(corpus.ids), corpus.spec.batch_size) if corpus else range(0)

    def prepare(self, cell: Cell, look: int = 0, shard: Shard = WHOLE) -> None:
        """Load what :meth:`measure` needs: tokens, SAEs, the reference, the model."""
        if cell in self.refused:
            raise self.refused[cell]
        self.shared(cell)
        self.reference(cell, look, self.rows(cell, look, shard))
        if not cell.is_reference:
            # a quantized cell is judged against a reference that is itself sane
            self.guarded(cell, lambda: self.measure(self.registry.reference_of(cell)))
            self.load(cell)

    def measure(self, cell: Cell) -> CellResult:
        if cell not in self.measured:
            with self.stopwatch.own(cell):
                self.prepare(cell)
                self.measured[cell] = self.guarded(cell, lambda: self._measure(cell))
                self.run_on(cell, self.options.gates.get(cell, ()))
        return self.measured[cell]

    def run_on(self, cell: Cell, gates: Iterable[GatedMetric]) -> None:
        with self.stopwatch.own(cell):
            self._run_on(cell, gates)

    def _run_on(self, cell: Cell, gates: Iterable[GatedMetric]) -> None:
        measured, costs = self.measured[cell], dict(self.costs(cell))
        while not measured.is_last_look and not measured.stop_reason and self.judge.undecided(cell, gates):
            try:
                self.guarded(cell, lambda: self._look_again(cell, measured))
            except QsaeError as error:  # the looks so far stand, and decide what they can
                self.refused.pop(cell, None)
                measured.stop_reason = str(error)
                self.warn(cell, f"{cell.id}: judged on {measured.tokens:,} tokens, not more: {error}")
        if len(measured.looks) > 1 and "load_seconds" in costs:
            self.record(cell, "load_seconds", costs["load_seconds"])  # loading again finds warm files

    def _measure(self, cell: Cell) -> CellResult:
        part, model = self.part(cell, 0), self.model(cell)
        quantized = None if cell.is_reference else self.loaded_model.quantized(self.reference(cell))
        measured = CellResult.begin(part, model.plan, not cell.is_reference, quantized)
        if cell.is_reference and self.options.noise_floor:
            other = other_batch_size(model.corpus.spec.batch_size)
            again = self._pass(cell, forward=True, batch_size=other)
            with progress_of(f"{cell.id}: intervals"):
                measured.noise_floor = estimate(again)
        self._mark_invalid(cell, measured)
        return measured

    def _mark_invalid(self, cell: Cell, measured: CellResult) -> None:
        mark_invalid(cell, measured, self.measured.get(self.registry.reference_of(cell)))

    def _look_again(self, cell: Cell, measured: CellResult) -> None:
        """Measure the sequences that the next look adds, and append them."""
        model, look = self.model(cell), len(measured.looks)
        if model.part(look) is None:
            measured.exhausted = True
            return
        measured.extend(self.part(cell, look), model.plan)
        self._mark_invalid(cell, measured)

    def part(self, cell: Cell, look: int, shard: Shard = WHOLE) -> Measurement:
        """Measure the cell on the sequences that a look adds, or on a shard of them."""
        return self.model(cell).retry_if_damaged(look, lambda: self._part_once(cell, look, shard))

    def _part_once(self, cell: Cell, look: int, shard: Shard) -> Measurement:
        """Measure, and record speed and peak memory."""
        from qsae_bench.models.memory import PeakMemory

        reference = self.registry.reference_of(cell)
        splice = self.options.splice
        # first, because they may need the reference loaded
        self.reference(cell, look, self.rows(cell, look, shard))
        other = self._reference_part(reference, look) if splice and not cell.is_reference else None
        if not cell.is_reference:
            self.load(cell)
        started = time.perf_counter()
        with PeakMemory(self.device) as peak:
            part = self._pass(cell, forward=not cell.is_reference, look=look, shard=shard)
        before = self.costs(cell)
        if not cell.is_reference:  # the reference's pass reads the store: its speed is not a model's
            positions = len(part.rows) * self.model(cell).corpus.spec.sequence_length
            rate = positions / (time.perf_counter() - started)
            self.record(cell, "evaluation_tokens_per_second", rate)
        if not cell.is_reference or (self._is_loaded(cell) and not look):
            known = before.get("peak_memory_bytes", 0) if cell.is_reference or look else 0
            self.record(cell, "peak_memory_bytes", max(known, peak.bytes))
        if look == 0 and shard.index == 0:
            part = part.with_costs(self._generation(cell))
        if splice:
            from qsae_bench.measure.splice import with_splice

            model = self.model(cell)
            corpus = model.part(look)
            assert corpus is not None
            # parts of one cell are ablated with one mean, or they would not add up
            planned = len(model.corpus.ids)
            first = first_sequences(self.measured[cell].measurement, planned) if look else None
            part = with_splice(
                part, other, self.load(cell).subject, corpus, model.saes, model.compute_device, first,
                self.options.progress,
            )  # fmt: skip
        return part

    def _generation(self, cell: Cell) -> Mapping[str, float]:
        """Return the metrics of how the cell writes; of a reference, as they were stored with it."""
        from qsae_bench.measure.generation import generation_values, reference_values

        stored = self.reference(cell).generation
        if cell.is_reference:
            return reference_values(stored) if stored is not None else {}
        theirs = stored["continuations"] if stored is not None else None
        with progress_of(f"{cell.id}: writing token by token"):
            return generation_values(self.load(cell).subject, self.model(cell).corpus, theirs)

    def _reference_part(self, reference: Cell, look: int) -> Measurement:
        """Return the reference's splice columns, which its cells are compared with; cached."""
        if look == 0:
            return self.measure(reference).measurement
        if (reference, look) not in self._parts:
            self._parts[reference, look] = self.part(reference, look)
        return self._parts[reference, look]

    def _pass(
        self, cell: Cell, forward: bool, batch_size: int | None = None, look: int = 0, shard: Shard = WHOLE
    ) -> Measurement:
        from qsae_bench.measure.evaluation import evaluate
        from qsae_bench.models.taps import Head

        model, reference = self.model(cell), self.reference(cell, look)
        corpus = model.part(look)
        assert corpus is not None
        subject = self.load(cell).subject if forward else None
        loaded = self.loaded_model.loaded
        loaded_head = Head.of(loaded.model) if loaded and loaded.cell.model == cell.model else None
        found = evaluate(
            cell, corpus, reference, model.saes, model.compute_device, subject,
            batch_size=batch_size, shard=shard, loaded_head=loaded_head,
            on_progress=TokenProgress(cell.id, corpus.spec.sequence_length, self.options.progress),
        )  # fmt: skip
        if (of_text := model.predicted_bytes(look)) is None:
            return found
        rows = shard.of_batches(len(corpus.ids), batch_size or corpus.spec.batch_size)
        return found.with_column(BYTES_COLUMN, of_text[rows.start : rows.stop])

    def guarded(self, cell: Cell, work: Callable[[], T]) -> T:
        """Do the work. A failure refuses the cell: every later test of it raises the same at once."""
        refusal: QsaeError | None
        try:
            with progress_to(self.options.progress):
                return work()
        except QsaeError as error:
            refusal = error.without_traceback()
        except Exception as error:
            refusal = None if is_out_of_memory(error) else Crashed.from_exception(cell.id, error)
        # outside the handlers: an exception raised there would keep the frames, and so the tensors, alive
        if refusal is None:
            raise self.refuse_out_of_memory(cell)
        if isinstance(refusal, Crashed):
            with contextlib.suppress(Exception):  # a faulty GPU fails at this, too
                self.release()
        self.refused[cell] = type(refusal)(str(refusal))
        raise refusal

    def forget(self, cell: Cell) -> None:
        """Forget everything about the cell, as if it had never been asked for."""
        timings, own = self.timings, (self.measured, self.refused, self.warnings, self._costs)
        for by_cell in (*own, timings.rounds, timings.turns, timings.judged):
            by_cell.pop(cell, None)
        self.stopwatch.forget(cell)
        self.against_accepted.forget(cell)

    def refuse_out_of_memory(self, cell: Cell) -> OutOfMemory:
        from qsae_bench.machine import Machine
        from qsae_bench.measure.resources import shortage_message

        self.release()
        corpus = self.registry.corpus_of(cell.model, self.options.selection)
        machine = Machine.here(self.options.qsae_dir)
        line = shortage_message(cell, corpus, machine, self.device != "cpu")
        refusal = self.refused[cell] = OutOfMemory(line)
        return refusal

    def close(self) -> None:
        self.release()
        self._model = None
        if "store" in vars(self):  # it was used
            self.store.close()
