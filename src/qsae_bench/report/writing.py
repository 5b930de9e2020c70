"""Reports from runs on disk: what is read for one, and where it goes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from qsae_bench.errors import QsaeError
from qsae_bench.files import put
from qsae_bench.registry.specs import REFERENCE
from qsae_bench.report.blocks import PagePart
from qsae_bench.results import document as results
from qsae_bench.results.document import RunDocument

if TYPE_CHECKING:
    from qsae_bench.results.history.queries import Series

REPORT = "report.html"

NIGHTLY = ("perplexity_increase_pct", "kl_divergence", "fvu_drift")
"""metrics whose nights a report shows"""


def run_parts(
    runs: Sequence[tuple[Path, RunDocument]], history: str, required: bool = False
) -> list[PagePart]:
    """A part a run, with its nights from the history at this URL, where there is one.

    Raises:
        QsaeError: the history is ``required`` and can't be read.
    """
    from qsae_bench.report.run_report import run_part

    return [
        run_part(document, folder, nights_of(document, history, required), number)
        for number, (folder, document) in enumerate(runs, 1)
    ]


def nights_of(
    document: RunDocument, history: str, required: bool = False
) -> Mapping[str, Sequence[Series]]:
    """Model -> its headline series up to this run: same machine, text and way of measuring.

    A report needs no history: without one, or with one that can't be read, there are no nights.

    Raises:
        QsaeError: it is ``required`` and can't be read.
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
                for metric in NIGHTLY:
                    try:
                        every = series(opened, model, metric)
                    except QsaeError:  # of a model or metric that it has not
                        continue
                    ours = (_until(one, document.run_id) for one in every if one.quantization != REFERENCE)
                    found.setdefault(model, []).extend(one for one in ours if one.nights)
    except QsaeError:
        if required:
            raise
        return {}
    return found


def _until(one: Series, run_id: str) -> Series:
    """Its nights up to this run's; none where it does not hold it."""
    at = [index for index, night in enumerate(one.nights) if night.run_id == run_id]
    return replace(one, nights=one.nights[: at[-1] + 1] if at else ())


def html_of(parts: Sequence[PagePart], qsae_dir: Path | None = None) -> str:
    """``qsae_dir``: where the figures' library is kept between reports."""
    from qsae_bench.report.html import page

    kept = qsae_dir / "cache" if qsae_dir is not None and qsae_dir.is_dir() else None
    return page(parts, f"Made by qsae-bench {version('qsae-bench')}, {results.now()}.", kept)


def write(path: Path, content: str) -> None:
    """Whole or not at all.

    Raises:
        QsaeError: it can't be written.
    """
    try:
        put(path, content.encode("utf-8", "replace"))
    except OSError as error:
        raise QsaeError(f"{path}: can't be written: {error.strerror or error}") from None


def draw_into(folder: Path, parts: Sequence[PagePart]) -> int:
    """Every figure as SVG and PNG; how many.

    Raises:
        QsaeError: one can't be drawn or written.
    """
    from qsae_bench.report.figures import drawing
    from qsae_bench.report.html import figures_of

    try:
        folder.mkdir(parents=True, exist_ok=True)
        count = 0
        for figure in figures_of(parts):
            as_svg, as_png = drawing.files(figure)
            put(folder / f"{figure.name}.svg", as_svg.encode())
            put(folder / f"{figure.name}.png", as_png)
            count += 1
        return count
    except OSError as error:
        raise QsaeError(f"{folder}: figures can't be written: {error.strerror or error}") from None


def keep_report(folder: Path, document: RunDocument, history: str, qsae_dir: Path | None = None) -> str:
    """The report beside a run that just ended; '' or one line of why there is none.

    The run is kept by now: whatever goes wrong here is a pity and no reason to fail it.
    """
    try:
        write(folder / REPORT, html_of(run_parts([(folder, document)], history), qsae_dir))
    except QsaeError as error:
        return str(error)
    except Exception as error:  # whatever it is, a night's result must not hang on its page
        why = (str(error).strip() or "no reason given").splitlines()[0]
        return f"{folder / REPORT}: can't be made: {type(error).__name__}: {why}"
    return ""
