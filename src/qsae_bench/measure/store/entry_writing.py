"""Write an entry's files from a reference pass, one after the other, whichever store they go to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qsae_bench.files import os_errors, sha256_of
from qsae_bench.measure.store.entry import (
    HEAD_FILE,
    REFERENCE_FORMAT,
    WEIGHTS_FILE,
    StoredShard,
    head_digest,
)
from qsae_bench.metrics.sinks import find_sinks
from qsae_bench.models.taps import Activations, Head

if TYPE_CHECKING:
    import torch

SHARD_BYTES = 256 << 20
"""size from which a file of rows is closed and the next one begins"""


@dataclass(frozen=True)
class ReferencePass:
    """Hold what one pass of a reference gives to be stored."""

    batches: Iterable[Activations]
    """consecutive ones; the pass runs while they are taken"""
    valid: torch.Tensor
    """bool [sequences, length], of the whole corpus"""
    head: Head
    made_from: Mapping[str, Any]
    """what the entry's key was made from"""
    weights: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """what :func:`qsae_bench.models.weights.inspection.weight_summary` returned for the model"""
    generation: Mapping[str, Any] | None = None
    """what :func:`qsae_bench.measure.generation.reference_generation` returned; None for the sequences of a
    later look"""


def write_entry(
    folder: Path,
    given: ReferencePass,
    link_head: Callable[[str, Path], bool] = lambda digest, path: False,
    on_file: Callable[[Path, str], None] = lambda path, sha256: None,
) -> dict[str, Any]:
    """Write all files of one entry but its manifest into ``folder``.

    ``link_head`` puts a head with this digest at the path and returns True, if the store has one already:
    Gemma 3's are 2 GB. ``on_file`` is called with each finished file and its checksum, and may take the
    file away. Returns the manifest's values, to be sealed.
    """
    import torch
    from safetensors.torch import save_file

    shards: list[StoredShard] = []
    pending: list[dict[str, torch.Tensor]] = []
    norms: dict[int, list[torch.Tensor]] = {}
    start = stop = 0

    def save(file: str, tensors: dict[str, torch.Tensor]) -> None:
        with os_errors():
            save_file(tensors, folder / file)

    def finish(file: str) -> str:
        sha256 = sha256_of(folder / file)
        on_file(folder / file, sha256)
        return sha256

    def flush() -> None:
        nonlocal start, pending
        if pending:
            file = f"rows-{len(shards):05d}.safetensors"
            save(file, {name: torch.cat([p[name] for p in pending]) for name in pending[0]})
            shards.append(StoredShard(file, start, stop, finish(file)))
            start, pending = stop, []

    for batch in given.batches:
        tensors = {"head_input": batch.head_input} | {f"layer{k}": v for k, v in batch.taps.items()}
        # a copy: a hook's output may be a buffer that the next batch overwrites
        pending.append({name: t.detach().to("cpu", copy=True) for name, t in tensors.items()})
        for layer, tap in batch.taps.items():
            norms.setdefault(layer, []).append(torch.linalg.vector_norm(tap.float(), dim=-1).cpu())
        stop += len(batch.head_input)
        if sum(t.nbytes for p in pending for t in p.values()) >= SHARD_BYTES:
            flush()
    flush()
    digest = head_digest(given.head)
    if not link_head(digest, folder / HEAD_FILE):
        state = given.head.module.state_dict()
        save(HEAD_FILE, {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()})
    save(WEIGHTS_FILE, dict(given.weights))
    valid_norms = {layer: torch.cat(norm)[given.valid[:stop]] for layer, norm in norms.items()}
    rule = find_sinks({layer: norm.numpy() for layer, norm in valid_norms.items()})
    return {
        "format": REFERENCE_FORMAT,
        "made_from": dict(given.made_from),
        "generation": given.generation,
        "sequences": stop,
        "layers": sorted(norms),
        # read by earlier versions, which share the keys of entries
        "median_norms": {str(layer): norm.median().item() for layer, norm in valid_norms.items()},
        "sinks": asdict(rule) if rule is not None else None,
        "softcap": given.head.softcap,
        "head_digest": digest,
        "head_sha256": finish(HEAD_FILE),
        "weights_sha256": finish(WEIGHTS_FILE),
        "shards": [shard.__dict__ for shard in shards],
    }
