"""One invocation: each cell loaded once, measured once, freed.

Knows nothing of pytest: the plugin's fixtures call it, and so could a worker process.
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
from qsae_bench.metrics.measurement import Measurement, first_sequences
from qsae_bench.models.memory import configure_malloc, is_out_of_memory
from qsae_bench.progress import TokenProgress, progress_of, progress_to
from qsae_bench.registry.specs import WHOLE, Cell, Shard
from qsae_bench.results.document import CorpusRecord
from qsae_bench.run.session import Session, SessionOptions
from qsae_bench.run.stopwatch import CellWatch, Spent
from qsae_bench.run.timed_works import TimedResult, take
from qsae_bench.stats.bootstrap import estimate

if TYPE_CHECKING:
    from qsae_bench.measure.model_context import ModelContext
    from qsae_bench.measure.store import Store
    from qsae_bench.measure.store.entry import StoredReference
    from qsae_bench.models.loading import Loaded

T = TypeVar("T")


def other_batch_size(batch_size: int) -> int:
    """The noise floor's: about a third, so that it differs in more than a power of two."""
    return max(1, batch_size // 3) if batch_size > 1 else 2


class LocalSession(Session):
    """Loads, measures and judges cells in this process, in any order; cheap in registry order."""

    def __init__(self, options: SessionOptions) -> None:
        from qsae_bench.measure.loaded_model import LoadedModel
        from qsae_bench.models.loading import default_device

        self.device = default_device(options.device)
        self.timing, self.beside = options.timing, options.beside
        super().__init__(options)
        configure_malloc()
        self.watch = CellWatch()
        self._model: ModelContext | None = None
        self.holder = LoadedModel(self.device, self.record, self.warn)
        self._parts: dict[tuple[Cell, int], Measurement] = {}

    @cached_property
    def environment(self) -> Mapping[str, Any]:
        from qsae_bench.machine import environment

        return environment() | {"device": self.device}

    def shares_device(self, cell: Cell) -> bool:
        return bool(self.beside)

    def hardware_of(self, cell: Cell) -> str:
        return self.hardware

    def spent(self, cell: Cell) -> Spent:
        return self.watch.spent(cell)

    # -- loading

    def require(self, cell: Cell) -> None:
        from qsae_bench.models.loading import require

        if cell not in self.requested:
            self.requested.append(cell)
        if cell in self.refused:
            raise self.refused[cell]
        with self.watch.own(cell):
            self.guarded(cell, lambda: require(cell, self.device, device_named=bool(self.options.device)))

    def load(self, cell: Cell) -> Loaded:
        """The cell's model, loaded if it is not the one that already is."""
        if cell in self.refused:
            raise self.refused[cell]
        return self.guarded(cell, lambda: self.holder.load(cell))

    def release(self) -> None:
        """Free the loaded model, if there is one."""
        self.holder.release()

    def free(self, cell: Cell) -> None:
        if self.holder.loaded is not None and self.holder.loaded.cell == cell:
            self.release()

    def model(self, cell: Cell) -> ModelContext:
        """What the cell shares with the others of its model."""
        if self._model is None or self._model.spec != cell.model:
            from qsae_bench.measure.model_context import ModelContext

            self._model = None
            corpus = self.registry.corpus_of(cell.model, self.options.selection)
            with self.watch.setup(cell):
                self._model = self.guarded(
                    cell,
                    lambda: ModelContext(
                        cell.model, corpus, self.device, self.store, self.options.qsae_dir, self.options.say
                    ),
                )
            self.corpora[cell.model.name] = CorpusRecord.of(self._model.corpus)
        return self._model

    def shared(self, cell: Cell) -> None:
        """Tokens and SAEs: what is wrong with them shows before the model is fetched and loaded."""
        with self.watch.setup(cell):
            self.guarded(cell, lambda: self.model(cell).saes)

    def reference(self, cell: Cell, look: int = 0, rows: range = range(0)) -> StoredReference:
        """The stored reference of what a look adds of the cell's corpus, built first if there is none.

        ``rows``: sequences whose files are fetched and checked now, before the pass is timed.
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
            with self.watch.own(own):
                stored = model.reference(load, self.options.progress, look)
            stored.fetch(rows.start, rows.stop)
            return stored

        with PeakMemory(self.device) as peak:
            reference = self.guarded(cell, lambda: self.model(cell).retry_if_damaged(look, work))
        if built and look:
            self._costs[own] = costs  # of its own turn: it was only loaded again
        elif built:
            self.record(own, "peak_memory_bytes", peak.bytes)
        return reference

    @cached_property
    def store(self) -> Store:
        """Where references are kept."""
        from qsae_bench.measure.store import open_store

        options = self.options
        return open_store(options.reference_store, options.qsae_dir, options.reference_store_bytes)

    # -- measuring

    def take(self, cell: Cell, work: str) -> TimedResult:
        with self.watch.own(cell):
            return take(self, cell, work)

    def rows(self, cell: Cell, look: int = 0, shard: Shard = WHOLE) -> range:
        """Of the sequences that a look adds, those that are a shard's."""
        corpus = self.model(cell).part(look)
        return shard.of_batches(len(corpus.ids), corpus.spec.batch_size) if corpus else range(0)

    def prepare(self, cell: Cell, look: int = 0, shard: Shard = WHOLE) -> None:
        """Everything that :meth:`measure` needs but that is not the cell's own cost."""
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
            with self.watch.own(cell):
                self.prepare(cell)
                self.measured[cell] = self.guarded(cell, lambda: self._measure(cell))
                self.run_on(cell, self.options.gates.get(cell, ()))
        return self.measured[cell]

    def run_on(self, cell: Cell, gates: Iterable[GatedMetric]) -> None:
        with self.watch.own(cell):
            self._run_on(cell, gates)

    def _run_on(self, cell: Cell, gates: Iterable[GatedMetric]) -> None:
        measured, costs = self.measured[cell], dict(self.costs(cell))
        while not measured.is_last_look and not measured.stopped and self.judge.undecided(cell, gates):
            try:
                self.guarded(cell, lambda: self._look_again(cell, measured))
            except QsaeError as error:  # what was measured stands, and decides what it can
                self.refused.pop(cell, None)
                measured.stopped = str(error)
                self.warn(cell, f"{cell.id}: judged on {measured.tokens:,} tokens, not more: {error}")
        if len(measured.looks) > 1 and "load_seconds" in costs:
            self.record(cell, "load_seconds", costs["load_seconds"])  # loading again finds warm files

    def _measure(self, cell: Cell) -> CellResult:
        part, model = self.part(cell, 0), self.model(cell)
        quantized = None if cell.is_reference else self.holder.quantized(self.reference(cell))
        measured = CellResult.begin(part, model.plan, not cell.is_reference, quantized)
        if cell.is_reference and self.options.noise_floor:
            other = other_batch_size(model.corpus.spec.batch_size)
            again = self._pass(cell, forward=True, batch_size=other)
            with progress_of(f"{cell.id}: intervals"):
                measured.floor = estimate(again)
        self._mark_invalid(cell, measured)
        return measured

    def _mark_invalid(self, cell: Cell, measured: CellResult) -> None:
        mark_invalid(cell, measured, self.measured.get(self.registry.reference_of(cell)))

    def _look_again(self, cell: Cell, measured: CellResult) -> None:
        """Measure what the next look adds, and append it."""
        model, look = self.model(cell), len(measured.looks)
        if model.part(look) is None:
            measured.exhausted = True
            return
        measured.extend(self.part(cell, look), model.plan)
        self._mark_invalid(cell, measured)

    def part(self, cell: Cell, look: int, shard: Shard = WHOLE) -> Measurement:
        """The cell on the sequences that a look adds, or a shard of them."""
        return self.model(cell).retry_if_damaged(look, lambda: self._part_once(cell, look, shard))

    def _part_once(self, cell: Cell, look: int, shard: Shard) -> Measurement:
        """With what that took."""
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
        if not cell.is_reference or (self.holder.loaded and self.holder.loaded.cell == cell and not look):
            known = before.get("peak_memory_bytes", 0) if cell.is_reference or look else 0
            self.record(cell, "peak_memory_bytes", max(known, peak.bytes))
        if splice:
            from qsae_bench.measure.splice import with_splice

            model = self.model(cell)
            corpus = model.part(look)
            assert corpus is not None
            # parts of one cell are ablated with one mean, or they would not add up
            first = (
                first_sequences(self.measured[cell].measurement, len(model.corpus.ids)) if look else None
            )
            part = with_splice(
                part, other, self.load(cell).subject, corpus, model.saes, model.compute_device, first,
                self.options.progress,
            )  # fmt: skip
        return part

    def _reference_part(self, reference: Cell, look: int) -> Measurement:
        """The reference's splice columns, which its cells' are compared with; kept for the next cell."""
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
        loaded = self.holder.loaded
        loaded_head = Head.of(loaded.model) if loaded and loaded.cell.model == cell.model else None
        return evaluate(
            cell, corpus, reference, model.saes, model.compute_device, subject,
            batch_size=batch_size, shard=shard, loaded_head=loaded_head,
            on_progress=TokenProgress(cell.id, corpus.spec.sequence_length, self.options.progress),
        )  # fmt: skip

    def guarded(self, cell: Cell, work: Callable[[], T]) -> T:
        """Remember a refusal, so that every later test of the cell says the same at once."""
        refusal: QsaeError | None
        try:
            with progress_to(self.options.progress):
                return work()
        except QsaeError as error:
            refusal = error.without_traceback()
        except Exception as error:
            refusal = None if is_out_of_memory(error) else Crashed.from_exception(cell.id, error)
        # outside the handlers: what is raised there would keep the frames, and so the tensors, alive
        if refusal is None:
            raise self.ran_out(cell)
        if isinstance(refusal, Crashed):
            with contextlib.suppress(Exception):  # a GPU that failed fails at this too
                self.release()
        self.refused[cell] = type(refusal)(str(refusal))
        raise refusal

    def forget(self, cell: Cell) -> None:
        """Be as if the cell had never been asked for."""
        speeds, wrote = self.speeds, (self.measured, self.refused, self.warnings, self._costs)
        for known in (*wrote, speeds.timings, speeds.turns, speeds.judged):
            known.pop(cell, None)
        self.watch.forget(cell)

    def ran_out(self, cell: Cell) -> OutOfMemory:
        from qsae_bench.machine import Machine
        from qsae_bench.measure import resources

        self.release()
        corpus = self.registry.corpus_of(cell.model, self.options.selection)
        line = resources.shortage_message(
            cell, corpus, Machine.here(self.options.qsae_dir), self.device != "cpu"
        )
        shortage = self.refused[cell] = OutOfMemory(line)
        return shortage

    def close(self) -> None:
        self.release()
        self._model = None
        if "store" in vars(self):  # it was used
            self.store.close()
