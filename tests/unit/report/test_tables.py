"""Tables and sentences within 100 columns, and colours that stand in nobody's way."""

from __future__ import annotations

import io
import re
from types import SimpleNamespace

import pytest
from _pytest._io import TerminalWriter
from tabulate import tabulate

from documents import run_document
from qsae_bench.app import plugin
from qsae_bench.errors import plain
from qsae_bench.report.tables import WIDTH, painted, pieces, table, wrapped
from qsae_bench.report.terminal import summary_lines
from qsae_bench.results.failures import Failures
from terminal_width import shown

LONG = "an_organisation/a_model_with_a_name_of_sixty_characters_v1.0"
NUMBERS = {"perplexity": "12,345,678.1234", "change %": "+12,345.678 ± 1,234.567", "tokens/s": "12,345,678"}


class Terminal(io.StringIO):
    def isatty(self):
        return True


def cells(lines: list[str]) -> list[dict[str, str]]:
    """Rows of one table by heading; lines of a row that goes on are joined."""
    (rule,) = (index for index, line in enumerate(lines) if re.fullmatch(r"-+(  +-+)*", line))
    edges = [found.span() for found in re.finditer("-+", lines[rule])]

    def joined(part):
        return [" ".join(line[a:b].strip() for line in part).strip() for a, b in edges]

    rows: list[list[str]] = []
    for line in lines[rule + 1 :]:
        if line[: edges[0][1]].strip() or not rows:
            rows.append([])
        rows[-1].append(line)
    heads = joined(lines[:rule])
    return [dict(zip(heads, joined(row), strict=True)) for row in rows]


def test_a_table_that_fits_is_tabulates_own():
    rows = [{"metric": "fvu", "value": "0.1"}, {"metric": "l0", "value": "40"}]
    assert table(rows) == tabulate(rows, headers="keys", disable_numparse=True).splitlines()


def test_nothing_is_no_table():
    assert table([]) == []


def test_what_is_not_there_is_empty():
    found = cells(table([{"a": 1}, {"a": 2, "b": "x", "c": None}]))
    assert found == [{"a": "1", "b": "", "c": ""}, {"a": "2", "b": "x", "c": ""}]


def test_a_long_name_is_shortened_in_its_middle_and_numbers_stay_whole():
    lines = table([{"quantization": LONG} | NUMBERS | {"rests on": "measured yesterday " * 2}])
    assert max(map(len, lines)) <= WIDTH
    (row,) = cells(lines)
    head, tail = row.pop("quantization").split("…")
    assert LONG.startswith(head) and LONG.endswith(tail) and len(head) > 5 and len(tail) > 5
    assert {key: row[key] for key in NUMBERS} == NUMBERS


def test_names_that_would_look_alike_are_wrapped_whole():
    names = [f"{LONG}{letter}{LONG}" for letter in "ab"]
    lines = table([{"name": name, "about": "word " * 12} for name in names])
    assert max(map(len, lines)) <= WIDTH
    first = "".join(line[: lines[1].index(" ")].strip() for line in lines[2:])
    assert first == "".join(names)


def test_a_reason_is_wrapped_beside_its_metric():
    reason = " ".join(f"word{number}" for number in range(70))
    lines = table([{"verdict": "fail", "metric": "evaluation_tokens_per_second", "rests on": reason}])
    assert max(map(len, lines)) <= WIDTH
    assert cells(lines) == [
        {"verdict": "fail", "metric": "evaluation_tokens_per_second", "rests on": reason}
    ]


def test_many_columns_are_split_and_say_again_whose_they_are():
    values = {f"perplexity_increase_pct {layer}": f"{layer}.001 ± 0.002" for layer in range(9)}
    lines = table([{"tokens": tokens} | values for tokens in ("16,256", "32,512")])
    assert max(map(len, lines)) <= WIDTH
    parts = [part.splitlines() for part in "\n".join(lines).split("\n\n")]
    assert len(parts) > 1
    found: dict[str, dict[str, str]] = {}
    for part in parts:
        for row in cells(part):
            found.setdefault(row.pop("tokens"), {}).update(row)
    assert found == {"16,256": values, "32,512": values}


def test_a_layer_is_said_again_with_its_quantization():
    row = {"quantization": LONG, "layer": "17"} | {f"a_column_{n}": "w" * 30 for n in range(5)}
    lines = table([row])
    assert max(map(len, lines)) <= WIDTH
    assert sum(line.split()[:2] == ["quantization", "layer"] for line in lines) > 1


@pytest.mark.parametrize("text", ["量" * 30, "한국어 모델" * 12, "Ａ" * 200])
def test_wide_characters_count_twice(text):
    lines = [*table([{"quantization": text, "value": "0.1", "about": text}]), *wrapped(f"note: {text}")]
    assert max(map(shown, lines)) <= WIDTH
    rules = [line for line in lines if line.startswith("---")]
    assert rules and "\ue000" not in "".join(lines)


def test_a_row_of_wide_characters_stands_under_its_headings():
    lines = table([{"name": "量化", "value": "0.1"}])
    assert shown(lines[-1][: lines[-1].index("0.1")]) == lines[0].index("value")


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("a\nb", "a b"),
        ("a \r\n\t b", "a b"),
        ("two\n", "two"),
        ("\x1b[31mred\x1b[0m", " [31mred [0m"),
        ("\u202eright\u202c to \u2067left\u2069", " right  to  left "),
        ("\u200fmark\u200b", " mark "),
        ("a\u2028b\x85c\x0bd", "a b c d"),
        ("\x9b31m\x07\x7f\ud800", " 31m   "),
        ("  spaces  stay  ", "  spaces  stay  "),
        ("1,234 ± 5 – § 量 é", "1,234 ± 5 – § 量 é"),
    ],
)
def test_what_is_cleaned(text, read):
    assert plain(text) == read
    assert plain(read) == read


VERDICTS = [
    {"quantization": word, "value": "0.1", "verdict": word}
    for word in ("pass", "fail", "invalid", "unset", "inconclusive", "suspicious", "–", "red")
]


def test_verdicts_know_their_colours():
    colours = [[colour for _, colour in pieces(line) if colour] for line in table(VERDICTS)[2:]]
    assert colours == [["green"], ["red"], ["red"], ["red"], ["yellow"], ["yellow"], [], []]


def test_a_name_that_is_a_verdict_is_not_coloured():
    line = table(VERDICTS)[2]
    assert [text for text, colour in pieces(line) if colour] == ["pass"]
    assert next(pieces(line))[0].startswith("pass ")


@pytest.mark.parametrize(
    ("environment", "stream", "coloured"),
    [
        ({}, Terminal(), True),
        ({}, io.StringIO(), False),
        ({"TERM": "dumb"}, Terminal(), False),
        ({"NO_COLOR": "1"}, Terminal(), False),
        ({"FORCE_COLOR": "1"}, io.StringIO(), True),
        ({"NO_COLOR": "1", "FORCE_COLOR": "1"}, io.StringIO(), False),
        ({"PY_COLORS": "0"}, Terminal(), False),
        ({"PY_COLORS": "1"}, io.StringIO(), True),
    ],
)
def test_colour_is_only_where_it_is_wanted(environment, stream, coloured):
    lines = table(VERDICTS)
    found = list(painted(lines, stream, environment))
    assert ("\x1b" in "".join(found)) is coloured
    assert [re.sub(r"\x1b\[\d+m", "", line) for line in found] == lines, "the columns don't move"


def test_an_escape_in_a_line_is_none_when_it_is_printed():
    assert list(painted(["a\x1b[31mb"], Terminal(), {})) == ["a [31mb"]


# -- in pytest's summary ----------------------------------------------------------------------------


class Reporter:
    """What of pytest's terminal reporter the summary uses, on its real writer."""

    def __init__(self, coloured):
        self.written = io.StringIO()
        self._tw = TerminalWriter(self.written)
        self._tw.hasmarkup = coloured

    def ensure_newline(self):
        pass

    def write(self, text, **markup):
        self._tw.write(text, **markup)

    def section(self, title):
        self._tw.line(title)


@pytest.mark.parametrize("coloured", [True, False])
def test_the_summary_in_pytest(coloured, tmp_path):
    statuses = {("m", "nf4"): "fail", ("m", "int8"): "pass", ("m", "fp4\x1b[35m"): "inconclusive"}
    document = run_document(["m"], [name for _, name in statuses], (3,), statuses)
    state = SimpleNamespace(
        concluded=True, settings=None, config=None, document=document, outcome=tmp_path, not_written=["l" * 200], warnings=[], status=1,
        failures=Failures(),
    )  # fmt: skip
    reporter = Reporter(coloured)
    plugin.BenchmarkPlugin(state, None).pytest_terminal_summary(reporter)
    written = reporter.written.getvalue()
    for word, code in (("fail", 31), ("pass", 32), ("inconclusive", 33)):
        assert (f"  \x1b[{code}m{word}\x1b[0m\n" in written) is coloured
    assert "\x1b[35m" not in written
    bare = re.sub(r"\x1b\[\d+m", "", written).splitlines()
    assert bare[1 : 1 + len(list(summary_lines(document)))] == list(summary_lines(document))
    whole = [
        line for line in bare if line.startswith(("run: ", "ERROR: "))
    ]  # paths and commands: in one piece
    assert whole[0] == "ERROR: " + "l" * 200
    assert max(len(line) for line in bare if line not in whole) <= WIDTH
    assert coloured == ("\x1b" in written)
