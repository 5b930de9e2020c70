"""A stored reference: what a reference pass leaves for the quantized ones, and reading it.

Stored are hidden states, not logits: the residual at each tap and the head's input, d_model numbers
a position instead of the vocabulary's. The head's weights lie beside them, once a model, so that any
later pass can form the reference's exact logits. An entry is some files::

    manifest.json            what it was made from, checksums, median norms
    rows-00000.safetensors   head_input and layer{L}, [sequences, length, d_model]
    head.safetensors         weight (and bias)
    weights.safetensors      the decoder's weights in short: rows.* checksums, probe.* responses

Where they lie is a store's: :mod:`qsae_bench.measure.store.local` or
:mod:`qsae_bench.measure.store.remote`.
"""

from __future__ import annotations

import hashlib
import json
import re
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from qsae_bench.errors import QsaeError
from qsae_bench.models.taps import Activations, Head

if TYPE_CHECKING:
    import torch

REFERENCE_FORMAT = 4
"""Bump when the stored values or their layout change: part of every key. 2: the manifest has a digest.
3: the weights in short. 4: their checksums are modulo 2^32."""

MANIFEST = "manifest.json"
HEAD_FILE = "head.safetensors"
WEIGHTS_FILE = "weights.safetensors"

CHECKSUM = re.compile("[0-9a-f]{64}")


class DamagedEntry(QsaeError):
    """An entry exists and can't be trusted; the message names the file."""


def key_of(parts: Mapping[str, Any]) -> str:
    """Hash of everything that changes the stored values."""
    text = json.dumps({"format": REFERENCE_FORMAT, **parts}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


@dataclass(frozen=True)
class StoredShard:
    file: str
    start: int
    stop: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What an entry says of itself. Its own digest is in it, so a changed one is noticed."""

    values: Mapping[str, Any]

    @classmethod
    def sealed(cls, values: Mapping[str, Any]) -> Self:
        """With the digest of everything in it."""
        return cls({**values, "sha256": _digest_of_values(values)})

    @classmethod
    def read(cls, content: bytes, where: str) -> Self:
        """Of a manifest's file.

        Raises:
            DamagedEntry: it is not one, or not as it was written; ``where`` names it.
        """
        try:
            manifest = cls(json.loads(content))
            if manifest.digest != _digest_of_values(manifest.values):
                raise DamagedEntry(f"reference store: {where} is damaged (checksum differs)")
            sound = all(CHECKSUM.fullmatch(sha256) for sha256 in manifest.checksums().values())
        except (ValueError, KeyError, TypeError, AttributeError):
            sound = False
        if not sound:
            raise DamagedEntry(f"reference store: {where} is damaged (not a manifest)")
        return manifest

    @property
    def digest(self) -> str:
        return self.values["sha256"]

    @property
    def shards(self) -> list[StoredShard]:
        return [StoredShard(**shard) for shard in self.values["shards"]]

    def checksums(self) -> dict[str, str]:
        """file -> sha256, of all but the manifest."""
        rows = {shard.file: shard.sha256 for shard in self.shards}
        return rows | {
            HEAD_FILE: self.values["head_sha256"],
            WEIGHTS_FILE: self.values["weights_sha256"],
        }

    def content(self) -> bytes:
        """Of its file."""
        return json.dumps(dict(self.values), indent=1).encode()


def _digest_of_values(values: Mapping[str, Any]) -> str:
    """Of everything in it but its own digest."""
    rest = {key: value for key, value in values.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


class StoredReference:
    """An open entry: activations by sequence range, median norms, and the head.

    Reading raises:
        DamagedEntry: a file that is read for the first time only then is not what the manifest says.
        QsaeError: it can't be fetched.
    """

    def __init__(self, manifest: Manifest, device: str, path_of: Callable[[str], Path]) -> None:
        """``path_of`` gives the local path of one of the entry's files, when it is needed."""
        values = manifest.values
        self.manifest = manifest
        self.device = device
        self.layers: tuple[int, ...] = tuple(values["layers"])
        self.median_norms: dict[int, float] = {
            int(layer): norm for layer, norm in values["median_norms"].items()
        }
        self.sequences: int = values["sequences"]
        self.head_digest: str = values["head_digest"]
        self.softcap: float | None = values["softcap"]
        self._shards = manifest.shards
        self._path_of = path_of

    def fetch(self, start: int, stop: int) -> None:
        """Have these sequences' files and the head's here and checked: reading then waits for none."""
        for shard in self._shards:
            if max(start, shard.start) < min(stop, shard.stop):
                self._path_of(shard.file)
        if start < stop:
            self._path_of(HEAD_FILE)

    def read(self, start: int, stop: int) -> Activations:
        """Sequences ``start`` to ``stop``, on the device.

        The file is mapped for this read alone: pages of a mapping that stays open count as this
        process's memory, and would grow with the corpus.
        """
        import torch

        names = ["head_input", *(f"layer{layer}" for layer in self.layers)]
        parts: dict[str, list[torch.Tensor]] = {name: [] for name in names}
        for shard in self._shards:
            rows = slice(max(start - shard.start, 0), min(stop, shard.stop) - shard.start)
            if rows.start < rows.stop:
                with _opened(self._path_of(shard.file)) as tensors:
                    for name in names:
                        parts[name].append(tensors.get_slice(name)[rows])
        read = {
            name: _to_device(pieces[0] if len(pieces) == 1 else torch.cat(pieces), self.device)
            for name, pieces in parts.items()
        }
        return Activations(read["head_input"], {layer: read[f"layer{layer}"] for layer in self.layers})

    def head(self) -> Head:
        """The reference's own head, read from disk."""
        with _opened(self._path_of(HEAD_FILE), self.device) as tensors:
            names = tensors.keys()
            bias = tensors.get_tensor("bias") if "bias" in names else None
            return Head.from_weights(tensors.get_tensor("weight"), bias, self.softcap)

    def weights(self) -> dict[str, torch.Tensor]:
        """The decoder's weights in short, see :func:`qsae_bench.models.weights.inspection.in_short`."""
        from safetensors.torch import load_file

        path = self._path_of(WEIGHTS_FILE)
        try:
            return load_file(path)
        except FileNotFoundError:
            raise gone(path) from None


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


def _opened(path: Path, device: str = "cpu") -> Any:
    from safetensors import safe_open

    try:
        return safe_open(path, framework="pt", device=device)
    except FileNotFoundError:
        raise gone(path) from None


def gone(path: Path) -> DamagedEntry:
    """A file of an entry that was there when that was opened."""
    return DamagedEntry(f"reference store: {path} is gone: evicted, or replaced by another run")


def _to_device(tensor: torch.Tensor, device: str) -> torch.Tensor:
    """Without waiting: a copy from memory that is not pinned would stall a GPU's queue."""
    return tensor if device == "cpu" else tensor.pin_memory().to(device, non_blocking=True)
