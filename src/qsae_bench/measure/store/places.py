"""Which reference store an invocation uses: a local folder, a URL, or none beyond this run. No torch."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from qsae_bench.errors import QsaeError

if TYPE_CHECKING:
    import torch

    from qsae_bench.measure.store.entry import StoredReference
    from qsae_bench.models.taps import Activations, Head

OPTION = "--reference-store"
SCHEME = re.compile(r"([a-zA-Z][\w+.-]+)://")
LOCAL = ("file", "local")
EXAMPLES = "s3://BUCKET/FOLDER, gs://…, abfs://…, sftp://…, or a folder"


class Store(Protocol):
    """What every store does; see :mod:`qsae_bench.measure.store.local` for what is raised."""

    def open(self, key: str, device: str) -> StoredReference | None: ...

    def discard(self, key: str) -> None: ...

    def write(
        self,
        key: str,
        batches: Iterable[Activations],
        valid: torch.Tensor,
        head: Head,
        described: Mapping[str, Any],
        weights: Mapping[str, torch.Tensor] | None = None,
    ) -> None: ...

    def close(self) -> None: ...


def chosen_place(option: str, off: bool) -> str | None:
    """What ``--reference-store`` and ``--no-reference-store`` say: '' for the default, None for none.

    Raises:
        QsaeError: both, or a URL that can't be a store here; a password in it is not shown.
    """
    place = option.strip()
    if off and place:
        raise QsaeError(f"{OPTION} and --no-reference-store: give one of them")
    if off:
        return None
    if "://" in place and not place.lower().startswith(tuple(f"{scheme}://" for scheme in LOCAL)):
        _check(_scheme(place), place)
    return place


def store_at(place: str | None, qsae_dir: Path, limit_bytes: int) -> Store:
    """The store at a place that :func:`chosen_place` found."""
    from qsae_bench.measure.store.local import ReferenceStore, TemporaryStore

    if place is None:
        return TemporaryStore(limit_bytes)
    if _scheme(place):
        from qsae_bench.measure.store.cache import CheckedCache
        from qsae_bench.measure.store.remote import RemoteStore

        cache = CheckedCache(qsae_dir / "cache" / "references", limit_bytes)
        return RemoteStore(place, cache, limit_bytes)
    folder = SCHEME.sub("", place, count=1)
    return ReferenceStore(Path(folder).expanduser() if folder else qsae_dir / "references", limit_bytes)


def _scheme(place: str) -> str:
    """Of a URL that is no local folder's; else ''."""
    found = SCHEME.match(place)
    scheme = found[1].lower() if found else ""
    return "" if scheme in LOCAL else scheme


def _check(scheme: str, place: str) -> None:
    from fsspec.registry import available_protocols, get_filesystem_class

    if not scheme or "?" in place or "::" in place:
        # not shown: a query is where keys are given, and where nothing masks them
        raise QsaeError(
            f"{OPTION}: wanted is {EXAMPLES}, without '?' and '::'; "
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
        said = (str(error).strip() or "no message").splitlines()[0]
        raise QsaeError(
            f"{OPTION}: {scheme}:// needs a package that is not installed: pip install {package} ({said})"
        ) from None
