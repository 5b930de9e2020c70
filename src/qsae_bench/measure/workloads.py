"""The callables that the speed benchmarks time, and the clock that they are timed with.

Each callable returns only when the device is done.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from sae_lens import SAE
    from transformers import PreTrainedModel

DECODE_STEPS = 32


@dataclass(frozen=True)
class Timed:
    """``run`` does ``tokens`` tokens' worth of work; ``setup`` makes its arguments, untimed."""

    run: Callable[..., Any]
    tokens: int
    setup: Callable[[], tuple[tuple[Any, ...], dict[str, Any]]] | None = None


# -- the clock ------------------------------------------------------------------------------------


class GpuClock:
    """Seconds by the GPU's own clock: an event, recorded and waited for once all GPUs are done.

    The reading is the sum of the times between consecutive events. One event at the start, compared with
    every later one, would not do: the time between two events is a float32 of milliseconds, a quarter of a
    millisecond coarse after an hour. So what lies between two readings in a row is as exact as the events.
    """

    def __init__(self) -> None:
        self._last: torch.cuda.Event | None = None
        self._seconds = 0.0

    def __call__(self) -> float:
        import torch

        synchronize("cuda")
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        event.synchronize()
        if self._last is not None:
            self._seconds += self._last.elapsed_time(event) / 1000
        self._last = event
        return self._seconds


def clock(device: str) -> Callable[[], float]:
    """A clock for work on ``device``: seconds, from an arbitrary start."""
    return time.perf_counter if device == "cpu" else GpuClock()


_now: Callable[[], float] = time.perf_counter


def use(device: str) -> None:
    """Let :func:`now` be the clock of this device from here on."""
    global _now
    _now = clock(device)


def now() -> float:
    """Seconds on the clock of the device in use; a timer for pytest-benchmark, which wants one before the
    device is known."""
    return _now()


def hand_over(benchmark: Any, seconds: Sequence[float]) -> None:
    """Tell pytest-benchmark rounds that have been timed: its timer, :func:`now`, reads them out."""
    global _now
    readings = iter([reading for one in seconds for reading in (0.0, one)])
    before, _now = _now, lambda: next(readings)
    try:
        benchmark.pedantic(lambda: None, rounds=max(1, len(seconds)))  # disabled, it asks for no time
    finally:
        _now = before


def synchronize(device: torch.device | str) -> None:
    """Wait for the GPUs that this process uses; a CPU has nothing pending."""
    import torch

    if str(device) == "cpu":
        return
    for index in range(torch.cuda.device_count()):
        if torch.cuda.memory_allocated(index):  # waiting for an unused one would make a context on it
            torch.cuda.synchronize(index)


# -- what is timed --------------------------------------------------------------------------------


def prefill(model: PreTrainedModel, ids: torch.Tensor) -> Timed:
    """One forward over ``ids`` [batch, length], logits of the last position only."""
    import torch

    def run() -> None:
        with torch.inference_mode():
            model(input_ids=ids, use_cache=False, logits_to_keep=1)
        synchronize(ids.device)

    return Timed(run, ids.numel())


def decode(model: PreTrainedModel, ids: torch.Tensor, steps: int = DECODE_STEPS) -> Timed:
    """``steps`` greedy steps of one token a sequence, after a prefill that is not timed."""
    import torch

    def setup() -> tuple[tuple[Any, ...], dict[str, Any]]:
        with torch.inference_mode():
            start = model(input_ids=ids, use_cache=True, logits_to_keep=1)
        synchronize(ids.device)
        return (start.past_key_values, start.logits.argmax(-1)), {}

    def run(cache: Any, token: torch.Tensor) -> None:
        with torch.inference_mode():
            for _ in range(steps):
                step = model(input_ids=token, past_key_values=cache, use_cache=True)
                token = step.logits.argmax(-1)
        synchronize(ids.device)

    return Timed(run, len(ids) * steps, setup)


def forwards(decoder: torch.nn.Module, batches: Sequence[torch.Tensor]) -> Timed:
    """Bare forwards of the decoder, without its head, over ``batches`` of [batch, length]."""
    import torch

    from qsae_bench.models.taps import hidden_states

    def run() -> None:
        with torch.inference_mode():
            for batch in batches:
                hidden_states(decoder, batch)
        synchronize(batches[0].device)

    return Timed(run, sum(batch.numel() for batch in batches))


def sae_round_trip(sae: SAE[Any], residual: torch.Tensor) -> Timed:
    """Encode and decode ``residual`` [batch, length, d_model]."""
    import torch

    def run() -> None:
        with torch.inference_mode():
            sae.decode(sae.encode(residual))
        synchronize(residual.device)

    return Timed(run, residual.shape[0] * residual.shape[1])
