"""Build the callables that the speed benchmarks time. Each returns only when the device is done."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qsae_bench.measure.clock import synchronize

if TYPE_CHECKING:
    import torch
    from sae_lens import SAE
    from transformers import PreTrainedModel

DECODE_STEPS = 32
"""tokens that a round of ``decode`` appends to each sequence"""


@dataclass(frozen=True)
class Workload:
    """Describe one round of work to be timed."""

    run: Callable[..., Any]
    """the timed part"""
    tokens: int
    """tokens that a round processes"""
    setup: Callable[[], tuple[tuple[Any, ...], dict[str, Any]]] | None = None
    """makes the arguments of ``run``; not timed"""


def prefill(model: PreTrainedModel, ids: torch.Tensor) -> Workload:
    """Return one forward over ``ids`` [batch, length], with logits of the last position only."""
    import torch

    def run() -> None:
        with torch.inference_mode():
            model(input_ids=ids, use_cache=False, logits_to_keep=1)
        synchronize(ids.device)

    return Workload(run, ids.numel())


def decode(model: PreTrainedModel, ids: torch.Tensor, steps: int = DECODE_STEPS) -> Workload:
    """Return ``steps`` greedy steps of one token per sequence, after a prefill of ``ids`` [batch, length].

    The prefill is not timed.
    """
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

    return Workload(run, len(ids) * steps, setup)


def forwards(decoder: torch.nn.Module, batches: Sequence[torch.Tensor]) -> Workload:
    """Return forwards of the decoder without its head over ``batches``, each [batch, length]."""
    import torch

    from qsae_bench.models.taps import hidden_states

    def run() -> None:
        with torch.inference_mode():
            for batch in batches:
                hidden_states(decoder, batch)
        synchronize(batches[0].device)

    return Workload(run, sum(batch.numel() for batch in batches))


def sae_round_trip(sae: SAE[Any], residual: torch.Tensor) -> Workload:
    """Return one encoding and decoding of ``residual`` [batch, length, d_model]."""
    import torch

    from qsae_bench.models.sae_forward import through

    def run() -> None:
        with torch.inference_mode():
            through(sae, residual)
        synchronize(residual.device)

    return Workload(run, residual.shape[0] * residual.shape[1])
