"""Vega-Lite figures as SVG and PNG, and the library that makes them interactive in a page: vl-convert's.

It carries its own renderer: no browser, no network. Imported where used: it is large.
"""

from __future__ import annotations

import json
from functools import cache
from typing import Any

from qsae_bench.errors import QsaeError
from qsae_bench.report.blocks import Figure
from qsae_bench.report.figures.style import CONFIG, FONT, cleaned, without_hover
from qsae_bench.report.slim import slim

PNG_SCALE = 2.0
"""pixels a unit: sharp in print at a column's width"""


def svg(figure: Figure) -> str:
    """The figure for a page: text is text and takes the page's colour and font.

    Raises:
        QsaeError: it can't be drawn.
    """
    return slim(_svg(figure, CONFIG), FONT)


def files(figure: Figure) -> tuple[str, bytes]:
    """The figure as files of its own, on white: SVG and PNG.

    Raises:
        QsaeError: it can't be drawn.
    """
    import vl_convert

    drawn = _svg(figure, CONFIG | {"background": "white"})
    try:
        return drawn, bytes(vl_convert.svg_to_png(drawn, scale=PNG_SCALE))
    except ValueError as error:
        raise _refused(figure, error) from None


def _svg(figure: Figure, config: dict[str, Any]) -> str:
    import vl_convert

    text = json.dumps(without_hover(cleaned(figure.spec)), allow_nan=False)
    try:
        return str(vl_convert.vegalite_to_svg(text, config=config, allowed_base_urls=[]))
    except ValueError as error:
        raise _refused(figure, error) from None


@cache
def library() -> str:
    """JavaScript that defines ``vegaEmbed``: Vega, Vega-Lite and Vega-Embed of the installed vl-convert."""
    import vl_convert

    return str(vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;"))


def _refused(figure: Figure, error: Exception) -> QsaeError:
    return QsaeError(f"figure {figure.name}: can't be drawn: {str(error).splitlines()[0]}")
