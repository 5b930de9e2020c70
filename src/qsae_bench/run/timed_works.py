"""What is timed of a cell, by name, in whichever process has its model.

Each work runs its rounds, keeps them with the session's speeds, and gives back what pytest-benchmark is
told.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from qsae_bench.measure import clock, workloads
from qsae_bench.measure.device_state import watch
from qsae_bench.metrics.cost import RATES
from qsae_bench.stats.speed_ratio import FEWEST_PAIRS

if TYPE_CHECKING:
    import torch

    from qsae_bench.gate.cell_result import CellResult
    from qsae_bench.measure.model_context import ModelContext
    from qsae_bench.measure.store.entry import StoredReference
    from qsae_bench.models.loading import Loaded
    from qsae_bench.registry.specs import Cell
    from qsae_bench.run.timings import Timings
    from qsae_bench.stats.bootstrap import Estimate

ROUNDS = 5
"""five a side give a ratio a 95% interval: see qsae_bench.stats.speed_ratio"""
WARM_UPS_CPU, WARM_UPS_GPU = 1, 3
"""rounds that are not counted: a GPU raises its clocks and picks its kernels first"""
OVERHEAD_BATCHES = 2
"""enough for a stable ratio, few enough to repeat in turns"""
OF_REFERENCES = frozenset({"sae", "overhead"})
"""works that a quantization changes nothing about: timed once a model"""


@dataclass(frozen=True)
class TimedResult:
    """A work that was done. Picklable."""

    seconds: tuple[float, ...] = ()
    """of every round; none where timing is off"""
    info: Mapping[str, Any] = field(default_factory=dict)
    """for pytest-benchmark's ``extra_info``"""


class Bench(Protocol):
    """What a work needs of a session."""

    speeds: Timings

    @property
    def device(self) -> str: ...
    @property
    def timing(self) -> bool: ...
    @property
    def beside(self) -> tuple[str, ...]: ...
    def shared(self, cell: Cell) -> None: ...
    def prepare(self, cell: Cell) -> None: ...
    def load(self, cell: Cell) -> Loaded: ...
    def release(self) -> None: ...
    def measure(self, cell: Cell) -> CellResult: ...
    def model(self, cell: Cell) -> ModelContext: ...
    def reference(self, cell: Cell, look: int = 0, rows: range = range(0)) -> StoredReference: ...
    def costs(self, cell: Cell) -> Mapping[str, float]: ...


def take(bench: Bench, cell: Cell, work: str) -> TimedResult:
    """Do the rounds of one of :data:`WORKS`."""
    clock.use(bench.device)
    return WORKS[work](bench, cell)


def warm_ups(device: str) -> int:
    """How many; ``device`` as a session names it, ``auto`` for several GPUs."""
    return WARM_UPS_CPU if device == "cpu" else WARM_UPS_GPU


def asked_of(cell: Cell, works: Iterable[str]) -> tuple[str, ...]:
    """Those of ``works`` that are done for this cell, in the order of :data:`WORKS`."""
    wanted = set(works) - (frozenset() if cell.is_reference else OF_REFERENCES)
    return tuple(work for work in WORKS if work in wanted)


def _once(bench: Bench, work: Callable[[], Any]) -> tuple[float, ...]:
    started = clock.now()
    work()
    return (clock.now() - started,) if bench.timing else ()


def _load(bench: Bench, cell: Cell) -> TimedResult:
    from qsae_bench.models.loading import import_libraries

    bench.shared(cell)
    bench.release()
    import_libraries(cell)
    seconds = _once(bench, lambda: bench.load(cell))
    return TimedResult(seconds, dict(bench.costs(cell)))


def _evaluation(bench: Bench, cell: Cell) -> TimedResult:
    bench.prepare(cell)
    seconds = _once(bench, lambda: bench.measure(cell))
    found = bench.measure(cell).estimates
    layers = {f"layer{layer}": _finite(estimates) for layer, estimates in found.layers.items()}
    return TimedResult(seconds, _finite(found.cell) | layers)


def _finite(estimates: Mapping[str, Estimate]) -> dict[str, Any]:
    """Values by metric, null where not finite: a bare NaN would not be JSON."""
    from qsae_bench.results.document import value_record

    return {key: value_record(estimate).value for key, estimate in estimates.items()}


def _prefill(bench: Bench, cell: Cell) -> TimedResult:
    work = workloads.prefill(bench.load(cell).model, _first_batch(bench, cell))
    return _rounds(bench, cell, "prefill", work)


def _decode(bench: Bench, cell: Cell) -> TimedResult:
    work = workloads.decode(bench.load(cell).model, _first_batch(bench, cell))
    return _rounds(bench, cell, "decode", work)


def _sae(bench: Bench, cell: Cell) -> TimedResult:
    import torch

    sae = bench.model(cell).saes[cell.model.layers[0]]
    shape = (*_first_batch(bench, cell).shape, cell.model.d_model)
    return _rounds(
        bench, cell, "sae", workloads.sae_round_trip(sae, torch.randn(shape, device=sae.W_enc.device))
    )


def _first_batch(bench: Bench, cell: Cell) -> torch.Tensor:
    import torch

    corpus = bench.model(cell).corpus
    ids = torch.from_numpy(corpus.ids[: corpus.spec.batch_size])
    return ids.to(bench.load(cell).device)


def _rounds(bench: Bench, cell: Cell, name: str, work: workloads.Workload) -> TimedResult:
    """Time rounds of one work, watching the device; nothing is kept where timing is off."""

    def one_round() -> float:
        args, keywords = work.setup() if work.setup else ((), {})
        started = clock.now()
        work.run(*args, **keywords)
        return clock.now() - started

    if not bench.timing:
        one_round()
        return TimedResult()
    with watch(bench.device) as seen:
        for _ in range(warm_ups(bench.device)):
            one_round()
        seconds = tuple(one_round() for _ in range(ROUNDS))
    flags = (*seen.flags, *bench.beside)
    bench.speeds.record_rounds(cell, name, seconds, work.tokens, flags)
    return TimedResult(seconds, {RATES[name]: bench.costs(cell)[RATES[name]], "flags": list(flags)})


def _overhead(bench: Bench, cell: Cell) -> TimedResult:
    """An evaluation against the products that it can't do without, and a bare forward: in turns."""
    works, tokens = overhead_works(bench, cell)
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for work in works.values():
        work()
    with watch(bench.device) as seen:
        for _ in range(FEWEST_PAIRS):  # in turns, so that a busy machine slows all
            for name, work in works.items():
                started = clock.now()
                work()
                seconds[name].append(clock.now() - started)
    flags = (*seen.flags, *bench.beside)
    bench.speeds.record_turns(cell, seconds, tokens, flags)
    ratios = {metric: found.value for metric, found in bench.speeds.turns[cell].items()}
    rounds: Sequence[float] = seconds["evaluation"] if bench.timing else ()
    return TimedResult(tuple(rounds), ratios | {"flags": list(flags)})


def overhead_works(bench: Bench, cell: Cell) -> tuple[dict[str, Callable[[], object]], int]:
    """Callables over the first batches of the cell's corpus, and the tokens that each of them does.

    ``evaluation``: a full pass with a forward. ``evaluation_floor``: a bare forward, the SAEs on both
    residuals, both heads. ``forward``: the bare forward alone.
    """
    import torch

    from qsae_bench.measure.evaluation import evaluate, evaluation_floor

    model = bench.model(cell)
    corpus = model.corpus.first(OVERHEAD_BATCHES * model.corpus.spec.batch_size)
    reference = bench.reference(cell, rows=range(len(corpus.ids)))
    subject = bench.load(cell).subject
    saes, device = model.saes, model.compute_device
    batches = torch.from_numpy(corpus.ids).to(subject.input_device).split(corpus.spec.batch_size)
    forward = workloads.forwards(subject.model.get_decoder(), batches)
    return {
        "evaluation": lambda: evaluate(cell, corpus, reference, saes, device, subject),
        "evaluation_floor": evaluation_floor(subject, corpus, reference, saes, device),
        "forward": forward.run,
    }, forward.tokens


WORKS: Mapping[str, Callable[[Bench, Cell], TimedResult]] = {
    "load": _load, "evaluation": _evaluation, "prefill": _prefill, "decode": _decode, "sae": _sae,
    "overhead": _overhead,
}  # fmt: skip
"""in the order in which a cell's are done: first what the others reuse"""
