"""Colours of figures can be told apart, on a light and a dark page, and by colour-blind readers."""

from __future__ import annotations

import itertools
import re

import pytest

from qsae_bench.report.figures.style import PALETTE, by_name
from qsae_bench.report.html_page import _asset


def linear(colour):
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    return [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]


def luminance(rgb):
    return 0.2126 * rgb[0] + 0.7152 * rgb[1] + 0.0722 * rgb[2]


def contrast(one, other):
    """WCAG 2.2's contrast ratio."""
    high, low = sorted((luminance(linear(one)), luminance(linear(other))), reverse=True)
    return (high + 0.05) / (low + 0.05)


def themes():
    css = _asset("report.css")
    light, dark = re.findall(r":root \{(.*?)\}", css, re.DOTALL)
    return [dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block)) for block in (light, dark)]


@pytest.mark.parametrize("theme", themes(), ids=["light", "dark"])
def test_every_colour_stands_off_its_ground(theme):
    assert contrast("#ffffff", "#000000") == pytest.approx(21)
    for colour in PALETTE:
        assert contrast(colour, theme["page"]) >= 3, "WCAG 1.4.11: graphical objects"
    for name in ("text", "muted", "link"):
        assert contrast(theme[name], theme["page"]) >= 4.5
    for name in ("pass", "fail", "inconclusive", "suspicious", "invalid", "unset"):
        assert contrast(theme[name], theme[f"{name}-soft"]) >= 4.5, "WCAG 1.4.3: text"


DICHROMATS = {
    # Viénot, Brettel & Mollon 1999, on linear RGB
    "protanope": ((0.11238, 0.88762, 0.0), (0.11238, 0.88762, 0.0), (0.00401, -0.00401, 1.0)),
    "deuteranope": ((0.29275, 0.70725, 0.0), (0.29275, 0.70725, 0.0), (-0.02234, 0.02234, 1.0)),
}


@pytest.mark.parametrize("eyes", DICHROMATS)
def test_colour_blind_readers_tell_the_colours_apart(eyes):
    def seen(colour):
        rgb = linear(colour)
        made = [max(0.0, sum(w * c for w, c in zip(row, rgb, strict=True))) for row in DICHROMATS[eyes]]
        x = (0.4124 * made[0] + 0.3576 * made[1] + 0.1805 * made[2]) / 0.9505
        y = luminance(made)
        z = (0.0193 * made[0] + 0.1192 * made[1] + 0.9505 * made[2]) / 1.089
        f = [v ** (1 / 3) if v > 0.008856 else 7.787 * v + 16 / 116 for v in (x, y, z)]
        return 116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])

    for one, other in itertools.combinations(PALETTE, 2):
        distance = sum((a - b) ** 2 for a, b in zip(seen(one), seen(other), strict=True)) ** 0.5
        assert distance > 10, (one, other)


def test_thirty_names_are_told_apart_by_colour_and_shape():
    names = [f"q{i}" for i in range(30)]
    encoding = by_name(names)
    pairs = set(zip(encoding["color"]["scale"]["range"], encoding["shape"]["scale"]["range"], strict=True))
    lines = set(
        zip(
            encoding["color"]["scale"]["range"],
            map(tuple, encoding["strokeDash"]["scale"]["range"]),
            strict=True,
        )
    )
    assert len(pairs) == len(lines) == 30
