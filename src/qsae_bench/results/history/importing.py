"""Import folders of runs into the history, each run by itself: a damaged one does not block the others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from qsae_bench.errors import QsaeError
from qsae_bench.results.document import read_run
from qsae_bench.results.history.store import History
from qsae_bench.results.run_files import DOCUMENT


@dataclass(frozen=True)
class Imported:
    """Count the runs that were found, by what happened to them."""

    added: int
    known: int
    failed: int

    def __str__(self) -> str:
        parts = [f"{self.added} imported", f"{self.known} already there"]
        return ", ".join([*parts, f"{self.failed} failed"] if self.failed else parts)


def import_runs(history: History, places: Sequence[Path], warn: Callable[[str], None]) -> Imported:
    """Add every run found in ``places``, see :func:`runs_in`; warn in one line if one can't be added."""
    folders: dict[Path, None] = {}
    added = known = failed = 0
    for place in places:
        try:
            folders |= dict.fromkeys(runs_in(place))
        except QsaeError as error:
            failed += 1
            warn(str(error))
    for folder in folders:
        try:
            document = read_run(folder)
            try:
                is_new = history.add(document)
            except QsaeError as error:
                raise QsaeError(f"{folder / DOCUMENT}: {error}") from None
            added, known = added + is_new, known + (not is_new)
        except QsaeError as error:
            failed += 1
            warn(str(error))
    return Imported(added, known, failed)


def runs_in(place: Path) -> list[Path]:
    """Find the run, or the runs, of a folder; in ``.qsae`` those in ``runs``. Unfinished runs are left out.

    Raises:
        QsaeError: There is no run, or the folder can't be read.
    """
    try:
        if place.name == DOCUMENT and place.is_file():
            return [place.parent]
        if (place / DOCUMENT).exists():
            return [place]
        parent = place / "runs" if (place / "runs").is_dir() else place
        found = sorted(path.parent for path in parent.glob(f"*/{DOCUMENT}"))
        if found:
            return found
        if not place.is_dir():
            raise QsaeError(f"{place}: no such folder")
    except (OSError, ValueError) as error:  # a null byte in a path is a ValueError
        reason = getattr(error, "strerror", None) or error
        raise QsaeError(f"{place}: can't be read: {reason}") from None
    raise QsaeError(f"{place}: no run in it: a run is a folder with {DOCUMENT}")
