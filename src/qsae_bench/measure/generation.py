"""Measure how a model writes: whether it does one token at a time what it does with a whole text at once,
and how long it goes on as the reference does.

Libraries have kernels of their own for a product with a single row. A measurement's pass gives them whole
batches, so only these few prompts show what such a kernel returns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from qsae_bench.metrics.generation import GREEDY_TOKENS
from qsae_bench.metrics.loss import compare_logits
from qsae_bench.models.taps import Head, hidden_states

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from qsae_bench.measure.corpus.packing import Corpus
    from qsae_bench.models.taps import Subject

PROMPTS = 8
"""first sequences of the corpus whose first halves are the prompts: a longer corpus has the same ones"""
DECODE_TOKENS = 8
"""tokens of the text that follow each prompt one at a time. A kernel that is wrong is so at once; each is a
forward pass that takes as long as one of many tokens"""


def reference_generation(subject: Subject, corpus: Corpus) -> dict[str, Any]:
    """Return what is stored of a reference: its greedy continuations, and its own KL of decoding. JSON."""
    ids = _sequences(subject, corpus)
    length = ids.shape[1] // 2
    found = continuations(subject.model, ids[:, :length], min(GREEDY_TOKENS, length))
    return {
        "continuations": found.tolist(),
        "decode_kl_divergence": decode_kl_divergence(subject.model, ids),
    }


def reference_values(stored: Mapping[str, Any]) -> dict[str, float]:
    """Return the reference's own metrics from what was stored of it; it agrees with itself throughout."""
    return {
        "decode_kl_divergence": stored["decode_kl_divergence"],
        "greedy_agreement_tokens": float(len(stored["continuations"][0])),
    }


def generation_values(
    subject: Subject, corpus: Corpus, reference: Sequence[Sequence[int]] | None
) -> dict[str, float]:
    """Return the metrics of a quantized cell.

    Args:
        subject: the cell's model.
        corpus: its sequences, those of the first look.
        reference: the reference's continuations; None leaves the agreement with them out.
    """
    import torch

    ids = _sequences(subject, corpus)
    values = {"decode_kl_divergence": decode_kl_divergence(subject.model, ids)}
    if reference is not None:
        prompts, theirs = ids[:, : ids.shape[1] // 2], torch.tensor(reference, device=ids.device)
        agreeing = greedy_agreement(subject.model, prompts, theirs)
        values["greedy_agreement_tokens"] = float(agreeing.double().quantile(0.5).item())
    return values


def _sequences(subject: Subject, corpus: Corpus) -> torch.Tensor:
    import torch

    return torch.from_numpy(corpus.ids[:PROMPTS]).to(subject.input_device)


def decode_kl_divergence(model: PreTrainedModel, ids: torch.Tensor) -> float:
    """Return the mean KL(prefill ‖ decode) of one model.

    Positions are the last of a prompt, the first half of a sequence [sequences, length], and those after
    it; each goes through the model alone, with what came before in the cache.
    """
    import torch

    head, start = Head.of(model), ids.shape[1] // 2 - 1
    stop = min(start + DECODE_TOKENS, ids.shape[1] - 1)
    found = []
    with torch.inference_mode():
        for one in ids.split(1):
            at_once = hidden_states(model.get_decoder(), one)[0, start:stop]
            by_one = _hidden_by_one(model, one, start, stop)
            # the head too has a kernel for one row
            decoded = torch.cat([head.logits(row) for row in by_one.split(1)])
            compared = compare_logits(head.logits(at_once), decoded, one[0, start + 1 : stop + 1])
            found.append(compared["kl"].double().mean())
        return float(torch.stack(found).mean().item())


def _hidden_by_one(model: PreTrainedModel, ids: torch.Tensor, start: int, stop: int) -> torch.Tensor:
    """Return the head's inputs [stop - start, d_model] of these positions of ``ids`` [1, length]."""
    import torch

    decoder = model.get_decoder()
    cache = decoder(input_ids=ids[:, :start], use_cache=True).past_key_values
    rows = []
    for position in range(start, stop):
        step = decoder(input_ids=ids[:, position : position + 1], past_key_values=cache, use_cache=True)
        cache = step.past_key_values
        rows.append(step.last_hidden_state[0])
    return torch.cat(rows)


def continuations(model: PreTrainedModel, prompts: torch.Tensor, tokens: int) -> torch.Tensor:
    """Continue ``prompts`` [prompts, length] greedily, over any end of text; return [prompts, tokens]."""
    import torch

    with torch.inference_mode():
        step = model(input_ids=prompts, use_cache=True, logits_to_keep=1)
        found = [step.logits[:, -1:].argmax(-1)]
        for _ in range(tokens - 1):
            step = model(input_ids=found[-1], past_key_values=step.past_key_values, use_cache=True)
            found.append(step.logits[:, -1:].argmax(-1))
        return torch.cat(found, dim=1)


def greedy_agreement(model: PreTrainedModel, prompts: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
    """Return how many tokens of each of ``theirs`` [prompts, tokens] the model would write too, [prompts].

    One pass over a prompt and its continuation tells: as long as both agree, both have read the same.
    """
    import torch

    head, length = Head.of(model), prompts.shape[1]
    found = []
    with torch.inference_mode():
        for prompt, continuation in zip(prompts, theirs, strict=True):
            text = torch.cat([prompt, continuation[:-1]])[None]
            hidden = hidden_states(model.get_decoder(), text)[0, length - 1 :]
            same = head.logits(hidden).argmax(1) == continuation.to(hidden.device)
            found.append(same.int().cumprod(0).sum())
        return torch.stack(found)
