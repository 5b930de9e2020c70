"""Operands of ``qsae-bench compare`` that name nothing that can be compared."""

from __future__ import annotations

import pytest

from comparable_runs import first_run, measured, refused, written


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["nf5"], "unknown quantization 'nf5' in first (did you mean 'nf4'?)"),
        (["nf4", "reference"], "'reference' is what every metric already compares with"),
        (["nf4", "nf4"], "nf4 is compared with itself"),
        (["RUN", "RUN"], "first is compared with itself"),
        (["RUN", "nf4"], "a run can't be compared with a quantization"),
        (["nf4", "fp4", "int8"], "compare takes A and B, not 3 names"),
        (["RUN/rows", "nf4"], "rows: no run.json there"),
        (["RUNS:nf4", "nf4"], "can't be read"),
        (["nf4", "--model", "tyny"], "unknown model 'tyny' in first (did you mean 'tiny'?)"),
        (["--model", "tyny"], "unknown model 'tyny'"),
        (["nf4", "--metrics", "fvu_drft"], "unknown metric 'fvu_drft' (did you mean 'fvu_drift'?)"),
        (["nf4", "--metrics", "load_seconds"], "load_seconds is shown beside, not tested"),
    ],
)  # fmt: skip
def test_names_that_mean_nothing(arguments, part):
    assert part in refused(*(text.replace("RUN", str(first_run())) for text in arguments))


def test_more_that_is_refused(tmp_path):
    alone = written(tmp_path / "alone", [measured("reference"), measured("nf4")])
    assert "nf4 is the only quantization of alone" in refused("nf4", at=alone)
    large = written(tmp_path / "large", [measured("nf4", "large")])
    assert "no cell to pair; A has tiny-reference, tiny-nf4; B has large-nf4" in refused(alone, large)
    bare = written(tmp_path / "bare", [measured("reference")])
    assert "unknown quantization 'nf4' in bare: it holds no quantized cell" in refused("nf4", at=bare)
    lost = written(tmp_path / "lost", [measured("nf4"), measured("fp4")])
    (lost / "rows" / "tiny-fp4.parquet").unlink()
    assert "no rows of tiny-fp4 are stored: measure it again" in refused("nf4", "fp4", at=lost)
    random = written(tmp_path / "random", [measured("nf4")], synthetic=True)
    assert "random has random weights (--synthetic): there is no quality to compare" in refused(at=random)
    skipped = written(tmp_path / "skipped", [measured("nf4")], changes={"nf4": {"status": "skipped"}})
    assert "skipped holds no measured cell" in refused(at=skipped)
