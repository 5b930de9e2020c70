"""One invocation: each cell loaded once, measured once, freed.

Knows nothing of pytest: the plugin's fixtures call it, and so could a worker process.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from qsae_bench import gate, results
from qsae_bench.errors import OutOfMemory, QsaeError
from qsae_bench.measurement import Measurement
from qsae_bench.memory import is_out_of_memory, steady_heap
from qsae_bench.metrics import GROUPS, METRICS
from qsae_bench.progress import SILENT, Outlet, Progress
from qsae_bench.registry import DEFAULTS, Registry
from qsae_bench.specs import Cell, Selection
from qsae_bench.statistics import Estimate, Estimates, estimate
from qsae_bench.thresholds import Thresholds

if TYPE_CHECKING:
    from qsae_bench.bench_model import BenchModel
    from qsae_bench.corpus import Corpus
    from qsae_bench.inspection import Quantized
    from qsae_bench.loading import Loaded
    from qsae_bench.reference import ReferenceStore, StoredReference

T = TypeVar("T")

UNQUANTIZED = (
    "the recipe left the model unquantized: no matrix of the decoder takes fewer bits or differs from the "
    "reference's; check its options and what it skips (most skip GPT-2's Conv1D, which is no nn.Linear)"
)

OVERHEAD_BATCHES = 2
"""enough for a stable ratio, few enough to repeat in turns"""


@dataclass(frozen=True)
class Options:
    """How a session runs, from the command line."""

    registry: Registry
    thresholds: Thresholds
    qsae_dir: Path
    command: str
    selection: Selection = DEFAULTS
    device: str = ""
    """``cpu`` or ``cuda``; '' takes a GPU where there is one"""
    splice: bool = False
    noise_floor: bool = False
    reference_store: bool = True
    """False keeps references in a temporary folder for this run only"""
    reference_store_bytes: int = 50 << 30
    say: Callable[[str], None] = print
    """where warnings go"""
    progress: Outlet = SILENT


@dataclass
class Measured:
    """A cell's outcome so far."""

    measurement: Measurement
    estimates: Estimates
    floor: Estimates | None = None
    """of a reference only: itself again at another batch size"""
    quantized: Quantized | None = None
    """of a quantized cell: what its recipe did to the weights"""
    broken: str = ""
    """why the whole cell is invalid, if it is"""
    verdicts: list[gate.Verdict] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        return int(self.measurement.rows.scalars["tokens"].sum())


def from_here(path: Path) -> Path:
    """As short as a person would type it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def other_batch_size(batch_size: int) -> int:
    """The noise floor's: about a third, so that it differs in more than a power of two."""
    return max(1, batch_size // 3) if batch_size > 1 else 2


class Session:
    """Loads, measures and judges cells on demand, in any order; cheap in registry order."""

    def __init__(self, options: Options) -> None:
        from qsae_bench.holder import ModelHolder
        from qsae_bench.loading import default_device

        self.options = options
        self.registry = options.registry
        self.device = default_device(options.device)
        steady_heap()
        self.started = results.now()
        self.requested: list[Cell] = []
        self.measured: dict[Cell, Measured] = {}
        self.refused: dict[Cell, QsaeError] = {}
        self.corpora: dict[str, Corpus] = {}
        self._model: BenchModel | None = None
        self.warnings: dict[Cell, list[str]] = {}
        self.holder = ModelHolder(self.device, self.record, self.warn)
        self._costs: dict[Cell, dict[str, float]] = {}
        self._temporary: tempfile.TemporaryDirectory[str] | None = None

    # -- loading

    def require(self, cell: Cell) -> None:
        """Raise, before anything heavy, if the cell can't run here or has already failed."""
        from qsae_bench.loading import require

        if cell not in self.requested:
            self.requested.append(cell)
        if cell in self.refused:
            raise self.refused[cell]
        self._guarded(cell, lambda: require(cell, self.device, told=bool(self.options.device)))

    def load(self, cell: Cell) -> Loaded:
        """The cell's model, loaded if it is not the one that already is."""
        if cell in self.refused:
            raise self.refused[cell]
        return self._guarded(cell, lambda: self.holder.load(cell))

    def release(self) -> None:
        """Free the loaded model, if there is one."""
        self.holder.release()

    def model(self, cell: Cell) -> BenchModel:
        """What the cell shares with the others of its model."""
        if self._model is None or self._model.spec != cell.model:
            from qsae_bench.bench_model import BenchModel

            self._model = None
            corpus = self.registry.corpus_of(cell.model, self.options.selection)
            self._model = self._guarded(
                cell,
                lambda: BenchModel(
                    cell.model, corpus, self.device, self._store(), self.options.qsae_dir, self.options.say
                ),
            )
            self.corpora[cell.model.name] = self._model.corpus
        return self._model

    def shared(self, cell: Cell) -> None:
        """Tokens and SAEs: what is wrong with them shows before the model is fetched and loaded."""
        self._guarded(cell, lambda: self.model(cell).saes)

    def reference(self, cell: Cell) -> StoredReference:
        """The stored reference of the cell's model, built first if there is none."""
        from qsae_bench.memory import PeakMemory

        own = self.registry.reference_of(cell)
        built = False

        def load() -> Loaded:
            nonlocal built
            built = True
            return self.load(own)

        def work() -> StoredReference:
            return self.model(cell).reference(load, self.options.say, self.options.progress)

        with PeakMemory(self.device) as peak:
            reference = self._guarded(cell, work)
        if built:
            self.record(own, "peak_memory_bytes", peak.bytes)
        return reference

    def _store(self) -> ReferenceStore:
        from qsae_bench.reference import ReferenceStore

        if self.options.reference_store:
            folder = self.options.qsae_dir / "references"
        else:
            if self._temporary is None:
                self._temporary = tempfile.TemporaryDirectory(prefix="qsae-references-")
            folder = Path(self._temporary.name)
        return ReferenceStore(folder, self.options.reference_store_bytes)

    # -- measuring

    def prepare(self, cell: Cell) -> None:
        """Everything that :meth:`measure` needs but that is not the cell's own cost."""
        if cell in self.refused:
            raise self.refused[cell]
        self.shared(cell)
        self.reference(cell)
        if not cell.is_reference:
            # a quantized cell is judged against a reference that is itself sane
            self._guarded(cell, lambda: self.measure(self.registry.reference_of(cell)))
            self.load(cell)

    def measure(self, cell: Cell) -> Measured:
        """The cell's measurement: taken now, or the one already taken."""
        if cell not in self.measured:
            self.prepare(cell)
            self.measured[cell] = self._guarded(cell, lambda: self._measure(cell))
        return self.measured[cell]

    def _measure(self, cell: Cell) -> Measured:
        from qsae_bench.memory import PeakMemory

        started = time.perf_counter()
        with PeakMemory(self.device) as peak:
            measurement = self._pass(cell, forward=not cell.is_reference)
        if not cell.is_reference:  # the reference's pass reads the store: its speed is not a model's
            rate = self.model(cell).corpus.ids.size / (time.perf_counter() - started)
            self.record(cell, "evaluation_tokens_per_second", rate)
            self.record(cell, "peak_memory_bytes", peak.bytes)
        elif self.holder.loaded is not None and self.holder.loaded.cell == cell:
            before = self.costs(cell).get("peak_memory_bytes", 0)
            self.record(cell, "peak_memory_bytes", max(before, peak.bytes))
        if self.options.splice:
            measurement = self._spliced(cell, measurement)
        quantized = None if cell.is_reference else self.holder.quantized(self.reference(cell))
        if quantized is not None:
            measurement = measurement.with_costs(quantized.values)
        measured = Measured(measurement, estimate(measurement), quantized=quantized)
        if cell.is_reference and self.options.noise_floor:
            other = other_batch_size(self.model(cell).corpus.spec.batch_size)
            measured.floor = estimate(self._pass(cell, forward=True, batch_size=other))
        self._find_broken(cell, measured)
        return measured

    def _pass(self, cell: Cell, forward: bool, batch_size: int | None = None) -> Measurement:
        from qsae_bench.evaluation import evaluate

        model, reference = self.model(cell), self.reference(cell)
        subject = self.load(cell).subject if forward else None
        length = model.corpus.spec.sequence_length
        return evaluate(
            cell, model.corpus, reference, model.saes, model.compute_device, subject, batch_size,
            Progress(cell.id, length, self.options.progress),
        )  # fmt: skip

    def evaluation_and_floor(self, cell: Cell) -> tuple[Callable[[], object], Callable[[], object]]:
        """Two callables over the first batches: a full pass with a forward, and what it can't avoid."""
        from qsae_bench.evaluation import evaluate, floor

        model, reference, subject = self.model(cell), self.reference(cell), self.load(cell).subject
        corpus = model.corpus.first(OVERHEAD_BATCHES * model.corpus.spec.batch_size)
        saes, device = model.saes, model.compute_device
        return (
            lambda: evaluate(cell, corpus, reference, saes, device, subject),
            floor(subject, corpus, reference, saes, device),
        )

    def _spliced(self, cell: Cell, measurement: Measurement) -> Measurement:
        from qsae_bench.splicing import with_splice

        model = self.model(cell)
        other = None if cell.is_reference else self.measure(self.registry.reference_of(cell)).measurement
        return with_splice(
            measurement, other, self.load(cell).subject, model.corpus, model.saes, model.compute_device
        )

    def _find_broken(self, cell: Cell, measured: Measured) -> None:
        if measured.quantized is not None and not measured.quantized.share:
            measured.broken = UNQUANTIZED
        elif not measured.measurement.is_finite:
            share = measured.estimates.cell["nonfinite_share"].value
            measured.broken = (
                f"non-finite values (nonfinite_share {share:.3g}): weights or activations overflowed"
            )
        elif cell.model.synthetic:
            return  # random weights have no quality to be sane or not
        elif cell.is_reference:
            measured.verdicts += gate.judge_reference(
                measured.estimates, cell.model.reference_bounds, measured.tokens
            )
            measured.broken = next((v.reason for v in measured.verdicts if v.failing), "")
        elif reason := self.measured[self.registry.reference_of(cell)].broken:
            measured.broken = f"its reference is not sane: {reason}"

    # -- judging and recording

    def record(self, cell: Cell, key: str, value: float) -> None:
        """Keep one cost of a cell; measured or not, it goes into the run document."""
        assert METRICS[key].formula is None, key
        self._costs.setdefault(cell, {})[key] = float(value)

    def warn(self, cell: Cell, line: str) -> None:
        """Say what went on with a cell that is no verdict, and keep it for the run document."""
        self.warnings.setdefault(cell, []).append(line)
        self.options.say(line)

    def costs(self, cell: Cell) -> Mapping[str, float]:
        return self._costs.get(cell, {})

    def check(
        self,
        cell: Cell,
        metrics: tuple[str, ...],
        layer: int | None = None,
        also: tuple[str, ...] = (),
    ) -> str:
        """Judge metrics of a measured cell; the message of every failing one, or ''.

        ``metrics`` are judged in any case, those of the groups ``also`` where a threshold bounds them.
        """
        measured = self.measure(cell)
        if cell.is_reference:
            failing = [v for v in measured.verdicts if v.failing and v.layer == layer]
            if measured.broken and not measured.verdicts:
                return f"{cell.id}: INVALID: {measured.broken}"
            return self._messages(cell, failing)
        bounded = self.options.thresholds.metrics_for(cell.model.name, cell.quantization.name, layer)
        extra = {key for group in also for key in GROUPS[group]} & bounded
        known = {v.metric: v for v in measured.verdicts if v.layer == layer}
        # a metric that another test judged along with its group still decides the test that names it
        asked = [known.get(metric) or self._judge(cell, measured, metric, layer) for metric in metrics]
        asked += [
            self._judge(cell, measured, metric, layer)
            for metric in sorted(extra.difference(metrics, known))
        ]
        measured.verdicts += [verdict for verdict in asked if verdict.metric not in known]
        return self._messages(cell, [v for v in asked if v.failing])

    def _judge(self, cell: Cell, measured: Measured, metric: str, layer: int | None) -> gate.Verdict:
        names = (cell.model.name, cell.quantization.name)
        threshold = self.options.thresholds.find(*names, metric, layer)
        broken = measured.broken
        found = measured.estimates.at(layer).get(metric)
        if found is None:
            hint = ": run with --splice" if metric in GROUPS["splice"] else ""
            found, broken = Estimate(math.nan), f"{metric} was not measured{hint}"
        reference = self.measured[self.registry.reference_of(cell)]
        floor = reference.floor.at(layer).get(metric) if reference.floor else None
        if threshold and floor and not broken:
            broken = gate.below_floor(threshold, floor, reference.estimates.at(layer)[metric])
        return gate.judge(metric, found, threshold, measured.tokens, layer, broken)

    def _messages(self, cell: Cell, failing: list[gate.Verdict]) -> str:
        reference = None if cell.is_reference else self.measured[self.registry.reference_of(cell)].estimates
        more = f"qsae-bench show {from_here(self.options.qsae_dir / 'latest')} -k {cell.id}"
        return "\n".join(gate.explain(cell.id, verdict, reference, more) for verdict in failing)

    def _guarded(self, cell: Cell, work: Callable[[], T]) -> T:
        """Remember a refusal, so that every later test of the cell says the same at once."""
        refusal: QsaeError | None = None
        try:
            return work()
        except QsaeError as error:
            # without its traceback, whose frames hold the model
            refusal = self.refused[cell] = type(error)(str(error))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        # outside the handlers: what is raised there would keep the frames, and so the tensors, alive
        raise refusal or self.ran_out(cell)

    def ran_out(self, cell: Cell) -> OutOfMemory:
        """Free what is loaded and remember that the cell ran out of memory."""
        self.release()
        shortage = self.refused[cell] = OutOfMemory(self._shortage(cell))
        return shortage

    def _shortage(self, cell: Cell) -> str:
        """What the cell needed, by estimate, and what there is."""
        from qsae_bench import plan
        from qsae_bench.machine import Machine

        machine = Machine.here(self.options.qsae_dir)
        on_gpu = self.device != "cpu"
        have = sum(machine.gpu_bytes) if on_gpu else machine.memory_bytes
        line = f"{cell.id}: out of {'GPU ' if on_gpu else ''}memory"
        if not cell.model.architecture:
            return f"{line}: {have / plan.GIB:.1f} GiB are here; try --batch-size 1"
        corpus = self.registry.corpus_of(cell.model, self.options.selection)
        estimate = plan.need(cell, corpus, on_gpu)
        todo = plan.remedy(cell, corpus, estimate, have)
        needed = f"needs about {estimate.memory / plan.GIB:.1f} GiB"
        return f"{line}: {needed}, {have / plan.GIB:.1f} GiB are here; try {todo}"

    def close(self) -> None:
        """Free what is loaded and remove what was temporary."""
        self.release()
        self._model = None
        if self._temporary is not None:
            self._temporary.cleanup()
