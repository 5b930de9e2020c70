"""Print a metric's history as a table, and its changes of level in words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from qsae_bench.gate.attribution import version_differences
from qsae_bench.metrics import METRICS, VERSIONS
from qsae_bench.report.tables import table, wrapped
from qsae_bench.results.history.queries import RunValue, Series
from qsae_bench.stats import changepoints
from qsae_bench.stats.changepoints import FEWEST_POINTS, LevelChange, LevelChanges

CHANGED, STANDS_OUT = "◀ changed", "◀ off"
SHOWN_VERSIONS = ("torch", "transformers", "bitsandbytes", "driver", "cuda")


def finite_runs(one: Series) -> list[RunValue]:
    """Return the runs of a series whose values are finite."""
    return [run for run in one.runs if run.estimate.is_finite]


def level_changes(one: Series) -> LevelChanges:
    """Find the changes of level in the finite runs of a series."""
    found = [(run.estimate, run.tokens) for run in finite_runs(one)]
    points = [changepoints.Point(e.value, e.half_width, tokens) for e, tokens in found]
    return changepoints.find_level_changes(points)


def has_changed(one: Series) -> bool:
    """Tell whether the level of a series changed, or its newest run is off it."""
    known = level_changes(one)
    return bool(known.found) or known.stands_out


def history_lines(found: Sequence[Series], last: int = 0) -> Iterator[str]:
    """Yield each series, oldest run first; ``last`` > 0 shows only so many of them."""
    for number, one in enumerate(found):
        if number:
            yield ""
        yield from _series_lines(one, last)


def _series_lines(one: Series, last: int) -> Iterator[str]:
    finite, known = finite_runs(one), level_changes(one)
    changed = {finite[change.index].run_id for change in known.found}
    place = "" if one.layer is None else f" layer {one.layer}"
    unit = METRICS[one.metric].unit if one.metric in METRICS else ""
    yield from wrapped(f"{one.model}-{one.quantization}{place}: {one.metric}{f' ({unit})' if unit else ''}")
    weights = "; random weights" if one.synthetic else ""
    how = f", batch size {one.batch_size}" if one.batch_size else ""
    how += f", SAE {one.sae}" if one.sae else ""
    how += f", protocol {one.protocol}" if one.protocol else ""
    how += f", metrics version {one.metrics_version}" if one.metrics_version > 1 else ""
    yield from wrapped(f"on {one.hardware}, corpus {one.corpus[:8] or 'none'}{how}{weights}")
    skipped = max(0, len(one.runs) - last) if last > 0 else 0
    off = finite[-1].run_id if known.stands_out else ""
    before = one.runs[skipped - 1].versions if skipped else {}
    rows = []
    for run in one.runs[skipped:]:
        mark = CHANGED if run.run_id in changed else STANDS_OUT if run.run_id == off else ""
        rows.append(_row(run, before, mark))
        before = run.versions
    yield from table(rows)
    if skipped:
        yield f"{skipped} earlier runs are not shown"
    for line in (*words(one), *formula_notes([one])):
        yield from wrapped(line)


def words(one: Series) -> Iterator[str]:
    """Say what the runs of a series show about its level."""
    values, known = finite_runs(one), level_changes(one)
    if known.too_few:
        runs = "1 run is" if len(values) == 1 else f"{len(values)} runs are"
        yield f"{runs} too few to tell a change of level from noise: {FEWEST_POINTS} are needed"
        return
    for change in known.found:
        yield _change(values, change)
    if known.stands_out:
        yield (
            f"the newest run is off its level; whether that lasts, the next one shows "
            f"({values[-1].estimate.value:.6g})"
        )
    if not known.found and not known.stands_out:
        yield f"no change of level in {len(values)} runs"


def formula_notes(found: Sequence[Series]) -> Iterator[str]:
    """Say where series begin because the formulas changed: earlier values are in series of their own."""
    for version in sorted({one.metrics_version for one in found} - {1}):
        changed = VERSIONS.get(version, "not known to this qsae-bench")
        yield f"metrics version {version}: {changed}; values of other versions are series of their own"


def _row(run: RunValue, before: dict[str, str], mark: str) -> dict[str, str]:
    e = run.estimate
    width = f" ± {e.half_width:.2g}" if e.half_width else ""
    value = f"{e.value:.6g}{width}" if e.is_finite else "not finite"
    shown = ", ".join(f"{k} {run.versions[k]}" for k in SHOWN_VERSIONS if k in run.versions)
    return {
        "date": run.started[:16].replace("T", " "), "run": run.run_id, "value": value,
        "tokens": f"{run.tokens:,}", "verdict": run.status or "–",
        "versions": ", ".join(version_differences(before, run.versions)) if before else shown, "": mark,
    }  # fmt: skip


def _change(values: Sequence[RunValue], change: LevelChange) -> str:
    run, eve = values[change.index], values[change.index - 1]
    percent = f" ({100 * (change.after / change.before - 1):+.3g}%)" if change.before else ""
    together = version_differences(eve.versions, run.versions)
    return (
        f"changed on {run.started[:10]} (run {run.run_id}): {change.before:.6g} → {change.after:.6g}"
        f"{percent}; {', '.join(together) or 'no version changed'} in the same run"
    )
