"""Measure the loss with an SAE's reconstruction put into the model, which is an optional pass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from qsae_bench.measure.evaluation import OnProgress, no_progress
from qsae_bench.metrics import loss, sinks
from qsae_bench.metrics.base import at_least_float32
from qsae_bench.metrics.measurement import Measurement, Rows
from qsae_bench.models.sae_forward import through
from qsae_bench.models.taps import Head, Subject, decoder_layers, hidden_states, subtract_mean
from qsae_bench.progress import SILENT, ProgressOutput, TokenProgress

if TYPE_CHECKING:
    import torch
    from sae_lens import SAE

    from qsae_bench.measure.corpus.packing import Corpus


def with_splice(
    measurement: Measurement,
    reference: Measurement | None,
    subject: Subject,
    corpus: Corpus,
    saes: Mapping[int, SAE[Any]],
    device: str,
    means_of: Measurement | None = None,
    output: ProgressOutput = SILENT,
) -> Measurement:
    """Return the measurement with splice columns on every layer, from two more forwards a layer.

    One forward has the SAE's reconstruction at valid positions, one the cell's own mean vector.
    ``reference`` is the reference's measurement, already spliced; None if this is the reference.
    ``means_of``, where this is only a part of the corpus, is the measurement whose mean vectors are used.
    """
    means = (means_of or measurement).layers
    layers = {}
    for layer, sae in saes.items():
        rows = measurement.layers[layer]
        label = f"{measurement.model}-{measurement.quantization} splice, layer {layer}"
        progress = [
            TokenProgress(f"{label} {what}", corpus.spec.sequence_length, output)
            for what in ("SAE", "mean")
        ]
        own = {
            "spliced_q": _nll(subject, corpus, layer, sae_replacement(sae), device, progress[0]),
            "ablated_q": _nll(
                subject, corpus, layer, mean_replacement(means[layer], "q"), device, progress[1]
            ),
            "nll_q": measurement.rows.scalars["nll_q"],
        }
        if reference is None:
            other = {f"{key[:-1]}r": column for key, column in own.items()}
        else:
            theirs = reference.layers[layer].scalars
            other = {f"{key[:-1]}r": theirs[key] for key in own}
        tokens = {"tokens": measurement.rows.scalars["tokens"]}
        layers[layer] = replace(rows, scalars={**rows.scalars, **own, **other, **tokens})
    return replace(measurement, layers=layers)


def sae_replacement(sae: SAE[Any]) -> Any:
    """Return a function from resid_post to its reconstruction by the SAE."""
    return lambda x: through(sae, x)[1]


def mean_replacement(rows: Rows, side: str) -> Any:
    """Return a function from resid_post to the mean vector over valid positions of the whole corpus."""
    import torch

    total = rows.vectors[f"sum_{side}"] + rows.vectors[f"sum_sinks_{side}"]
    mean = total.sum(axis=0) / rows.scalars[sinks.WITH_SINKS].sum()
    return lambda x: torch.from_numpy(mean).to(x).expand_as(x)


def _nll(
    subject: Subject,
    corpus: Corpus,
    layer: int,
    replacement: Any,
    device: str,
    on_progress: OnProgress = no_progress,
) -> np.ndarray:
    """Return nll sums [sequences] of the corpus with one layer's output replaced at valid positions."""
    import torch

    ids, valid = torch.from_numpy(corpus.ids), torch.from_numpy(corpus.valid)
    head, decoder = Head.of(subject.model), subject.model.get_decoder()
    size = corpus.spec.batch_size
    here = torch.empty(0, dtype=torch.bool)

    def splice(_module: torch.nn.Module, _inputs: Any, output: Any) -> Any:
        hidden = output[0] if isinstance(output, tuple) else output
        x = at_least_float32(subtract_mean(hidden) if subject.centered else hidden)
        mask = here.to(hidden.device).unsqueeze(-1)
        replaced = torch.where(mask, replacement(x.to(device)).to(hidden), hidden)
        return (replaced, *output[1:]) if isinstance(output, tuple) else replaced

    found = []
    handle = decoder_layers(subject.model)[layer].register_forward_hook(splice)
    try:
        with torch.inference_mode():
            for start in range(0, len(ids), size):
                batch, here = ids[start : start + size], valid[start : start + size]
                hidden = hidden_states(decoder, batch.to(subject.input_device))
                final = hidden.to(device)
                columns = loss.columns(final, final, head, head, batch.to(device), here.to(device))
                found.append(columns["nll_q"])
                on_progress(min(start + size, len(ids)), len(ids))
            return torch.cat(found).cpu().numpy()
    finally:
        handle.remove()
