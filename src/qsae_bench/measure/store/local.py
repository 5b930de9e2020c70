"""Keep references in a local folder.

An entry is a folder ``<key>/``, written under another name and renamed when it is complete. A process
checks each file once, when it needs it: a worker that has a shard of the rows doesn't read the others.
Files are read memory-mapped.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
import time
from pathlib import Path

from qsae_bench.errors import QsaeError
from qsae_bench.files import evict_least_recently_used, remove_abandoned, sha256_of
from qsae_bench.measure.store.entry import (
    HEAD_FILE,
    MANIFEST,
    WEIGHTS_FILE,
    DamagedEntry,
    Manifest,
    StoredReference,
    file_is_gone,
)
from qsae_bench.measure.store.entry_writing import ReferencePass, write_entry

IN_USE_SECONDS = 3600.0
"""an entry that was read so recently is not evicted: another worker may be reading it"""

FileState = tuple[int, int, int, str]
"""inode, size, time of change and checksum: a file that replaces another has other ones"""


class LocalStore:
    """Keep entries in a folder, bounded in bytes: the least recently used are removed first.

    Implements :class:`qsae_bench.measure.store.Store`.
    """

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self.folder = folder
        self.limit_bytes = limit_bytes
        self._verified: dict[Path, FileState] = {}
        """files that this process has read whole, or written: as they were then"""

    def open(self, key: str, device: str) -> StoredReference | None:
        """Open an entry; rows and the head are checked when they are read."""
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
                os.utime(folder)  # time of last use, for eviction
            self._verify(folder / file, checksums[file])
            return folder / file

        path_of(WEIGHTS_FILE)  # it is small, and shows damage now
        return StoredReference(manifest, device, path_of)

    def _verify(self, path: Path, sha256: str) -> None:
        """Check a file's content, unless this process did so and the file is still the same."""
        try:
            state = _state(path, sha256)
            if self._verified.get(path) != state:
                if sha256_of(path) != sha256:
                    raise DamagedEntry(f"reference store: {path} is damaged (checksum differs)")
                self._verified[path] = state
        except FileNotFoundError:
            raise file_is_gone(path) from None
        except OSError as error:
            raise DamagedEntry(f"reference store: {path}: {error.strerror}") from None

    def close(self) -> None:
        """Do nothing: the folder stays for later runs."""

    def write(self, key: str, reference_pass: ReferencePass) -> None:
        """Write an entry and put it in place in one rename."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            part = Path(tempfile.mkdtemp(prefix=f".{key}-", dir=self.folder))
        except OSError as error:
            raise _cannot_write(self.folder, error) from None
        try:
            manifest = Manifest.sealed(write_entry(part, reference_pass, self._link_head))
            (part / MANIFEST).write_bytes(manifest.content())
            own = {file: _state(part / file, sha256) for file, sha256 in manifest.checksums().items()}
            if self._put(part, key):  # what was just written need not be read again
                self._verified |= {self.folder / key / file: state for file, state in own.items()}
        except OSError as error:
            if not (self.folder / key / MANIFEST).is_file():  # else another process was first
                raise _cannot_write(self.folder, error) from None
        finally:
            shutil.rmtree(part, ignore_errors=True)
        self._evict(keep=key)

    def _put(self, part: Path, key: str) -> bool:
        """Rename into place, unless another machine has put a sound entry there, which may be in use."""
        place = self.folder / key
        try:
            for file, sha256 in _manifest(place).checksums().items():
                self._verify(place / file, sha256)
            return False
        except DamagedEntry:  # or there is none
            aside = self.folder / f"{part.name}-replaced"
        with contextlib.suppress(FileNotFoundError):
            os.replace(place, aside)
        os.replace(part, place)
        shutil.rmtree(aside, ignore_errors=True)
        return True

    def _link_head(self, digest: str, path: Path) -> bool:
        """Link the intact head of another entry of the same model: a head is stored once a model."""
        for manifest in self.folder.glob(f"*/{MANIFEST}"):
            # a damaged entry is no source, and not every file system has links
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                values = json.loads(manifest.read_text(encoding="utf-8"))
                head = manifest.with_name(HEAD_FILE)
                if values["head_digest"] == digest and sha256_of(head) == values["head_sha256"]:
                    os.link(head, path)
                    return True
        return False

    def _evict(self, keep: str) -> None:
        def is_protected(path: Path, used: float) -> bool:
            return path.name == keep or time.time() - used < IN_USE_SECONDS

        entries = [path for path in self.folder.iterdir() if path.is_dir() and path.name[0] != "."]
        evict_least_recently_used(entries, self.limit_bytes, is_protected)
        remove_abandoned(self.folder)


class TemporaryStore(LocalStore):
    """Keep entries in a folder of its own, which is removed when the store is closed."""

    def __init__(self, limit_bytes: int) -> None:
        self._made = tempfile.TemporaryDirectory(prefix="qsae-references-")
        super().__init__(Path(self._made.name), limit_bytes)

    def close(self) -> None:
        """Remove the folder."""
        self._made.cleanup()


def _manifest(folder: Path) -> Manifest:
    try:
        return Manifest.read((folder / MANIFEST).read_bytes(), str(folder / MANIFEST))
    except OSError as error:
        raise DamagedEntry(f"reference store: {error.filename}: {error.strerror}") from None


def _state(path: Path, sha256: str) -> FileState:
    about = path.stat()
    return about.st_ino, about.st_size, about.st_mtime_ns, sha256


def _cannot_write(folder: Path, error: OSError) -> QsaeError:
    return QsaeError(
        f"reference store {folder}: can't be written: {error.strerror or error}; "
        "free space or name another place with --reference-store"
    )
