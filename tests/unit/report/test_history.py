"""The history as it is printed: changes of level in words, versions beside them."""

from __future__ import annotations

from nights import night
from qsae_bench.report.history import history_lines
from qsae_bench.results.history.queries import series
from qsae_bench.results.history.store import History
from qsae_bench.results.history.url import default_url


def shown(tmp_path, documents, *options, metric="kl_divergence"):
    with History.open(default_url(tmp_path), create=True) as history:
        for document in documents:
            history.add(document)
        return "\n".join(history_lines(series(history, "tiny", metric, "nf4"), *options))


def test_versions_are_named_at_the_change(tmp_path):
    text = shown(
        tmp_path,
        [
            night(
                number, 0.01 if number < 9 else 0.02, versions={"torch": "2.12" if number < 9 else "2.13"}
            )
            for number in range(1, 15)
        ],
    )
    assert (
        "changed on 2026-01-09 (run 20260109T030000Z-0009): 0.01 → 0.02 (+100%); torch 2.12 → 2.13 in the "
        "same run" in " ".join(text.split())
    )
    marked = next(line for line in text.splitlines() if "20260109T" in line)
    assert "torch 2.12 → 2.13" in marked
    assert marked.endswith("◀ changed")


def test_a_machine_switch_is_no_change(tmp_path):
    text = shown(
        tmp_path,
        [
            night(n, 0.01 if n % 2 else 0.05, gpu="NVIDIA H200" if n % 2 else "NVIDIA H100")
            for n in range(1, 25)
        ],
    )
    assert "changed" not in text
    assert text.count("no change of level in 12 runs") == 2


def test_a_value_that_is_not_finite_is_shown_and_left_out_of_the_levels(tmp_path):
    text = shown(tmp_path, [night(n, None if n == 5 else 0.01) for n in range(1, 11)])
    assert "not finite" in text
    assert "no change of level in 9 runs" in text


def test_few_nights_say_so(tmp_path):
    assert "3 runs are too few to tell a change" in shown(tmp_path, [night(n) for n in range(1, 4)])


def test_absolute_times_are_kept(tmp_path):
    """A time of another night decides nothing, and is there to look at."""
    assert "load_seconds (s)" in shown(tmp_path, [night(1)], metric="load_seconds")
