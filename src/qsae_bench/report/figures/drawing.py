"""Vega-Lite figures as SVG and PNG, and the library that makes them interactive in a page: vl-convert's.

It carries its own renderer: no browser, no network. Imported where used: it is large.
"""

from __future__ import annotations

import base64
import contextlib
import gzip
import json
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from qsae_bench.errors import QsaeError
from qsae_bench.files import put
from qsae_bench.report.blocks import Figure
from qsae_bench.report.figures.renderer import Renderer, render
from qsae_bench.report.figures.style import CONFIG, FONT, cleaned, without_hover

PNG_SCALE = 2.0
"""pixels a unit: sharp in print at a column's width"""


class Drawings:
    """Figures for a page: text is text and takes the page's colour and font. Begun at once."""

    def __init__(self, figures: Sequence[Figure]) -> None:
        self._figures = figures
        self._renderer = Renderer([_text(figure) for figure in figures], json.dumps(CONFIG), FONT)

    def by_name(self) -> dict[str, str]:
        """Figure's name -> SVG.

        Raises:
            QsaeError: one can't be drawn.
        """
        try:
            drawn = self._renderer.drawn()
        except ValueError as error:
            raise _refused(error) from None
        return {figure.name: text for figure, text in zip(self._figures, drawn, strict=True)}


def files(figure: Figure) -> tuple[str, bytes]:
    """The figure as files of its own, on white: SVG and PNG.

    Raises:
        QsaeError: it can't be drawn.
    """
    import vl_convert

    try:
        drawn = render(_text(figure), json.dumps(CONFIG | {"background": "white"}))
        return drawn, bytes(vl_convert.svg_to_png(drawn, scale=PNG_SCALE))
    except ValueError as error:
        raise _refused(error) from None


def library(kept: Path | None = None) -> str:
    """JavaScript that defines ``vegaEmbed``, as base64 of gzip: vl-convert's Vega, Vega-Lite, Vega-Embed.

    Args:
        kept: folder in which it is kept, for bundling takes seconds; None keeps it nowhere.
    """
    import vl_convert

    path = kept and kept / f"vega-embed-{version('vl-convert-python')}.js.gz.b64"
    if path is not None:
        try:
            return path.read_text(encoding="ascii")
        except (OSError, ValueError):
            pass
    bundle = str(vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;"))
    packed = pack(bundle)
    if path is not None:
        with contextlib.suppress(OSError):  # the next report bundles it again
            path.parent.mkdir(parents=True, exist_ok=True)
            put(path, packed.encode())
    return packed


def pack(text: str) -> str:
    """Base64 of gzip, the same for the same text."""
    return base64.b64encode(gzip.compress(text.encode(), 9, mtime=0)).decode()


def _text(figure: Figure) -> str:
    return json.dumps(without_hover(cleaned(figure.spec)), allow_nan=False)


def _refused(error: Exception) -> QsaeError:
    return QsaeError(f"a figure can't be drawn: {str(error).splitlines()[0]}")
