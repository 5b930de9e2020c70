"""Build a run's part of a report: what broke, then why, model by model."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from qsae_bench.gate.accepted import WORSE
from qsae_bench.gate.verdict import FAILING, WORST_FIRST
from qsae_bench.report import sections
from qsae_bench.report.blocks import Block, Code, Heading, PagePart, Paragraph, Section, Table
from qsae_bench.report.model_section import ModelSection, measured
from qsae_bench.report.number_format import counted
from qsae_bench.results.corpus_record import CorpusRecord
from qsae_bench.results.document import RunDocument
from qsae_bench.results.history.queries import Series

MOST_FAILURES = 200
"""rows of what failed; the verdicts' own tables have them all"""


def run_part(
    document: RunDocument, folder: Path, history: Mapping[str, Sequence[Series]], number: int = 1
) -> PagePart:
    """Build a run's part of a report.

    Args:
        folder: of the run, for the commands that show more.
        history: model -> headline series of the history.
        number: of the run in the report; keeps anchors and files of several apart.
    """
    prefix = f"run{number}" if number > 1 else "run"
    anchors = _anchors(prefix, list(dict.fromkeys(cell.model for cell in document.cells)))
    shown = [model for model in anchors if measured(document, model)]
    models = []
    for model in shown:
        section = ModelSection(document, model, anchors[model], folder, history.get(model, ()))
        models.append(Section(anchors[model], model, list(section.blocks())))
    about = Section(f"{prefix}--about", "Environment, corpus, thresholds", list(_about(document, folder)))
    return PagePart(
        name=prefix,
        title=f"Run {document.run_id}",
        tone=tone(document),
        banner=banner(document),
        blocks=[
            *sections.matrix(document, {model: f"#{anchors[model]}" for model in shown}),
            *sections.failed(document, MOST_FAILURES),
            *sections.other_tests(document.failed_tests, MOST_FAILURES),
            *sections.not_measured(document),
        ],
        sections=[*models, about],
    )


def _anchors(prefix: str, models: Sequence[str]) -> dict[str, str]:
    """Return for each model a name for anchors and files that no other model of the report has."""
    found: dict[str, str] = {}
    for model in models:
        name = re.sub(r"[^a-z0-9]+", "-", model.lower()).strip("-")[:40] or "model"
        plain = f"{prefix}-{name}"
        same = sum(other == plain or other.startswith(f"{plain}--") for other in found.values())
        found[model] = f"{plain}--{same + 1}" if same else plain
    return found


def _counts(document: RunDocument) -> dict[str, int]:
    """Count each verdict, the gravest first."""
    every = [v.status for cell in document.cells for v in cell.verdicts]
    return {status: every.count(status) for status in WORST_FIRST if status in every}


def _nothing(document: RunDocument) -> str:
    """Say why a run that judged no quantized cell is not green; '' for a run that judged one."""
    if not any(cell.has_values for cell in document.cells):
        return "nothing was measured"
    quantized = [cell for cell in document.cells if not cell.is_reference]
    gates = any(cell.verdicts for cell in document.cells)
    if quantized and gates and not any(cell.verdicts for cell in quantized) and not document.synthetic:
        return "only references were measured, and no gate"
    return ""


def tone(document: RunDocument) -> str:
    """Return ``fail`` or ``pass``, '' if nothing was judged."""
    found = _counts(document)
    crashed = any(cell.status in ("error", "crashed", "oom") for cell in document.cells)
    worse = any(cell.accepted is not None and cell.accepted.fails for cell in document.cells)
    red = FAILING & found.keys() or sections.invalid(document) or document.failed_tests or worse
    if red or crashed or _nothing(document):
        return "fail"
    return "pass" if found else ""


def banner(document: RunDocument) -> str:
    """Say in a line what came of the run."""
    found = _counts(document)
    total, red = sum(found.values()), sum(n for status, n in found.items() if status in FAILING)
    parts = []
    if red:
        each = ", ".join(f"{n:,} {status}" for status, n in found.items() if status in FAILING)
        parts.append(f"{red:,} of {counted(total, 'gate')} failed: {each}")
    elif why := _nothing(document):
        parts.append(why)
    elif total:
        parts.append(f"{counted(total, 'gate')} passed")
    if suspicious := found.get("suspicious"):
        parts.append(f"{suspicious} suspicious: better than the reference")
    if worse := sum(cell.is_worse for cell in document.cells):
        parts.append(f"{counted(worse, 'cell')} {WORSE}")
    if invalid := sections.invalid(document):
        parts.append(f"{counted(len(invalid), 'cell')} invalid")
    if document.failed_tests:
        parts.append(f"{counted(len(document.failed_tests), 'other test')} failed")
    for status in sections.UNMEASURED_STATUSES:
        if number := sum(cell.status == status for cell in document.cells):
            parts.append(f"{counted(number, 'cell')} {sections.WORDS.get(status, status)}")
    words = {"fail": "red", "pass": "green", "": "nothing was judged"}
    return ": ".join(filter(None, (words[tone(document)], "; ".join(parts))))


def _about(document: RunDocument, folder: Path) -> Iterator[Block]:
    yield sections.about(document)
    if document.corpus:
        corpora = [
            {
                "model": model, "corpus": c.name, "tokens": f"{c.tokens:,}",
                "sequences": f"{c.sequences:,} of {c.sequence_length}", "documents": _documents(c),
                "batch size": str(c.batch_size),
                "fingerprint": c.fingerprint[:16], "source": c.source or "–",
                "dropped": f"{c.dropped_tokens:,} tokens, {c.dropped_documents:,} documents, "
                f"{c.dropped_repeats:,} repeated sequences",
            }
            for model, c in document.corpus.items()
        ]  # fmt: skip
        yield Table(corpora, "Corpus of each model")
    ids = document.neuronpedia
    if saes := [
        {"model": model, "layer": at, "SAE": name, "Neuronpedia": ids.get(model, {}).get(at, "–")}
        for model, layers in document.saes.items()
        for at, name in layers.items()
    ]:
        yield Table(saes, "SAEs", folded=len(saes) > 12)
    if rows := [sections.verdict_row(cell, v) for cell in document.cells for v in cell.verdicts]:
        yield Table(rows, "Every threshold that was judged, and what it rests on", folded=True)
    yield from sections.tokens(document, MOST_FAILURES)
    yield from sections.environment_line(document)
    yield Heading("To run it again")
    yield Code([document.command, f"qsae-bench show {folder}", f"qsae-bench report {folder}"])
    yield Paragraph(
        "Metric names, formulas and units are those of the run document; every value is paired with the "
        "reference on the same tokens, intervals are 95%."
    )


def _documents(corpus: CorpusRecord) -> str:
    if corpus.documents is None:
        return "unknown"
    if corpus.is_one_document:
        return f"{corpus.documents:,} pieces of one"
    most = corpus.sequences_per_document
    return f"{corpus.documents:,}" + (f", at most {counted(most, 'sequence')} of each" if most else "")
