"""Read what a report needs from disk, and write reports and figures to files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from qsae_bench.errors import QsaeError, first_line
from qsae_bench.files import put
from qsae_bench.metrics import headline
from qsae_bench.registry.specs import REFERENCE
from qsae_bench.report.blocks import PagePart
from qsae_bench.results.document import RunDocument, now

if TYPE_CHECKING:
    from qsae_bench.results.history.queries import RunValue, Series

REPORT = "report.html"
"""name of the report in a run's folder"""


def run_parts(
    runs: Sequence[tuple[Path, RunDocument]], history: str, required: bool = False
) -> list[PagePart]:
    """Build one part per run, each with its history.

    Args:
        runs: folder and document of each run.
        history: URL of the history; '' for none.
        required: whether a history that can't be read is an error.

    Raises:
        QsaeError: the history is required and can't be read.
    """
    from qsae_bench.report.run_report import run_part

    return [
        run_part(document, folder, history_of(document, history, required), number)
        for number, (folder, document) in enumerate(runs, 1)
    ]


def history_of(
    document: RunDocument, history: str, required: bool = False
) -> Mapping[str, Sequence[Series]]:
    """Read each model's headline series up to this run; arguments and errors as of :func:`run_parts`.

    Without a history, or with one that can't be read and is not required, there are no series.
    """
    if not history:
        return {}
    from qsae_bench.results.history.queries import series
    from qsae_bench.results.history.store import History

    found: dict[str, list[Series]] = {}
    models = dict.fromkeys(cell.model for cell in document.cells if cell.status == "measured")
    try:
        with History.open(history) as opened:
            for model in models:
                for metric in headline("history"):
                    try:
                        every = series(opened, model, metric)
                    except QsaeError:  # the history has nothing of this model or metric
                        continue
                    for one in every:
                        runs = _until(one.runs, document.run_id)
                        if runs and one.quantization != REFERENCE:
                            found.setdefault(model, []).append(replace(one, runs=runs))
    except QsaeError:
        if required:
            raise
        return {}
    return found


def _until(runs: tuple[RunValue, ...], run_id: str) -> tuple[RunValue, ...]:
    """Cut runs after this one; none are left if it is not among them."""
    at = [index for index, run in enumerate(runs) if run.run_id == run_id]
    return runs[: at[-1] + 1] if at else ()


def html_report(parts: Sequence[PagePart], qsae_dir: Path | None = None) -> str:
    """Render a report as one HTML file; the figures' library is cached in ``qsae_dir``, if that exists."""
    from qsae_bench.report.html_page import html_page

    cache_folder = qsae_dir / "cache" if qsae_dir is not None and qsae_dir.is_dir() else None
    return html_page(parts, f"Made by qsae-bench {version('qsae-bench')}, {now()}.", cache_folder)


def write_text(path: Path, content: str) -> None:
    """Write a whole file or nothing.

    Raises:
        QsaeError: the file can't be written.
    """
    try:
        put(path, content.encode("utf-8", "replace"))
    except OSError as error:
        raise QsaeError(f"{path}: can't be written: {error.strerror or error}") from None


def write_figures(folder: Path, parts: Sequence[PagePart]) -> int:
    """Write every figure as SVG and PNG, and return their number.

    Raises:
        QsaeError: a figure can't be drawn or written.
    """
    from qsae_bench.report.figures.drawing import svg_and_png
    from qsae_bench.report.html_page import figures_of

    try:
        folder.mkdir(parents=True, exist_ok=True)
        figures = list(figures_of(parts))
        for figure in figures:
            svg, png = svg_and_png(figure)
            put(folder / f"{figure.name}.svg", svg.encode())
            put(folder / f"{figure.name}.png", png)
        return len(figures)
    except OSError as error:
        raise QsaeError(f"{folder}: figures can't be written: {error.strerror or error}") from None


def write_run_report(
    folder: Path, document: RunDocument, history: str, qsae_dir: Path | None = None
) -> str:
    """Write the report of a run that just ended into its folder; return why that failed, '' if it did not.

    The run itself is stored by now, so nothing that goes wrong here may fail it.
    """
    try:
        write_text(folder / REPORT, html_report(run_parts([(folder, document)], history), qsae_dir))
    except QsaeError as error:
        return str(error)
    except Exception as error:  # a result must not depend on its report, whatever broke there
        reason = f"{type(error).__name__}: {first_line(error, 'no reason given')}"
        return f"{folder / REPORT}: can't be made: {reason}"
    return ""
