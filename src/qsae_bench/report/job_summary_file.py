"""Where the page for the morning after goes: beside the run, and to GitHub where it asks for one.

A page that can't be written is a pity and no reason to fail a run that is kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from qsae_bench.files import put

PAGE = "summary.md"

STEP_SUMMARY = "GITHUB_STEP_SUMMARY"
"""environment variable: the file whose content GitHub shows with the job"""

MOST_BYTES = 1 << 20
"""of that file: with more, GitHub shows nothing of it"""

CUT = f"*Cut here, at what GitHub shows; the whole page is {PAGE} in the run's folder.*\n"


def keep_page(page: str, folder: Path | None, environment: Mapping[str, str]) -> list[str]:
    """Write the page into the run's folder, if there is one, and append it to GitHub's file.

    Returns:
        A line for each place that could not be written.
    """
    content = page.encode("utf-8", "replace")
    warnings = []
    if folder is not None:
        try:
            put(folder / PAGE, content)
        except OSError as error:
            warnings.append(f"{folder / PAGE}: can't be written: {error.strerror or error}")
    if step := environment.get(STEP_SUMMARY, ""):
        try:
            _append(Path(step), content)
        except (OSError, ValueError) as error:  # a null byte in a path is a ValueError
            warnings.append(f"{STEP_SUMMARY}: can't be written: {getattr(error, 'strerror', '') or error}")
    return warnings


def _append(path: Path, content: bytes) -> None:
    """After what other commands of the step wrote."""
    with path.open("ab") as file:
        file.write(fitting(content, MOST_BYTES - file.tell()))


def fitting(content: bytes, room: int) -> bytes:
    """As many whole lines as there is room for, and a line that says so."""
    if len(content) <= room:
        return content
    kept = content[: max(0, room - len(CUT.encode()) - 1)]
    kept = kept[: kept.rfind(b"\n") + 1]
    return kept + b"\n" + CUT.encode() if len(CUT.encode()) < room else b""
