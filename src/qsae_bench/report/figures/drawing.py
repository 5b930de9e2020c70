"""Draw Vega-Lite figures as SVG and PNG, and pack the library that makes them interactive in a page.

vl-convert does both with its own renderer: no browser, no network. It is large, so it is imported where it
is used.
"""

from __future__ import annotations

import base64
import contextlib
import gzip
import json
from importlib.metadata import version
from pathlib import Path

from qsae_bench.errors import QsaeError, first_line
from qsae_bench.files import put
from qsae_bench.report.blocks import Figure
from qsae_bench.report.figures.style import CONFIG, cleaned, without_hover

PNG_SCALE = 2.0
"""pixels per unit: sharp in print at a column's width"""


def svg(figure: Figure, background: str | None = None) -> str:
    """Draw a figure as SVG whose text takes the colour and font of the page around it.

    Args:
        background: colour behind the figure; None leaves it transparent.

    Raises:
        QsaeError: the figure can't be drawn.
    """
    import vl_convert

    try:
        spec = json.dumps(without_hover(cleaned(figure.spec)), allow_nan=False)
        config = CONFIG | {"background": background}
        return str(vl_convert.vegalite_to_svg(spec, config=config, allowed_base_urls=[]))
    except ValueError as error:
        raise _not_drawn(figure, error) from None


def svg_and_png(figure: Figure) -> tuple[str, bytes]:
    """Draw a figure on white, for files of its own.

    Raises:
        QsaeError: the figure can't be drawn.
    """
    import vl_convert

    drawn = svg(figure, background="white")
    try:
        return drawn, bytes(vl_convert.svg_to_png(drawn, scale=PNG_SCALE))
    except ValueError as error:
        raise _not_drawn(figure, error) from None


def _not_drawn(figure: Figure, error: ValueError) -> QsaeError:
    return QsaeError(f"figure {figure.name} can't be drawn: {first_line(error, 'no reason given')}")


def library(cache_folder: Path | None = None) -> str:
    """Bundle the JavaScript that defines ``vegaEmbed`` (Vega, Vega-Lite, Vega-Embed), packed.

    Args:
        cache_folder: where the bundle is stored for the next report, because making it takes seconds; None
            stores it nowhere.
    """
    import vl_convert

    path = cache_folder and cache_folder / f"vega-embed-{version('vl-convert-python')}.js.gz.b64"
    if path is not None:
        with contextlib.suppress(OSError, ValueError):
            return path.read_text(encoding="ascii")
    packed = pack(str(vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")))
    if path is not None:
        with contextlib.suppress(OSError):  # the next report bundles it again
            path.parent.mkdir(parents=True, exist_ok=True)
            put(path, packed.encode())
    return packed


def pack(text: str) -> str:
    """Compress a text to base64 of gzip; the same text always gives the same result."""
    return base64.b64encode(gzip.compress(text.encode(), 9, mtime=0)).decode()
