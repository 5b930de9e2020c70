"""Writing an entry's files from a reference pass, one after the other, whatever store they go to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
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
from qsae_bench.models.taps import Activations, Head

if TYPE_CHECKING:
    import torch

SHARD_BYTES = 256 << 20


def write_entry(
    folder: Path,
    batches: Iterable[Activations],
    valid: torch.Tensor,
    head: Head,
    described: Mapping[str, Any],
    weights: Mapping[str, torch.Tensor],
    link_head: Callable[[str, Path], bool] = lambda digest, path: False,
    written: Callable[[Path, str], None] = lambda path, sha256: None,
) -> dict[str, Any]:
    """Write all but the manifest of one entry into ``folder``, from consecutive batches.

    Args:
        weights: what :func:`qsae_bench.models.weights.inspection.in_short` made of the model.
        link_head: puts a head of this digest there if it has one already: Gemma 3's are 2 GB.
        written: hears of each file once it is whole, with its checksum, and may take it away.

    Returns:
        The manifest's values, to be sealed.

    Raises:
        OSError: the disk is full or the folder can't be written.
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

    def checksum_of(file: str) -> str:
        sha256 = sha256_of(folder / file)
        written(folder / file, sha256)
        return sha256

    def flush() -> None:
        nonlocal start, pending
        if pending:
            file = f"rows-{len(shards):05d}.safetensors"
            save(file, {name: torch.cat([p[name] for p in pending]) for name in pending[0]})
            shards.append(StoredShard(file, start, stop, checksum_of(file)))
            start, pending = stop, []

    for batch in batches:
        tensors = {"head_input": batch.head_input} | {f"layer{k}": v for k, v in batch.taps.items()}
        # clone: a hook's output may be a buffer that the next batch overwrites
        pending.append({name: t.detach().to("cpu", copy=True) for name, t in tensors.items()})
        for layer, tap in batch.taps.items():
            norms.setdefault(layer, []).append(torch.linalg.vector_norm(tap.float(), dim=-1).cpu())
        stop += len(batch.head_input)
        if sum(t.nbytes for p in pending for t in p.values()) >= SHARD_BYTES:
            flush()
    flush()
    digest = head_digest(head)
    if not link_head(digest, folder / HEAD_FILE):
        state = head.module.state_dict()
        save(HEAD_FILE, {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()})
    save(WEIGHTS_FILE, dict(weights))
    medians = {str(layer): torch.cat(n)[valid[:stop]].median().item() for layer, n in norms.items()}
    return {
        "format": REFERENCE_FORMAT,
        "made_from": dict(described),
        "sequences": stop,
        "layers": sorted(norms),
        "median_norms": medians,
        "softcap": head.softcap,
        "head_digest": digest,
        "head_sha256": checksum_of(HEAD_FILE),
        "weights_sha256": checksum_of(WEIGHTS_FILE),
        "shards": [shard.__dict__ for shard in shards],
    }
