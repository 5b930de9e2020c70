"""Residual-stream activations of the tiny model, as its SAEs are trained on and measured with."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np
    import torch
    from transformers import PreTrainedModel


def residuals(
    model: PreTrainedModel, sequences: np.ndarray, layers: Sequence[int], batch_size: int = 64
) -> dict[int, torch.Tensor]:
    """The output of decoder layers (resid_post) at every position but `<bos>`.

    Parameters
    ----------
    sequences
        Token ids [count, length], `<bos>` first.

    Returns
    -------
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
