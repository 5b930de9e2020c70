"""The callables that the speed benchmarks time. Each returns only when the device is done."""

from __future__ import annotations

from collections.abc import Callable
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


def synchronize(device: torch.device | str) -> None:
    """Wait for a GPU; a CPU has nothing pending."""
    import torch

    if str(device) != "cpu":
        torch.cuda.synchronize()


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


def sae_round_trip(sae: SAE[Any], residual: torch.Tensor) -> Timed:
    """Encode and decode ``residual`` [batch, length, d_model]."""
    import torch

    def run() -> None:
        with torch.inference_mode():
            sae.decode(sae.encode(residual))
        synchronize(residual.device)

    return Timed(run, residual.shape[0] * residual.shape[1])
