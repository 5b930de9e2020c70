"""Markdown in which names stay text, and a report written so."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from documents import run_document
from markup import HOSTILE, rendered
from qsae_bench.report.html_page import figures_of
from qsae_bench.report.markdown import escaped, fenced, report_lines, table
from qsae_bench.report.writing import run_parts


def test_what_is_escaped_reads_as_it_was_and_is_nothing_else():
    html = rendered(escaped(HOSTILE))
    assert set(re.findall(r"<(\w+)", html)) == {"p"}
    shown = re.sub(r"<!-- -->|</?p>|\n", "", html)
    for entity, char in (("&lt;", "<"), ("&gt;", ">"), ("&quot;", '"'), ("&amp;", "&")):
        shown = shown.replace(entity, char)
    assert shown == re.sub(r"[\n\r\u202e\u200f]", " ", HOSTILE).strip()
    assert "@team" not in html


LINKS = (
    "#12", "acme/x#3", "GH-7", "@name", "acme/x@0123abc", "me@example.org", "https://example.org/a?b=c",
    "HTTP://example.org", "ftp://example.org", "www.example.org", "0123abcdef", "a" * 40,
)  # fmt: skip
GITHUBS = re.compile(r"#\d|@\w|\b(?:gh-\d|[0-9a-f]{7,40}\b|www\.\w)|\b\w+://\w", re.IGNORECASE)
"""what GitHub's own documents say it makes links of: autolinked references and addresses"""


@pytest.mark.parametrize("link", LINKS)
@pytest.mark.parametrize("around", ["{}", "see {}, and", "({})", "a\n{}", "x_{}_"])
def test_nothing_becomes_a_link(link, around):
    out = escaped(around.format(link))
    assert GITHUBS.search(link) and not GITHUBS.search(out)
    read = re.sub(r"<!-- -->|\\", "", out)
    assert read == around.format(link).replace("\n", " ")


def test_a_table_keeps_its_columns():
    out = "\n".join(table([{"a|b": HOSTILE, "c": "x"}, {"a|b": "\n", "c": "|"}]))
    html = rendered(out)
    assert html.count("<th>") == 2
    assert html.count("<td>") == 4


@pytest.mark.parametrize("line", ["plain", "```", "a ````` b", "~~~", "</code></pre><script>"])
def test_a_fence_holds_whatever_it_is_given(line):
    html = rendered("\n".join([*fenced([line, "next"]), "after"]))
    assert html.count("<pre>") == 1
    assert "<script>" not in html
    assert html.endswith("<p>after</p>\n")


def test_a_report_has_its_tables_and_points_at_the_figures():
    parts = run_parts([(Path("runs/x"), run_document(["m"], ["int8", "nf4"], (3,)))], "")
    text = "\n".join(report_lines(parts, "figures"))
    assert "| m | – | pass | pass |" in text
    names = [figure.name for figure in figures_of(parts)]
    assert re.findall(r'<img src="figures/([\w-]+)\.svg"', rendered(text)) == names
    assert "![" not in "\n".join(report_lines(parts))
