"""A run document as rows: what identifies it."""

from __future__ import annotations

from nights import night, tree
from qsae_bench.results.document import RunDocument
from qsae_bench.results.history.flatten import digest


def test_a_field_added_later_changes_no_digest():
    """An old document read by newer software is the same document."""
    document = tree(night(1))
    for cell in document["cells"]:
        for field in ("warnings", "stability", "beside", "accepted", "recipe"):
            cell.pop(field, None)
    assert digest(RunDocument.model_validate(document)) == digest(night(1))
    assert digest(night(1, 0.02)) != digest(night(1))
