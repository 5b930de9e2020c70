"""Store what a reference pass leaves, so that every quantized cell of the model, of this run or of a later
one, reads it instead of running the reference again.

:func:`parse_location` checks what ``--reference-store`` names, :func:`open_store` opens the store there.
:mod:`.local` is a folder, :mod:`.remote` a URL with :mod:`.remote_files` below it and a local
:mod:`.cache`; an entry has the same files in both (:mod:`.entry`, :mod:`.entry_writing`). Only the last two
need torch, so that a command line is checked without it.
"""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from qsae_bench.errors import QsaeError

if TYPE_CHECKING:
    from qsae_bench.measure.store.entry import StoredReference
    from qsae_bench.measure.store.entry_writing import ReferencePass

OPTION = "--reference-store"
SCHEME = re.compile(r"([a-zA-Z][\w+.-]+)://")
LOCAL_SCHEMES = ("file", "local")
EXAMPLES = "s3://BUCKET/FOLDER, gs://…, abfs://…, sftp://…, or a folder"


class Store(Protocol):
    """Keep entries by key; an entry is one reference pass over one corpus."""

    def open(self, key: str, device: str) -> StoredReference | None:
        """Open an entry, to be read onto ``device``; None if there is none.

        Raises:
            DamagedEntry: there is one, and a file of it is missing or its manifest is wrong.
            QsaeError: the store can't be read.
        """

    def write(self, key: str, reference_pass: ReferencePass) -> None:
        """Write an entry, over a damaged one if there is one; no reader sees half of it.

        Raises:
            QsaeError: the disk is full or the store can't be written.
        """

    def close(self) -> None:
        """Release what belongs to this run alone."""


def parse_location(option: str, off: bool) -> str | None:
    """Return what the options name: '' for the default store, None for none.

    Raises:
        QsaeError: both are given, or a URL that can't be a store here; a password in it is not shown.
    """
    location = option.strip()
    if off and location:
        raise QsaeError(f"{OPTION} and --no-reference-store: give one of them")
    if off:
        return None
    if "://" in location and not location.lower().startswith(tuple(f"{one}://" for one in LOCAL_SCHEMES)):
        _check(_scheme(location), location)
    return location


def open_store(location: str | None, qsae_dir: Path, limit_bytes: int) -> Store:
    """Return the store at a location that :func:`parse_location` returned.

    ``limit_bytes`` bounds the folder, or the local copies of a URL's files; the least recently used go.
    """
    from qsae_bench.measure.store.local import LocalStore, TemporaryStore

    if location is None:
        return TemporaryStore(limit_bytes)
    if _scheme(location):
        from qsae_bench.measure.store.cache import CheckedCache
        from qsae_bench.measure.store.remote import RemoteStore

        return RemoteStore(location, CheckedCache(qsae_dir / "cache" / "references", limit_bytes))
    folder = SCHEME.sub("", location, count=1)
    return LocalStore(Path(folder).expanduser() if folder else qsae_dir / "references", limit_bytes)


def _scheme(location: str) -> str:
    """Return the scheme of a URL that doesn't name a local folder, else ''."""
    found = SCHEME.match(location)
    scheme = found[1].lower() if found else ""
    return "" if scheme in LOCAL_SCHEMES else scheme


def _check(scheme: str, location: str) -> None:
    """Check that fsspec can reach such a URL here."""
    from fsspec.registry import available_protocols, get_filesystem_class

    if not scheme or "?" in location or "::" in location:
        # not shown: a query is where keys are given, and where nothing masks them
        raise QsaeError(
            f"{OPTION}: expected {EXAMPLES}, without '?' and '::'; "
            "credentials and options are given in the environment"
        )
    known = available_protocols()
    if scheme not in known:
        near = difflib.get_close_matches(scheme, known, n=1, cutoff=0.5)
        meant = f" (did you mean {near[0]!r}?)" if near else ""
        raise QsaeError(f"{OPTION}: unknown scheme {scheme!r}{meant}; {EXAMPLES}")
    try:
        get_filesystem_class(scheme)
    except ImportError as error:
        package = getattr(error.__cause__, "name", "") or "what fsspec names"
        reason = (str(error).strip() or "no message").splitlines()[0]
        raise QsaeError(
            f"{OPTION}: {scheme}:// needs a package that is not installed: pip install {package} ({reason})"
        ) from None
