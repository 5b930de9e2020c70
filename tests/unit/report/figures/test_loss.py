"""Figures of loss and stability show the run's own numbers."""

from __future__ import annotations

from figure_data import rows_in
from qsae_bench.report.figures.loss import loss_figure, stability_figure


def test_values_intervals_and_thresholds_are_the_runs(cells):
    shown = [row for row in rows_in(loss_figure("x", cells).spec) if "q" in row]
    expected = [
        (c.quantization, v.value, v.low, v.high, next(one.bound for one in c.verdicts if one.metric == key))
        for key in ("perplexity_increase_pct", "kl_divergence")
        for c in cells
        for v in [c.metrics[key]]
    ]
    assert [(r["q"], r["value"], r["low"], r["high"], r["bound"]) for r in shown] == expected


def test_stability_has_every_subset_of_the_tokens(cells):
    rows = [row for row in rows_in(stability_figure("x", cells).spec) if "tokens" in row]
    kld = [
        (row["q"], row["tokens"], row["value"]) for row in rows if row["panel"] == "kl_divergence (nats)"
    ]
    assert kld == [
        (cell.quantization, part.tokens, part.metrics["kl_divergence"].value)
        for cell in cells
        for part in cell.stability
    ]


def test_no_loss_and_no_stability_is_no_figure(cells):
    bare = [cell.model_copy(update={"metrics": {}, "layers": {}, "stability": []}) for cell in cells]
    assert loss_figure("x", bare) is stability_figure("x", bare) is None
