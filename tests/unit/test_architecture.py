"""Hold the pages to the code: every name, path, command and link in them exists."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from paths import ROOT
from qsae_bench.app.cli.main import COMMANDS
from qsae_bench.app.options import EVERY

PACKAGE = ROOT / "src" / "qsae_bench"
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])
NAMES = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or path.is_dir()}
FILES = {"py", "toml", "md", "sh", "yml", "json", "png", "html", "xml", "sqlite", "parquet", "safetensors"}

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def prose(page: Path) -> str:
    """The page without its blocks of code."""
    return re.sub(r"^(`{3,}).*?^\1$", "", text_of(page), flags=re.MULTILINE | re.DOTALL)


# -- names of the code --------------------------------------------------------------------------------


def dotted_names(text: str) -> Iterator[str]:
    """Names of modules, functions and classes in code spans, from the package on."""
    for span in re.findall(r"`([^`\n]+)`", text):
        found = re.fullmatch(r"(?:qsae_bench\.)?((\w+)(?:\.\w+)+)(?:\(.*\))?", span)
        if found and found[2] in NAMES and found[1].rpartition(".")[2] not in FILES:
            yield found[1]


def exists(dotted: str) -> bool:
    """Whether a name below ``qsae_bench`` can be imported; a field of a dataclass or a document counts."""
    parts = dotted.split(".")
    for end in range(len(parts), 0, -1):
        try:
            value = importlib.import_module(".".join(["qsae_bench", *parts[:end]]))
        except ModuleNotFoundError:
            continue
        for name in parts[end:]:
            fields = getattr(value, "__dataclass_fields__", None) or getattr(value, "model_fields", {})
            if not hasattr(value, name) and name not in fields:
                return False
            value = getattr(value, name, None)
        return True
    return False


@pages
def test_names_of_the_code_exist(page):
    assert [name for name in dotted_names(prose(page)) if not exists(name)] == []


def test_the_search_finds_a_name_that_is_gone():
    text = "`gate.verdict.decide` and `qsae_bench.gate.verdict.decides(x)`, `run.json`, `metrics.base.Metric.unit`"
    found = list(dotted_names(text))
    assert found == ["gate.verdict.decide", "gate.verdict.decides", "metrics.base.Metric.unit"]
    assert [exists(name) for name in found] == [True, False, True]


def test_architecture_walks_the_whole_way():
    """From options to the report, and through every package."""
    names = list(dotted_names(prose(ROOT / "docs" / "architecture.md")))
    assert len(names) > 30
    packages = {path.parent.name for path in PACKAGE.glob("*/__init__.py")} - {"tiny"}
    assert {name.split(".")[0] for name in names} == packages


# -- paths --------------------------------------------------------------------------------------------


def paths(text: str) -> Iterator[str]:
    """Paths of this repository: those that begin with one of its folders, or a package's."""
    folders = "|".join(
        [*sorted(NAMES), "src", "tests", "docs", "benchmarks", "tools", r"\.github", r"\.ci"]
    )
    for path in re.findall(rf"(?<![\w./<-])(?:{folders})/[\w./*-]*", text):
        if "." in path.rpartition("/")[2] or path.endswith("/"):
            yield path.rstrip(".")


def files_at(path: str) -> list[Path]:
    """What a path names: from the repository, the package or the pages on."""
    return [file for home in (ROOT, PACKAGE, ROOT / "docs") for file in home.glob(path.rstrip("/"))]


def is_path(path: str) -> bool:
    return bool(files_at(path))


@pages
def test_paths_exist(page):
    """Also those in blocks of code: their commands are copied."""
    assert sorted({path for path in paths(text_of(page)) if not is_path(path)}) == []


def test_the_search_finds_a_path_that_is_gone():
    text = "`gate/verdict.py`, `gate/verdicts.py`: pytest tests/test_report.py -s; s3://BUCKET/tests/x.py"
    assert [path for path in paths(text) if not is_path(path)] == [
        "gate/verdicts.py",
        "tests/test_report.py",
    ]


def test_architecture_names_files_in_full():
    """A file without its folder is found by nobody who has never seen the code."""
    spans = re.findall(r"`([\w./]+\.(?:py|toml))`", prose(ROOT / "docs" / "architecture.md"))
    assert [span for span in spans if not is_path(span)] == []


def test_what_is_to_be_edited_is_in_the_file_named_beside_it():
    """The table "To change X, edit Y" names functions too: each is in a file of its row."""
    text = text_of(ROOT / "docs" / "architecture.md")
    rows = text.partition("## To change X, edit Y")[2].splitlines()
    assert len(rows) > 20
    for row in rows:
        spans = re.findall(r"`([^`]+)`", row)
        named = [file for span in spans if "/" in span or "." in span for file in files_at(span)]
        files = [file for one in named for file in (one.rglob("*.py") if one.is_dir() else [one])]
        code = "\n".join(map(text_of, files))
        for name in spans:
            if re.fullmatch(r"\w+(\.\w+)?(\(\w*\))?", name) and not files_at(name):
                parts = re.split(r"[.(]", name.rstrip(")"))
                assert all(re.search(rf"\b{part}\b", code) for part in parts if part), (name, row)


# -- commands -----------------------------------------------------------------------------------------


@pages
def test_commands_exist(page):
    text = text_of(page)
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    assert targets is not None
    # `make a b` in code: the first word is enough where prose goes on
    made = set(re.findall(r"(?:^|`)make ([a-z][a-z-]*)", text, re.MULTILINE))
    assert made <= set(targets[1].split())
    assert set(re.findall(r"(?:^|`|\$ )qsae-bench ([a-z]+)", text, re.MULTILINE)) <= set(COMMANDS)


def test_every_option_is_described():
    """An option that is on no page is known only to who reads ``--help``; one that is gone helps nobody."""
    text = "\n".join(map(text_of, PAGES))
    assert [name for name in EVERY if name not in text] == []
    table = re.search(r"^## Options\n(.*?)^## ", text_of(ROOT / "README.md"), re.MULTILINE | re.DOTALL)
    assert table is not None
    named = {
        name for row in table[1].splitlines() for name in re.findall(r"--[a-z][a-z-]*", row.split(" | ")[0])
    }
    assert named - set(EVERY) == {"--strict"}  # pytest's own


# -- links --------------------------------------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    """What a link into a page can name: its headings as GitHub makes them into ids, and its own ids."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE):
        words = re.sub(r"[^\w\- ]", "", re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower())
        found.add(words.strip().replace(" ", "-"))
    return found | set(re.findall(r'<a id="([^"]+)">', text_of(page)))


def dead_links(page: Path) -> list[str]:
    dead = []
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            dead.append(link)
    return dead


@pages
def test_links_lead_somewhere(page):
    assert dead_links(page) == []


def test_a_dead_link_is_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "# A b, `c`\n[x](#a-b-c) [x](#gone) [x](gone.md) [x](https://gone) [x](page.md#a-b-c)\n"
    )
    assert dead_links(page) == ["#gone", "gone.md"]


@pages
def test_every_page_is_linked_from_another(page):
    others = [
        (other, link)
        for other in PAGES
        if other != page
        for link in re.findall(r"\]\(([^)\s#]+)", text_of(other))
    ]
    assert page == ROOT / "README.md" or page in {(other.parent / link).resolve() for other, link in others}
