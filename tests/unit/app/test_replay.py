"""Cells of a run are stored when their tests are done, and stored cells are replayed."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

from builders import one_line
from qsae_bench.app.replay import CellReplay
from qsae_bench.errors import QsaeError
from qsae_bench.results.document import read_run
from qsae_bench.results.run_folder import RunFolder
from small_run import CELLS, check_rows, document, store_cells


def test_one_cells_lost_rows_do_not_lose_the_others(tmp_path, monkeypatch):
    """Where the run can't be written, what is stored of it goes elsewhere: all of it that can be read."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    folder = RunFolder.create(tmp_path, "c", {})
    replay, warnings = CellReplay.__new__(CellReplay), []
    replay.stored, replay._warn = store_cells(folder, *CELLS), warnings.append
    (folder.path / "rows" / "tiny-int8.parquet").write_bytes(b"damaged")
    error = replay._write_elsewhere(document("20260101T000000Z-0000"), {}, QsaeError("no room"))
    place = Path(re.fullmatch(r"no room; it is stored in (\S+)", one_line(error))[1])
    assert [cell.quantization for cell in read_run(place).cells] == ["reference", "int8", "nf4"]
    for cell in ("tiny-reference", "tiny-nf4"):
        check_rows(place, cell)
    assert not (place / "rows" / "tiny-int8.parquet").exists()
    (line,) = warnings
    assert "tiny-int8.parquet" in line and line.endswith("the rows of tiny-int8 are lost")
    folder.close()
