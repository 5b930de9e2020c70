"""Train JumpReLU SAEs for the tiny model with sae-lens's own trainer."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tools.tiny.sequences import SEQUENCE_LENGTH, token_sequences

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import numpy as np
    import torch
    from sae_lens import SAE, JumpReLUTrainingSAEConfig
    from sae_lens.saes.jumprelu_sae import JumpReLUTrainingSAE
    from transformers import PreTrainedModel

WIDTH = 2048
BATCH_SIZE = 512
LEARNING_RATE = 1e-3
TARGET_L0 = 16.0
"""L0 that the penalty pulls towards. The short run ends on the way there, near 45, which keeps rare
features alive."""
INITIAL_THRESHOLD = 1.1
"""Of scaled activations. Adam carries a threshold only so far in a short run, so it starts near where
it will end."""
POOL_TOKENS = 500_000
"""Distinct activations held in memory (0.4 GB a layer); longer training goes over them again."""
HELDOUT_SEQUENCES = 400
"""Sequences behind the reported numbers: 400 x 127 tokens."""


@dataclass(frozen=True)
class SAEQuality:
    """Hold what was measured on held-out text, `<bos>` left out, by docs/metrics.md's names."""

    layer: int
    sae_tokens: int
    """The `--sae-tokens` asked for; whole batches of it were trained on."""
    training_tokens: int
    heldout_tokens: int
    fvu: float
    l0: float
    dead_share: float
    mean_residual_norm: float
    max_residual_norm: float
    training_seconds: float


def residuals(
    model: PreTrainedModel, sequences: np.ndarray, layers: Sequence[int], batch_size: int = 64
) -> dict[int, torch.Tensor]:
    """Return the output of decoder layers (resid_post) at every position but `<bos>`.

    Args:
        sequences: token ids [count, length], `<bos>` first.

    Returns:
        For each layer, fp32 [count * (length - 1), hidden size], in the order of the text.
    """
    import torch

    rows = sequences.shape[0] * (sequences.shape[1] - 1)
    hidden = model.config.hidden_size
    # Filled in place: a list of batches to concatenate would need the memory twice.
    out = {layer: torch.empty(rows, hidden) for layer in layers}
    filled = 0

    def store(layer: int) -> Callable[..., None]:
        def hook(_module: object, _inputs: object, output: torch.Tensor | tuple[torch.Tensor, ...]) -> None:
            x = output[0] if isinstance(output, tuple) else output
            x = x[:, 1:].reshape(-1, hidden)
            out[layer][filled : filled + len(x)] = x

        return hook

    handles = [model.model.layers[layer].register_forward_hook(store(layer)) for layer in layers]
    try:
        with torch.inference_mode():
            for ids in torch.from_numpy(sequences).long().split(batch_size):
                # The decoder alone: nobody reads the logits.
                model.model(input_ids=ids, use_cache=False)
                filled += ids.shape[0] * (ids.shape[1] - 1)
    finally:
        for handle in handles:
            handle.remove()
    return out


def sae_config(layer: int, d_in: int, steps: int) -> JumpReLUTrainingSAEConfig:
    """Return Gemma Scope 2's way: a quadratic penalty holds L0 at a target whatever the layer's scale."""
    from sae_lens import JumpReLUTrainingSAEConfig
    from sae_lens.saes.sae import SAEMetadata

    return JumpReLUTrainingSAEConfig(
        d_in=d_in,
        d_sae=WIDTH,
        jumprelu_sparsity_loss_mode="quadratic",
        target_l0=TARGET_L0,
        l0_coefficient=2.0,
        l0_warm_up_steps=steps // 10,
        jumprelu_init_threshold=INITIAL_THRESHOLD,
        jumprelu_bandwidth=0.5,
        # Passed on to the encoder, the penalty drags rare features under for good: two in five end dead.
        jumprelu_ste_to_input=False,
        pre_act_loss_coefficient=1e-3,
        normalize_activations="none",
        metadata=SAEMetadata(
            model_name="tiny_gemma3",
            hook_name=f"blocks.{layer}.hook_resid_post",
            hook_layer=layer,
            prepend_bos=True,
            context_size=SEQUENCE_LENGTH,
        ),
    )


def _steps(tokens: int) -> int:
    return max(1, tokens // BATCH_SIZE)


def _batches(x: torch.Tensor, seed: int) -> Iterator[torch.Tensor]:
    """Yield endless shuffled batches of rows."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    while True:
        for rows in torch.randperm(len(x), generator=generator).split(BATCH_SIZE):
            if len(rows) == min(BATCH_SIZE, len(x)):
                yield x[rows]


def train_sae(x: torch.Tensor, layer: int, *, seed: int, tokens: int) -> JumpReLUTrainingSAE:
    """Train one SAE on activations `x` [rows, d_in]; the result takes and returns unscaled activations."""
    import torch
    from sae_lens.config import SAETrainerConfig
    from sae_lens.saes.jumprelu_sae import JumpReLUTrainingSAE
    from sae_lens.training.sae_trainer import SAETrainer

    torch.manual_seed(seed)
    d_in, steps = x.shape[1], _steps(tokens)
    # The trainer's own scaling would estimate the same factor, but would start b_dec at zero, and Adam
    # takes hundreds of steps to carry it to the mean of a residual stream.
    scale = d_in**0.5 / x.norm(dim=-1).mean().item()
    sae = JumpReLUTrainingSAE(sae_config(layer, d_in, steps))
    mean = x.mean(0)
    # A feature that starts along some token's own direction has that token to live on: next to none
    # end dead.
    rows = x[torch.randperm(len(x))[torch.arange(WIDTH) % len(x)]] - mean
    rows *= sae.cfg.decoder_init_norm / rows.norm(dim=-1, keepdim=True)
    with torch.no_grad():
        sae.b_dec.copy_(mean * scale)
        sae.W_dec.copy_(rows)
        sae.W_enc.copy_(rows.T)
    trainer = SAETrainer(
        cfg=SAETrainerConfig(
            total_training_samples=steps * BATCH_SIZE,
            train_batch_size_samples=BATCH_SIZE,
            lr=LEARNING_RATE,
            lr_end=LEARNING_RATE / 100,
            lr_warm_up_steps=min(100, steps // 10),
            lr_decay_steps=steps // 3,
            dead_feature_window=max(1, min(40, steps // 10)),
            feature_sampling_window=steps + 1,
        ),
        sae=sae,
        data_provider=(batch * scale for batch in _batches(x, seed)),
    )
    trainer.fit()
    sae.fold_activation_norm_scaling_factor(scale)
    # Unit decoder rows, the convention: a feature's activation is then its length in the residual stream.
    sae.fold_W_dec_norm()
    return sae.eval()


def measure_sae(sae: SAE, x: torch.Tensor) -> dict[str, float]:
    """Measure FVU (per-dimension mean), L0, dead share and norms over rows `x` [rows, d_in]."""
    import torch

    mean = x.double().mean(0)
    error = variance = active = 0.0
    fired = torch.zeros(sae.cfg.d_sae, dtype=torch.bool)
    with torch.inference_mode():
        for rows in x.split(4096):
            features = sae.encode(rows)
            error += (rows - sae.decode(features)).double().square().sum().item()
            variance += (rows.double() - mean).square().sum().item()
            active += (features > 0).sum().item()
            fired |= (features > 0).any(0)
    norms = x.norm(dim=-1)
    return {
        "fvu": error / variance,
        "l0": active / len(x),
        "dead_share": 1 - fired.double().mean().item(),
        "mean_residual_norm": norms.mean().item(),
        "max_residual_norm": norms.max().item(),
    }


def save_sae(sae: JumpReLUTrainingSAE, folder: Path) -> None:
    """Write the inference SAE in sae-lens's format to `folder`."""
    for file in sae.save_inference_model(folder):
        file.chmod(0o644)
    # sae-lens writes the keys in the order of a set, which changes from process to process.
    config = folder / "cfg.json"
    config.write_text(json.dumps(json.loads(config.read_text()), indent=2, sort_keys=True) + "\n")


def train_saes(
    model_folder: Path,
    layers: Sequence[int],
    *,
    seed: int,
    tokens: int,
    report: Callable[[str], None] = print,
) -> Iterator[tuple[int, Callable[[Path], None], SAEQuality]]:
    """Train an SAE for each layer on text of the split "sae".

    Yields:
        The layer, a function that saves its SAE to a folder, and what was measured on held-out text.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    body = SEQUENCE_LENGTH - 1
    pool = token_sequences(tokenizer, seed, "sae", -(-min(tokens, POOL_TOKENS) // body))
    heldout = token_sequences(tokenizer, seed, "sae-heldout", max(1, min(HELDOUT_SEQUENCES, tokens // 200)))
    started = time.perf_counter()
    x = residuals(model, pool, layers)
    x_heldout = residuals(model, heldout, layers)
    seconds = time.perf_counter() - started
    report(f"activations: {pool.shape[0] * body:,} tokens at layers {list(layers)}, {seconds:.0f} s")
    for layer in layers:
        started = time.perf_counter()
        sae = train_sae(x.pop(layer), layer, seed=seed * 1000 + layer, tokens=tokens)
        seconds = time.perf_counter() - started
        measured = measure_sae(sae, x_heldout[layer])
        quality = SAEQuality(
            layer=layer,
            sae_tokens=tokens,
            training_tokens=_steps(tokens) * BATCH_SIZE,
            heldout_tokens=len(x_heldout[layer]),
            training_seconds=seconds,
            **measured,
        )
        found = f"FVU {quality.fvu:.3f}, L0 {quality.l0:.1f}, dead {quality.dead_share:.1%}"
        report(f"SAE of layer {layer}: {found}, {seconds:.0f} s")
        sae.cfg.metadata.l0 = quality.l0
        sae.cfg.metadata.num_dead_features = round(quality.dead_share * WIDTH)
        yield layer, partial(save_sae, sae), quality
