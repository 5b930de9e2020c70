"""What of a run could have moved a number."""

from __future__ import annotations

from nights import night
from qsae_bench.results.setup import relevant_versions, setup_of


def test_versions_that_move_no_number_are_left_out():
    assert relevant_versions({"versions": {"torch": "2", "pytest": "9"}, "threads": 2, "driver": None}) == {
        "torch": "2", "threads": "2",
    }  # fmt: skip
    assert relevant_versions({"versions": "not a table"}) == {}


def test_the_setup_of_a_stored_cell_differs_by_what_changed():
    before, now = night(1), night(2, versions={"torch": "2.14.0"}, gpu="NVIDIA H100")
    changed = now.cells[1].model_copy(update={"recipe": "b" * 12})
    known = before.cells[1].model_copy(update={"recipe": "a" * 12})
    found = setup_of(before, known, 3).differences(setup_of(now, changed, 3))
    assert found == [
        "hardware NVIDIA H200 → NVIDIA H100", "the quantization's entry or code aaaaaaaa → bbbbbbbb",
        "torch 2.13.0 → 2.14.0",
    ]  # fmt: skip
    # a run from before the field says nothing about its recipe
    assert setup_of(before, before.cells[1], 3).differences(setup_of(before, changed, 3)) == []
