"""Train the tiny Gemma 3 on the grammar."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tools.tiny.sequences import SEQUENCE_LENGTH, cross_entropy, token_sequences, unigram_entropy

if TYPE_CHECKING:
    from collections.abc import Callable

    from transformers import Gemma3ForCausalLM, Gemma3TextConfig, PreTrainedTokenizerFast

BATCH_SIZE = 32
PEAK_LEARNING_RATE = 2e-3
WARM_UP_STEPS = 200
WEIGHT_DECAY = 0.01
GRADIENT_NORM = 1.0
EVALUATION_SEQUENCES = 512
"""Sequences behind each reported cross-entropy: 512 x 127 predicted tokens."""


@dataclass(frozen=True)
class ModelQuality:
    """Hold what was measured on the stored weights: rounded to bfloat16, evaluated in fp32."""

    seed: int
    steps: int
    training_tokens: int
    parameters: int
    train_cross_entropy: float
    heldout_cross_entropy: float
    unigram_entropy: float
    training_seconds: float


def architecture(tokenizer: PreTrainedTokenizerFast) -> Gemma3TextConfig:
    """Return the smallest Gemma 3 with grouped queries, both kinds of attention and tied embeddings."""
    from transformers import Gemma3TextConfig

    return Gemma3TextConfig(
        vocab_size=len(tokenizer),
        hidden_size=192,
        intermediate_size=768,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=48,
        query_pre_attn_scalar=48,
        # Half a sequence, so that the window cuts something off in every sequence.
        sliding_window=64,
        layer_types=["sliding_attention", "sliding_attention", "full_attention"] * 2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
    )


def learning_rate(step: int, steps: int) -> float:
    """Return the rate of a step: linear warm-up, then a cosine down to zero."""
    warm_up = min(WARM_UP_STEPS, max(1, steps // 10))
    if step < warm_up:
        return PEAK_LEARNING_RATE * (step + 1) / warm_up
    return PEAK_LEARNING_RATE * 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))


def train_model(
    tokenizer: PreTrainedTokenizerFast, *, seed: int, steps: int, report: Callable[[str], None] = print
) -> tuple[Gemma3ForCausalLM, ModelQuality]:
    """Train for `steps` batches, each sequence seen once.

    Returns:
        The model in bfloat16, ready to be saved, and what its rounded weights measure in fp32.
    """
    import torch
    from torch.nn.functional import cross_entropy as nll
    from transformers import Gemma3ForCausalLM

    torch.manual_seed(seed)
    # A trial run of a few steps need not wait for a precise number.
    evaluated = min(EVALUATION_SEQUENCES, 4 * steps)
    pool = token_sequences(tokenizer, seed, "train", steps * BATCH_SIZE)
    heldout = token_sequences(tokenizer, seed, "heldout", evaluated)
    entropy = unigram_entropy(pool)
    model = Gemma3ForCausalLM(architecture(tokenizer))
    parameters = sum(p.numel() for p in model.parameters())
    sizes = f"{parameters:,} parameters, {pool[:, 1:].size:,} training tokens"
    report(f"model: {sizes}, unigram entropy {entropy:.3f}")

    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": vectors, "weight_decay": 0.0}],
        betas=(0.9, 0.95),
        fused=True,
    )
    # Neighbouring sequences share a document; shuffled, a batch holds 32 different ones.
    order = torch.randperm(len(pool), generator=torch.Generator().manual_seed(seed))
    ids = torch.from_numpy(pool)
    started = time.perf_counter()
    model.train()
    for step in range(steps):
        batch = ids[order[step * BATCH_SIZE : (step + 1) * BATCH_SIZE]].long()
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps)
        # Master weights stay float32; products in bfloat16 take a fraction of the time on a CPU that
        # has them.
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(input_ids=batch, use_cache=False).logits[:, :-1]
        loss = nll(logits.float().reshape(-1, logits.shape[-1]), batch[:, 1:].reshape(-1))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), GRADIENT_NORM)
        optimizer.step()
        if step % 50 == 49 or step + 1 == steps:
            seconds = time.perf_counter() - started
            speed = (step + 1) * BATCH_SIZE * SEQUENCE_LENGTH / seconds
            left = seconds / (step + 1) * (steps - step - 1)
            report(
                f"step {step + 1}/{steps}: loss {loss.item():.3f}, {speed:,.0f} tokens/s, {left:.0f} s left"
            )
    training_seconds = time.perf_counter() - started

    # What is measured is what is stored: the rounding to bfloat16 is part of the model.
    model.eval().bfloat16().float()
    quality = ModelQuality(
        seed=seed,
        steps=steps,
        training_tokens=pool[:, 1:].size,
        parameters=parameters,
        train_cross_entropy=cross_entropy(model, pool[:evaluated]),
        heldout_cross_entropy=cross_entropy(model, heldout),
        unigram_entropy=entropy,
        training_seconds=training_seconds,
    )
    found = (
        f"train {quality.train_cross_entropy:.4f}, held-out {quality.heldout_cross_entropy:.4f} nats/token"
    )
    report(f"cross-entropy: {found}")
    return model.bfloat16(), quality


def save_model(model: Gemma3ForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write weights, config and tokenizer to a new folder `folder`."""
    # Greedy and short by default: the published Gemmas' sampling defaults would make examples
    # irreproducible.
    model.generation_config.do_sample = False
    model.save_pretrained(folder, safe_serialization=True)
    tokenizer.save_pretrained(folder)
    for file in folder.iterdir():
        # safetensors makes its files private to the user who wrote them; these are shipped.
        file.chmod(0o644)
