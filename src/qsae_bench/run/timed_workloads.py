"""Time the workloads of a cell, by name, in whichever process has its model.

Each records its rounds with the session's timings, and returns what pytest-benchmark shows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from qsae_bench.measure import clock, workloads
from qsae_bench.measure.device_state import watch
from qsae_bench.metrics.cost import RATES
from qsae_bench.stats.speed_ratio import FEWEST_PAIRS

if TYPE_CHECKING:
    import torch

    from qsae_bench.registry.specs import Cell
    from qsae_bench.run.local_session import LocalSession
    from qsae_bench.stats.bootstrap import Estimate

ROUNDS = 5
"""five a side give a ratio a 95% interval: see qsae_bench.stats.speed_ratio"""
WARM_UPS_CPU, WARM_UPS_GPU = 1, 3
"""rounds that are not counted: a GPU raises its clocks and picks its kernels first"""
OVERHEAD_BATCHES = 2
"""enough for a stable ratio, few enough to repeat in turns"""
REFERENCE_ONLY = frozenset({"sae", "overhead"})
"""workloads that a quantization does not change: timed once per model"""


@dataclass(frozen=True)
class TimedResult:
    """Describe a workload that was done. Picklable."""

    seconds: tuple[float, ...] = ()
    """of every round; none where timing is off"""
    info: Mapping[str, Any] = field(default_factory=dict)
    """for pytest-benchmark's ``extra_info``"""


def time_workload(session: LocalSession, cell: Cell, name: str) -> TimedResult:
    """Do the rounds of one of :data:`WORKLOADS`."""
    clock.use(session.device)
    return WORKLOADS[name](session, cell)


def warm_ups(device: str) -> int:
    """Return the number of rounds that are not counted on a session's device (``auto``: several GPUs)."""
    return WARM_UPS_CPU if device == "cpu" else WARM_UPS_GPU


def workloads_for(cell: Cell, names: Iterable[str]) -> tuple[str, ...]:
    """Return those of ``names`` that are done for this cell, in the order of :data:`WORKLOADS`."""
    wanted = set(names) - (frozenset() if cell.is_reference else REFERENCE_ONLY)
    return tuple(name for name in WORKLOADS if name in wanted)


def _once(session: LocalSession, work: Callable[[], Any]) -> tuple[float, ...]:
    started = clock.now()
    work()
    return (clock.now() - started,) if session.timing else ()


def _load(session: LocalSession, cell: Cell) -> TimedResult:
    from qsae_bench.models.loading import import_libraries

    session.shared(cell)
    session.release()
    import_libraries(cell)
    seconds = _once(session, lambda: session.load(cell))
    return TimedResult(seconds, dict(session.costs(cell)))


def _evaluation(session: LocalSession, cell: Cell) -> TimedResult:
    session.prepare(cell)
    seconds = _once(session, lambda: session.measure(cell))
    found = session.measure(cell).estimates
    layers = {f"layer{layer}": _values_of(estimates) for layer, estimates in found.layers.items()}
    return TimedResult(seconds, _values_of(found.cell) | layers)


def _values_of(estimates: Mapping[str, Estimate]) -> dict[str, Any]:
    """Return values by metric, None where not finite: a bare NaN would not be JSON."""
    from qsae_bench.results.document import value_record

    return {key: value_record(estimate).value for key, estimate in estimates.items()}


def _prefill(session: LocalSession, cell: Cell) -> TimedResult:
    workload = workloads.prefill(session.load(cell).model, _first_batch(session, cell))
    return _rounds(session, cell, "prefill", workload)


def _decode(session: LocalSession, cell: Cell) -> TimedResult:
    from qsae_bench.models.architecture import config_of
    from qsae_bench.models.validation import positions_of

    ids = _first_batch(session, cell)
    if (limit := positions_of(config_of(cell.model))) is not None:  # its last positions are decoded
        ids = ids[:, : limit - workloads.DECODE_STEPS]
    workload = workloads.decode(session.load(cell).model, ids)
    return _rounds(session, cell, "decode", workload)


def _sae(session: LocalSession, cell: Cell) -> TimedResult:
    import torch

    sae = session.model(cell).saes[cell.model.layers[0]]
    shape = (*_first_batch(session, cell).shape, cell.model.d_model)
    residual = torch.randn(shape, device=sae.W_dec.device)
    return _rounds(session, cell, "sae", workloads.sae_round_trip(sae, residual))


def _first_batch(session: LocalSession, cell: Cell) -> torch.Tensor:
    import torch

    corpus = session.model(cell).corpus
    ids = torch.from_numpy(corpus.ids[: corpus.spec.batch_size])
    return ids.to(session.load(cell).device)


def _rounds(session: LocalSession, cell: Cell, name: str, workload: workloads.Workload) -> TimedResult:
    """Time rounds of one workload, watching the device; nothing is recorded where timing is off."""

    def one_round() -> float:
        args, keywords = workload.setup() if workload.setup else ((), {})
        started = clock.now()
        workload.run(*args, **keywords)
        return clock.now() - started

    if not session.timing:
        one_round()
        return TimedResult()
    with watch(session.device) as state:
        for _ in range(warm_ups(session.device)):
            one_round()
        seconds = tuple(one_round() for _ in range(ROUNDS))
    flags = (*state.flags, *session.timing_flags)
    session.timings.record_rounds(cell, name, seconds, workload.tokens, flags)
    return TimedResult(seconds, {RATES[name]: session.costs(cell)[RATES[name]], "flags": list(flags)})


def _overhead(session: LocalSession, cell: Cell) -> TimedResult:
    """Time an evaluation, the products that it can't do without, and a bare forward, in turns."""
    works, tokens = overhead_workloads(session, cell)
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for work in works.values():
        work()
    with watch(session.device) as state:
        for _ in range(FEWEST_PAIRS):  # in turns, so that a busy machine slows all
            for name, work in works.items():
                started = clock.now()
                work()
                seconds[name].append(clock.now() - started)
    flags = (*state.flags, *session.timing_flags)
    session.timings.record_turns(cell, seconds, tokens, flags)
    ratios = {metric: found.value for metric, found in session.timings.turns[cell].items()}
    rounds: Sequence[float] = seconds["evaluation"] if session.timing else ()
    return TimedResult(tuple(rounds), ratios | {"flags": list(flags)})


def overhead_workloads(session: LocalSession, cell: Cell) -> tuple[dict[str, Callable[[], object]], int]:
    """Return callables over the first batches of the cell's corpus, and the tokens that each processes.

    ``evaluation``: a full pass with a forward. ``evaluation_floor``: a bare forward, the SAEs on both
    residuals, both heads. ``forward``: the bare forward alone.
    """
    import torch

    from qsae_bench.measure.evaluation import evaluate, evaluation_floor

    model = session.model(cell)
    corpus = model.corpus.first(OVERHEAD_BATCHES * model.corpus.spec.batch_size)
    reference = session.reference(cell, rows=range(len(corpus.ids)))
    subject = session.load(cell).subject
    saes, device = model.saes, model.compute_device
    batches = torch.from_numpy(corpus.ids).to(subject.input_device).split(corpus.spec.batch_size)
    forward = workloads.forwards(subject.model.get_decoder(), batches)
    return {
        "evaluation": lambda: evaluate(cell, corpus, reference, saes, device, subject),
        "evaluation_floor": evaluation_floor(subject, corpus, reference, saes, device),
        "forward": forward.run,
    }, forward.tokens


WORKLOADS: Mapping[str, Callable[[LocalSession, Cell], TimedResult]] = {
    "load": _load, "evaluation": _evaluation, "prefill": _prefill, "decode": _decode, "sae": _sae,
    "overhead": _overhead,
}  # fmt: skip
"""in the order in which a cell's are done: first what the others reuse"""
