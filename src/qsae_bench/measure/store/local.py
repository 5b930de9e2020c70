"""The reference store in a local folder.

An entry is a folder ``<key>/``, written beside its place and renamed into it. A process checks each file
once, when it is needed: who has a shard of the rows reads no others. Files are read memory-mapped.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qsae_bench.errors import QsaeError
from qsae_bench.files import sha256_of
from qsae_bench.measure.store.entry import (
    HEAD_FILE,
    MANIFEST,
    WEIGHTS_FILE,
    DamagedEntry,
    Manifest,
    StoredReference,
    gone,
)
from qsae_bench.measure.store.entry_writing import write_entry
from qsae_bench.models.taps import Activations, Head

if TYPE_CHECKING:
    import torch

ABANDONED_SECONDS = 86_400.0
IN_USE_SECONDS = 3600.0
"""an entry that was read so recently is not evicted: another worker may be at it"""


class ReferenceStore:
    """A folder of entries, bounded in bytes: the least recently used go first."""

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self.folder = folder
        self.limit_bytes = limit_bytes
        self._sound: dict[Path, tuple[int, int, int, str]] = {}
        """files that this process has read whole, or written: as they were then"""

    def open(self, key: str, device: str) -> StoredReference | None:
        """The entry, or None if there is none; rows and the head are checked when they are read.

        Raises:
            DamagedEntry: there is one, and a file is missing, or its manifest is wrong.
        """
        folder = self.folder / key
        if not folder.is_dir():
            return None
        manifest = _manifest(folder)
        checksums = manifest.checksums()
        for file in checksums:
            if not (folder / file).is_file():
                raise DamagedEntry(f"reference store: {folder / file}: missing")

        def path_of(file: str) -> Path:
            with contextlib.suppress(OSError):
                os.utime(folder)  # last use, for eviction
            self._check(folder / file, checksums[file])
            return folder / file

        path_of(WEIGHTS_FILE)  # small: what is wrong with it shows now
        return StoredReference(manifest, device, path_of)

    def _check(self, path: Path, sha256: str) -> None:
        """Read it whole, unless this process has and it is still that file."""
        try:
            state = _state(path, sha256)
            if self._sound.get(path) != state:
                if sha256_of(path) != sha256:
                    raise DamagedEntry(f"reference store: {path} is damaged (checksum differs)")
                self._sound[path] = state
        except FileNotFoundError:
            raise gone(path) from None
        except OSError as error:
            raise DamagedEntry(f"reference store: {path}: {error.strerror}") from None

    def close(self) -> None:
        """Nothing is to be done."""

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

        ``weights`` is what :func:`qsae_bench.models.weights.inspection.in_short` made of the model.

        Raises:
            QsaeError: the disk is full or the folder can't be written.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            part = Path(tempfile.mkdtemp(prefix=f".{key}-", dir=self.folder))
        except OSError as error:
            raise _cannot_write(self.folder, error) from None
        try:
            values = write_entry(part, batches, valid, head, described, weights or {}, self._link_head)
            manifest = Manifest.sealed(values)
            (part / MANIFEST).write_bytes(manifest.content())
            own = {file: _state(part / file, sha256) for file, sha256 in manifest.checksums().items()}
            if self._put(part, key):  # what was just written need not be read again
                self._sound |= {self.folder / key / file: state for file, state in own.items()}
        except OSError as error:
            if not (self.folder / key / MANIFEST).is_file():  # else another process was first
                raise _cannot_write(self.folder, error) from None
        finally:
            shutil.rmtree(part, ignore_errors=True)
        self._evict(keep=key)

    def _put(self, part: Path, key: str) -> bool:
        """In its place, unless another machine has put a sound one there meanwhile, which may be in use."""
        place = self.folder / key
        try:
            for file, sha256 in _manifest(place).checksums().items():
                self._check(place / file, sha256)
            return False
        except DamagedEntry:  # or there is none
            aside = self.folder / f"{part.name}-replaced"
        with contextlib.suppress(FileNotFoundError):
            os.replace(place, aside)
        os.replace(part, place)
        shutil.rmtree(aside, ignore_errors=True)
        return True

    def _link_head(self, digest: str, path: Path) -> bool:
        """Link the intact file of an entry with this very head: a head is stored once a model."""
        for manifest in self.folder.glob(f"*/{MANIFEST}"):
            # what is damaged is no source, and not every file system has links
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                values = json.loads(manifest.read_text(encoding="utf-8"))
                head = manifest.with_name(HEAD_FILE)
                if values["head_digest"] == digest and sha256_of(head) == values["head_sha256"]:
                    os.link(head, path)
                    return True
        return False

    def _evict(self, keep: str) -> None:
        found = []
        for entry in self.folder.iterdir():
            # another process may replace or evict an entry while we look at it
            with contextlib.suppress(OSError):
                if entry.is_dir() and not entry.name.startswith("."):
                    size = sum(file.stat().st_size for file in entry.iterdir())
                    used = entry.stat().st_mtime
                    kept = entry.name == keep or time.time() - used < IN_USE_SECONDS
                    found.append((kept, used, entry.name, size))
                elif entry.name.startswith(".") and time.time() - entry.stat().st_mtime > ABANDONED_SECONDS:
                    shutil.rmtree(entry, ignore_errors=True)  # of a run that was killed
        total = 0
        for kept, _, name, size in sorted(found, reverse=True):
            total += size
            if total > self.limit_bytes and not kept:
                self.discard(name)


class TemporaryStore(ReferenceStore):
    """In a folder of its own, which goes when it is closed."""

    def __init__(self, limit_bytes: int) -> None:
        self._made = tempfile.TemporaryDirectory(prefix="qsae-references-")
        super().__init__(Path(self._made.name), limit_bytes)

    def close(self) -> None:
        self._made.cleanup()


def _manifest(folder: Path) -> Manifest:
    try:
        return Manifest.read((folder / MANIFEST).read_bytes(), str(folder / MANIFEST))
    except OSError as error:
        raise DamagedEntry(f"reference store: {error.filename}: {error.strerror}") from None


def _state(path: Path, sha256: str) -> tuple[int, int, int, str]:
    """Another file in its place has another."""
    about = path.stat()
    return about.st_ino, about.st_size, about.st_mtime_ns, sha256


def _cannot_write(folder: Path, error: OSError) -> QsaeError:
    return QsaeError(
        f"reference store {folder}: can't be written: {error.strerror or error}; "
        "free space or name another place with --reference-store"
    )
