"""Import folders of runs into the history, each run by itself: a damaged one does not block the others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from qsae_bench.errors import QsaeError
from qsae_bench.results.document import read_run
from qsae_bench.results.history.store import History
from qsae_bench.results.run_files import DOCUMENT


def import_runs(history: History, places: Sequence[Path], warn: Callable[[str], None]) -> Counter[str]:
    """Add every run found in ``places``, see :func:`runs_in`; warn in one line if one can't be added.

    Returns:
        The number of runs that were ``imported`` or ``already there``, and of what ``failed`` if any did.
    """
    folders: dict[Path, None] = {}
    done = Counter({"imported": 0, "already there": 0})
    for place in places:
        try:
            folders |= dict.fromkeys(runs_in(place))
        except QsaeError as error:
            done["failed"] += 1
            warn(str(error))
    for folder in folders:
        try:
            document = read_run(folder)
            try:
                done["imported" if history.add(document) else "already there"] += 1
            except QsaeError as error:
                raise QsaeError(f"{folder / DOCUMENT}: {error}") from None
        except QsaeError as error:
            done["failed"] += 1
            warn(str(error))
    return done


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
