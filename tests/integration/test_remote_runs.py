"""Runs of the benchmarks with references on an S3 server: the numbers of a folder's, and one reference pass."""

from __future__ import annotations

import pytest

import killing
import running
import s3_server
from qsae_bench.gate.exit_status import USAGE_ERROR
from qsae_bench.gate.thresholds import Thresholds
from qsae_bench.measure.store.local import LocalStore
from qsae_bench.registry.entries import Selection, load_registry
from store_places import Place

FEW = ("-k", "perplexity or fvu", "--quantizations", "rtn_int4")
SECRET = "pa/ss@w:rd"


@pytest.fixture
def place(tmp_path, monkeypatch):
    for name, value in s3_server.environment().items():
        monkeypatch.setenv(name, value)
    return Place("s3", tmp_path)


def reference_of(document):
    (found,) = [cell for cell in document["cells"] if cell["quantization"] == "reference"]
    return found


def test_the_same_numbers_and_one_reference_pass(place, tmp_path):
    given = (*FEW, "--reference-store", place.url, "--isolate")
    statuses = {
        killing.run(tmp_path / name, *arguments)[0]
        for name, arguments in (("local", FEW), ("first", given), ("second", given))
    }
    assert len(statuses) == 1
    local, first, second = (killing.latest(tmp_path / name) for name in ("local", "first", "second"))
    assert killing.measured(first) == killing.measured(local)
    for document in (first, second):  # what only a loaded model tells
        for key in ("weight_bytes", "bits_per_weight"):
            assert (reference_of(document)["metrics"].pop(key, None) is None) == (document is second)
    assert killing.measured(first) == killing.measured(second)
    assert "load_seconds" in reference_of(first)["metrics"]
    assert "load_seconds" not in reference_of(second)["metrics"]
    assert len(place.entries()) == 1
    assert not (tmp_path / "first" / "references").exists()


@pytest.fixture
def cells():
    few = Selection(models=("tiny_gemma3",), quantizations=("reference", "rtn_int4"))
    return {cell.quantization.name: cell for cell in load_registry().select(few)}


def test_what_turns_out_damaged_is_rebuilt_in_the_run(sessions, place, tmp_path, cells):
    """Its size is right, so it is noticed only when rows are read: with the quantized model loaded."""

    def session(machine):
        return sessions(
            load_registry(), Thresholds({}), selection=Selection(tokens=2032), reference_store=place.url,
            qsae_dir=tmp_path / machine,
        )  # fmt: skip

    def value(one):
        return one.measure(cells["rtn_int4"]).estimates.cell["kl_divergence"].value

    before = value(session("first"))
    (key,) = place.entries()
    name = place.named(key, "rows-00000.safetensors")
    content = place.files()[name]
    place.put(name, content[:-9] + bytes(9))
    assert value(session("second")) == before
    (said,) = [line for line in sessions.said if "rebuilt" in line]
    assert f"{name} is damaged (checksum differs)" in said
    sessions.said.clear()
    assert value(session("third")) == before
    assert sessions.said == []


def test_a_store_that_is_no_bucket_fails_the_cell_in_one_line(sessions, place, tmp_path, cells):
    from qsae_bench.errors import QsaeError

    one = sessions(
        load_registry(), Thresholds({}), selection=Selection(tokens=2032), reference_store="s3://no-such/x"
    )
    with pytest.raises(QsaeError, match="reference store s3://no-such/x: can't be written") as refused:
        one.measure(cells["reference"])
    assert "\n" not in str(refused.value)


def test_refused_as_an_option_in_one_line(tmp_path):
    few = ("--qsae-dir", str(tmp_path), "--collect-only", "-q")
    status, output = running.benchmarks(*few, "--reference-store", "memory://x", "--no-reference-store")
    assert status == USAGE_ERROR
    assert "ERROR: --reference-store and --no-reference-store: give one of them\n" in output
    status, output = running.benchmarks(*few, "--reference-store", f"s4://u:{SECRET}@x/y")
    assert status == USAGE_ERROR
    assert "unknown scheme 's4' (did you mean 's3'?)" in output
    assert SECRET not in output


def test_no_password_is_in_what_a_run_leaves(tmp_path):
    url = f"ftp://user:{SECRET}@127.0.0.1:9/x"
    few = ("-k", "perplexity and rtn_int4", "--tokens", "2032", "--qsae-dir", str(tmp_path))
    status, output = running.benchmarks(*few, f"--reference-store={url}")
    assert status != 0
    assert "reference store ftp://user:***@127.0.0.1:9/x: can't be reached: " in output
    left = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert any(b"--reference-store=ftp://user:***@127.0.0.1:9/x" in content for content in left)
    for text in (output.encode(), *left):
        assert SECRET.encode() not in text


def test_another_folder(sessions, tmp_path, cells):
    one = sessions(
        load_registry(),
        Thresholds({}),
        selection=Selection(tokens=2032),
        reference_store=str(tmp_path / "shared"),
    )
    one.measure(cells["reference"])
    assert isinstance(one.store, LocalStore)
    assert len(list((tmp_path / "shared").iterdir())) == 1
    assert not (tmp_path / "references").exists()
