"""The reference store: what a reference pass leaves on disk for the quantized ones.

Stored are hidden states, not logits: the residual at each tap and the head's input, d_model numbers
a position instead of the vocabulary's. The head's weights lie beside them, once a model, so that any
later pass can form the reference's exact logits. An entry is a folder::

    <key>/manifest.json            what it was made from, checksums, median norms
    <key>/rows-00000.safetensors   head_input and layer{L}, [sequences, length, d_model]
    <key>/head.safetensors         weight (and bias)
    <key>/weights.safetensors      the decoder's weights in short: rows.* checksums, probe.* responses

It is written beside its place and renamed into it, checked on opening, and read memory-mapped.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import time
import weakref
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qsae_bench.disk import os_errors
from qsae_bench.errors import QsaeError
from qsae_bench.taps import Activations, Head

if TYPE_CHECKING:
    import torch

REFERENCE_FORMAT = 4
"""Bump when the stored values or their layout change: part of every key. 2: the manifest has a digest.
3: the weights in short. 4: their checksums are modulo 2^32."""

SHARD_BYTES = 256 << 20
ABANDONED_SECONDS = 86_400.0
MANIFEST = "manifest.json"
HEAD_FILE = "head.safetensors"
WEIGHTS_FILE = "weights.safetensors"


class Damaged(QsaeError):
    """An entry exists and can't be trusted; the message names the file."""


def key_of(parts: Mapping[str, Any]) -> str:
    """Hash of everything that changes the stored values."""
    text = json.dumps({"format": REFERENCE_FORMAT, **parts}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


@dataclass(frozen=True)
class Shard:
    file: str
    start: int
    stop: int
    sha256: str


class StoredReference:
    """An open entry: activations by sequence range, median norms, and the head."""

    def __init__(self, folder: Path, device: str) -> None:
        manifest = _checked_manifest(folder)
        self.folder = folder
        self.device = device
        self.layers: tuple[int, ...] = tuple(manifest["layers"])
        self.median_norms: dict[int, float] = {
            int(layer): norm for layer, norm in manifest["median_norms"].items()
        }
        self.sequences: int = manifest["sequences"]
        self.head_digest: str = manifest["head_digest"]
        self.softcap: float | None = manifest["softcap"]
        self._shards = [Shard(**shard) for shard in manifest["shards"]]

    def read(self, start: int, stop: int) -> Activations:
        """Sequences ``start`` to ``stop``, on the device.

        The file is mapped for this read alone: pages of a mapping that stays open count as this
        process's memory, and would grow with the corpus.
        """
        import torch
        from safetensors import safe_open

        names = ["head_input", *(f"layer{layer}" for layer in self.layers)]
        parts: dict[str, list[torch.Tensor]] = {name: [] for name in names}
        for shard in self._shards:
            rows = slice(max(start - shard.start, 0), min(stop, shard.stop) - shard.start)
            if rows.start < rows.stop:
                with safe_open(self.folder / shard.file, framework="pt") as tensors:
                    for name in names:
                        parts[name].append(tensors.get_slice(name)[rows])
        read = {
            name: _to_device(pieces[0] if len(pieces) == 1 else torch.cat(pieces), self.device)
            for name, pieces in parts.items()
        }
        return Activations(read["head_input"], {layer: read[f"layer{layer}"] for layer in self.layers})

    def head(self) -> Head:
        """The reference's own head, read from disk."""
        from safetensors import safe_open

        with safe_open(self.folder / HEAD_FILE, framework="pt", device=self.device) as tensors:
            names = tensors.keys()
            bias = tensors.get_tensor("bias") if "bias" in names else None
            return Head.from_weights(tensors.get_tensor("weight"), bias, self.softcap)

    def weights(self) -> dict[str, torch.Tensor]:
        """The decoder's weights in short, see :func:`qsae_bench.inspection.in_short`."""
        from safetensors.torch import load_file

        return load_file(self.folder / WEIGHTS_FILE)


class ReferenceStore:
    """A folder of entries, bounded in bytes: the least recently used go first."""

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self.folder = folder
        self.limit_bytes = limit_bytes

    def open(self, key: str, device: str) -> StoredReference | None:
        """The entry, or None if there is none.

        Raises:
            Damaged: there is one, and a checksum, a size or its manifest is wrong.
        """
        folder = self.folder / key
        if not folder.is_dir():
            return None
        stored = StoredReference(folder, device)
        os.utime(folder)  # last use, for eviction
        return stored

    def discard(self, key: str) -> None:
        """Remove an entry."""
        shutil.rmtree(self.folder / key, ignore_errors=True)

    def write(
        self,
        key: str,
        batches: Iterable[Activations],
        valid: torch.Tensor,
        head: Head,
        described: Mapping[str, Any],
        weights: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        """Write one entry from consecutive batches and put it in place in one rename.

        ``weights`` is what :func:`qsae_bench.inspection.in_short` made of the model.

        Raises:
            QsaeError: the disk is full or the folder can't be written.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            part = Path(tempfile.mkdtemp(prefix=f".{key}-", dir=self.folder))
        except OSError as error:
            raise _cannot_write(self.folder, error) from None
        try:
            _write_entry(part, batches, valid, head, described, weights or {})
            self.discard(key)
            os.replace(part, self.folder / key)
        except OSError as error:
            if not (self.folder / key / MANIFEST).is_file():  # else another process was first
                raise _cannot_write(self.folder, error) from None
        finally:
            shutil.rmtree(part, ignore_errors=True)
        self._evict(keep=key)

    def _evict(self, keep: str) -> None:
        found = []
        for entry in self.folder.iterdir():
            # another process may replace or evict an entry while we look at it
            with contextlib.suppress(OSError):
                if entry.is_dir() and not entry.name.startswith("."):
                    size = sum(file.stat().st_size for file in entry.iterdir())
                    found.append((entry.name == keep, entry.stat().st_mtime, entry.name, size))
                elif entry.name.startswith(".") and time.time() - entry.stat().st_mtime > ABANDONED_SECONDS:
                    shutil.rmtree(entry, ignore_errors=True)  # of a run that was killed
        total = 0
        for _, _, name, size in sorted(found, reverse=True):
            total += size
            if total > self.limit_bytes and name != keep:
                self.discard(name)


DIGESTS: weakref.WeakKeyDictionary[Any, tuple[int, str]] = weakref.WeakKeyDictionary()
"""head module -> where its weight lies, and its digest: Gemma 3's two GB take seconds to hash"""


def head_digest(head: Head) -> str:
    """sha256 of the head's weights: equal digests mean the very same head. Taken once a loaded model."""
    place = head.module.weight.data_ptr()  # type: ignore[operator]
    known = DIGESTS.get(head.module)
    if known is None or known[0] != place:
        known = DIGESTS[head.module] = (place, _digest_of(head))
    return known[1]


def _digest_of(head: Head) -> str:
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(head.module.state_dict().items()):
        plain = tensor.detach().contiguous().cpu()
        digest.update(f"{name}:{plain.dtype}:{tuple(plain.shape)}".encode())
        digest.update(plain.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _write_entry(
    folder: Path,
    batches: Iterable[Activations],
    valid: torch.Tensor,
    head: Head,
    described: Mapping[str, Any],
    weights: Mapping[str, torch.Tensor],
) -> None:
    import torch
    from safetensors.torch import save_file

    shards: list[Shard] = []
    pending: list[dict[str, torch.Tensor]] = []
    norms: dict[int, list[torch.Tensor]] = {}
    start = stop = 0

    def flush() -> None:
        nonlocal start, pending
        if pending:
            file = f"rows-{len(shards):05d}.safetensors"
            whole = {name: torch.cat([p[name] for p in pending]) for name in pending[0]}
            with os_errors():
                save_file(whole, folder / file)
            shards.append(Shard(file, start, stop, _sha256(folder / file)))
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
    try:
        os.link(_same_head(folder.parent, digest) or folder / "none", folder / HEAD_FILE)
    except OSError:  # there is none yet, or the file system has no links
        tensors = {k: t.detach().cpu().contiguous() for k, t in head.module.state_dict().items()}
        with os_errors():
            save_file(tensors, folder / HEAD_FILE)
    with os_errors():
        save_file(dict(weights), folder / WEIGHTS_FILE)
    medians = {str(layer): torch.cat(n)[valid[:stop]].median().item() for layer, n in norms.items()}
    manifest = {
        "format": REFERENCE_FORMAT,
        "made_from": dict(described),
        "sequences": stop,
        "layers": sorted(norms),
        "median_norms": medians,
        "softcap": head.softcap,
        "head_digest": digest,
        "head_sha256": _sha256(folder / HEAD_FILE),
        "weights_sha256": _sha256(folder / WEIGHTS_FILE),
        "shards": [shard.__dict__ for shard in shards],
    }
    manifest["sha256"] = _manifest_digest(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")


def _manifest_digest(manifest: Mapping[str, Any]) -> str:
    """Of everything in it but its own digest."""
    rest = {key: value for key, value in manifest.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _same_head(store: Path, digest: str) -> Path | None:
    """The intact file of an entry with this very head, to be linked: a head is stored once a model."""
    for path in store.glob(f"*/{MANIFEST}"):
        with contextlib.suppress(OSError, ValueError, KeyError):
            manifest = json.loads(path.read_text(encoding="utf-8"))
            head = path.with_name(HEAD_FILE)
            if manifest["head_digest"] == digest and _sha256(head) == manifest["head_sha256"]:
                return head
    return None


def _checked_manifest(folder: Path) -> dict[str, Any]:
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if manifest["sha256"] != _manifest_digest(manifest):
            raise Damaged(f"reference store: {folder / MANIFEST} is damaged (checksum differs)")
        files = [(s["file"], s["sha256"]) for s in manifest["shards"]]
        files.append((HEAD_FILE, manifest["head_sha256"]))
        files.append((WEIGHTS_FILE, manifest["weights_sha256"]))
        for file, expected in files:
            if _sha256(folder / file) != expected:
                raise Damaged(f"reference store: {folder / file} is damaged (checksum differs)")
    except OSError as error:
        raise Damaged(f"reference store: {error.filename}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError):
        raise Damaged(f"reference store: {folder / MANIFEST} is damaged (not a manifest)") from None
    return manifest


def _to_device(tensor: torch.Tensor, device: str) -> torch.Tensor:
    """Without waiting: a copy from memory that is not pinned would stall a GPU's queue."""
    return tensor if device == "cpu" else tensor.pin_memory().to(device, non_blocking=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _cannot_write(folder: Path, error: OSError) -> QsaeError:
    return QsaeError(
        f"reference store {folder}: can't be written: {error.strerror or error}; "
        "free space or name another place with --qsae-dir"
    )
