"""Define a stored reference, which is what a reference pass leaves for the quantized ones, and read it.

It has hidden states, not logits: the residual at each tap and the head's input, d_model numbers a position
instead of the vocabulary's. The head's weights lie beside them, once a model, so that any later pass can
form the reference's exact logits. An entry is a few files::

    manifest.json            what it was made from, checksums, which positions are sinks
    rows-00000.safetensors   head_input and layer{L}, [sequences, length, d_model]
    head.safetensors         weight (and bias)
    weights.safetensors      the decoder's weights in short: rows.* checksums, probe.* responses
"""

from __future__ import annotations

import hashlib
import json
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from qsae_bench.errors import QsaeError
from qsae_bench.files import SHA256
from qsae_bench.metrics.sinks import SinkRule, find_sinks
from qsae_bench.models.taps import Activations, Head

if TYPE_CHECKING:
    import numpy as np
    import torch

REFERENCE_FORMAT = 4
"""Raise it when the stored values or their layout change; it is part of every key.
2: the manifest has a digest. 3: the weights in short. 4: their checksums are modulo 2^32."""

MANIFEST = "manifest.json"
HEAD_FILE = "head.safetensors"
WEIGHTS_FILE = "weights.safetensors"


class DamagedEntry(QsaeError):
    """Report that an entry exists and can't be trusted; the message names the file."""


def entry_key(made_from: Mapping[str, Any]) -> str:
    """Return the key of an entry: a hash of everything that changes the stored values."""
    text = json.dumps({"format": REFERENCE_FORMAT, **made_from}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


@dataclass(frozen=True)
class StoredShard:
    """Describe one file of rows and the sequences, ``start`` to ``stop``, that are in it."""

    file: str
    start: int
    stop: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """Hold what an entry records about itself; its own digest is in it, so that a change is noticed."""

    values: Mapping[str, Any]

    @classmethod
    def sealed(cls, values: Mapping[str, Any]) -> Self:
        """Return a manifest of these values with their digest."""
        return cls({**values, "sha256": _digest_of_values(values)})

    @classmethod
    def read(cls, content: bytes, where: str) -> Self:
        """Read the content of the manifest's file at ``where``; raises DamagedEntry if it was changed."""
        try:
            manifest = cls(json.loads(content))
            if manifest.digest != _digest_of_values(manifest.values):
                raise DamagedEntry(f"reference store: {where} is damaged (checksum differs)")
            # a checksum becomes the name of a file, so it must be one
            sound = all(SHA256.fullmatch(sha256) for sha256 in manifest.checksums().values())
        except (ValueError, KeyError, TypeError, AttributeError):
            sound = False
        if not sound:
            raise DamagedEntry(f"reference store: {where} is damaged (not a manifest)")
        return manifest

    @property
    def digest(self) -> str:
        """the digest that is recorded in it"""
        return self.values["sha256"]

    @property
    def shards(self) -> list[StoredShard]:
        """the files of rows, in order"""
        return [StoredShard(**shard) for shard in self.values["shards"]]

    def checksums(self) -> dict[str, str]:
        """Return file -> sha256 of all files but the manifest."""
        rows = {shard.file: shard.sha256 for shard in self.shards}
        return rows | {
            HEAD_FILE: self.values["head_sha256"],
            WEIGHTS_FILE: self.values["weights_sha256"],
        }

    def content(self) -> bytes:
        """Return the content of its file."""
        return json.dumps(dict(self.values), indent=1).encode()


def _digest_of_values(values: Mapping[str, Any]) -> str:
    """Return the digest of all values but the digest itself."""
    rest = {key: value for key, value in values.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


class StoredReference:
    """Read an open entry: activations by sequence range, the rule for sinks, and the head.

    Reading raises:
        DamagedEntry: a file that is read for the first time is not what the manifest says.
        QsaeError: a file can't be fetched.
    """

    def __init__(self, manifest: Manifest, device: str, path_of: Callable[[str], Path]) -> None:
        """Open an entry, to be read onto ``device``.

        ``path_of`` returns the local path of one of its files; it is called when the file is needed.
        """
        values = manifest.values
        self.manifest = manifest
        self.device = device
        self.layers: tuple[int, ...] = tuple(values["layers"])
        self.knows_sinks = "sinks" in values
        """False for an entry of an earlier version, until its residuals were looked through"""
        self.sinks: SinkRule | None = SinkRule(**rule) if (rule := values.get("sinks")) else None
        self.sequences: int = values["sequences"]
        self.head_digest: str = values["head_digest"]
        self.softcap: float | None = values["softcap"]
        self.generation: Mapping[str, Any] | None = values.get("generation")
        """None for the sequences of a later look, and in entries of earlier versions"""
        self._shards = manifest.shards
        self._path_of = path_of

    def fetch(self, start: int, stop: int) -> None:
        """Fetch and check the files of these sequences and of the head, so that reading doesn't wait."""
        for shard in self._shards:
            if max(start, shard.start) < min(stop, shard.stop):
                self._path_of(shard.file)
        if start < stop:
            self._path_of(HEAD_FILE)

    def read(self, start: int, stop: int) -> Activations:
        """Read sequences ``start`` to ``stop`` onto the device: tensors [sequences, length, d_model].

        The file is mapped for this read alone: pages of a mapping that stays open count as this process's
        memory, and would grow with the corpus.
        """
        import torch

        names = ["head_input", *(f"layer{layer}" for layer in self.layers)]
        parts: dict[str, list[torch.Tensor]] = {name: [] for name in names}
        for shard in self._shards:
            rows = slice(max(start - shard.start, 0), min(stop, shard.stop) - shard.start)
            if rows.start < rows.stop:
                with _open_tensors(self._path_of(shard.file)) as tensors:
                    for name in names:
                        parts[name].append(tensors.get_slice(name)[rows])
        read = {
            name: _to_device(pieces[0] if len(pieces) == 1 else torch.cat(pieces), self.device)
            for name, pieces in parts.items()
        }
        return Activations(read["head_input"], {layer: read[f"layer{layer}"] for layer in self.layers})

    def look_for_sinks(self, valid: np.ndarray, batch_size: int) -> None:
        """Find the rule for sinks in the stored residuals, for an entry whose manifest has none.

        ``valid`` is bool [sequences, length].
        """
        import numpy as np
        import torch

        norms: dict[int, list[np.ndarray]] = {layer: [] for layer in self.layers}
        for start in range(0, self.sequences, batch_size):
            stop = min(start + batch_size, self.sequences)
            for layer, tap in self.read(start, stop).taps.items():
                norm = torch.linalg.vector_norm(tap.float(), dim=-1).cpu().numpy()
                norms[layer].append(norm[valid[start:stop]])
        self.sinks = find_sinks({layer: np.concatenate(parts) for layer, parts in norms.items()})
        self.knows_sinks = True

    def head(self) -> Head:
        """Read the reference's own head."""
        with _open_tensors(self._path_of(HEAD_FILE), self.device) as tensors:
            names = tensors.keys()
            bias = tensors.get_tensor("bias") if "bias" in names else None
            return Head.from_weights(tensors.get_tensor("weight"), bias, self.softcap)

    def weights(self) -> dict[str, torch.Tensor]:
        """Read the decoder's weights in short, see
        :func:`qsae_bench.models.weights.inspection.weight_summary`."""
        from safetensors.torch import load_file

        path = self._path_of(WEIGHTS_FILE)
        try:
            return load_file(path)
        except FileNotFoundError:
            raise file_is_gone(path) from None


HEAD_DIGESTS: weakref.WeakKeyDictionary[Any, tuple[int, str]] = weakref.WeakKeyDictionary()
"""head module -> address of its weight, and its digest: Gemma 3's two GB take seconds to hash"""


def head_digest(head: Head) -> str:
    """Return the sha256 of the head's weights: equal digests mean the very same head.

    It is computed once for each loaded model.
    """
    address = head.module.weight.data_ptr()  # type: ignore[operator]
    known = HEAD_DIGESTS.get(head.module)
    if known is None or known[0] != address:
        known = HEAD_DIGESTS[head.module] = (address, _digest_of_head(head))
    return known[1]


def _digest_of_head(head: Head) -> str:
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(head.module.state_dict().items()):
        plain = tensor.detach().contiguous().cpu()
        digest.update(f"{name}:{plain.dtype}:{tuple(plain.shape)}".encode())
        digest.update(plain.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _open_tensors(path: Path, device: str = "cpu") -> Any:
    from safetensors import safe_open

    try:
        return safe_open(path, framework="pt", device=device)
    except FileNotFoundError:
        raise file_is_gone(path) from None


def file_is_gone(path: Path) -> DamagedEntry:
    """Return the error for a file that was there when its entry was opened."""
    return DamagedEntry(f"reference store: {path} is gone: evicted, or replaced by another run")


def _to_device(tensor: torch.Tensor, device: str) -> torch.Tensor:
    """Copy without waiting: a copy from memory that is not pinned would stall a GPU's queue."""
    return tensor if device == "cpu" else tensor.pin_memory().to(device, non_blocking=True)
