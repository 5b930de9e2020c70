"""What holds of the history on any database: SQLite's and PostgreSQL's tests both run it."""

from __future__ import annotations

import multiprocessing
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from builders import one_line
from nights import night, put, run_ids, tree, verdict
from qsae_bench.errors import QsaeError
from qsae_bench.gate.attribution import FailedGate, Setup
from qsae_bench.metrics import METRICS_VERSION
from qsae_bench.report.history import history_lines
from qsae_bench.results.document import RunDocument
from qsae_bench.results.history import schema
from qsae_bench.results.history.importing import import_runs
from qsae_bench.results.history.queries import last_accepted, series
from qsae_bench.results.history.store import History, NoHistory, record_run
from qsae_bench.results.setup import relevant_versions

UNKNOWN = METRICS_VERSION + 1
"""a version of the metrics that only a newer qsae-bench knows"""
GATE = FailedGate("tiny", "nf4", "kl_divergence", None, "≤ 1")


def content(history: History) -> dict[str, set[str]]:
    """Every row of every table."""
    with history.reading() as connection:
        return {
            table.name: {repr(tuple(row)) for row in connection.execute(sa.select(table))}
            for table in schema.metadata.sorted_tables
        }


def setup_of(document: RunDocument) -> Setup:
    return Setup(
        document.environment["gpus"][0]["name"], relevant_versions(document.environment),
        document.corpus["tiny"].fingerprint, "abc", document.corpus["tiny"].batch_size,
        protocol=document.protocol, metrics_version=document.metrics_version,
    )  # fmt: skip


def batches(size: int) -> dict[str, Any]:
    """A change to a night: so many sequences a forward pass."""
    corpus = night().corpus["tiny"].model_copy(update={"batch_size": size})
    return {"corpus": {"tiny": corpus.model_dump()}}


def add_all(url: str, numbers: list[int], start) -> None:
    """In a process of its own: wait for the other, then write as fast as it goes."""
    start.wait(60)
    for number in numbers:
        with History.open(url, create=True) as history:
            history.add(night(number))


class StoreSuite:
    """``url`` is a fixture: a history that doesn't exist yet."""

    def test_what_was_added_reads_back_in_order(self, url):
        values = {number: 0.01 * number for number in (3, 1, 2)}
        with History.open(url, create=True) as history:
            for number, kl in values.items():
                assert history.add(night(number, kl))
            (found,) = series(history, "tiny", "kl_divergence", "nf4")
            layers = series(history, "tiny", "fvu_drift", "nf4", 3)
        assert [one.estimate.value for one in found.runs] == [0.01, 0.02, 0.03]
        assert [one.estimate.high - one.estimate.low for one in found.runs] == pytest.approx([0.004] * 3)
        assert {one.status for one in found.runs} == {"pass"}
        assert found.runs[0].versions["torch"] == "2.13.0"
        assert (found.layer, layers[0].layer, layers[0].runs[0].estimate.value) == (
            None, 3, pytest.approx(0.005),
        )  # fmt: skip

    def test_values_keep_every_bit(self, url):
        odd = 0.1 + 0.2
        with History.open(url, create=True) as history:
            history.add(night(1, odd))
            history.add(night(2, 1e-300))
            history.add(night(3, None))
            (found,) = series(history, "tiny", "kl_divergence", "nf4")
        first, second, third = (one.estimate.value for one in found.runs)
        assert (first, second, third != third) == (odd, 1e-300, True)

    def test_adding_again_changes_nothing(self, url):
        with History.open(url, create=True) as history:
            assert history.add(night(1))
            before = content(history)
            assert not history.add(night(1))
            assert content(history) == before

    def test_another_document_of_the_same_id_is_refused(self, url):
        with History.open(url, create=True) as history:
            history.add(night(1, 0.01))
            before = content(history)
            with pytest.raises(QsaeError) as caught:
                history.add(night(1, 0.02))
            assert content(history) == before
        assert "another document of run 20260101T030000Z-0001" in one_line(caught.value)

    def test_a_run_is_there_whole_or_not_at_all(self, url):
        """A value that no database takes is found while the rows go in."""
        bad = night(1)
        bad.cells[1].metrics["x" * 20_000_000] = bad.cells[1].metrics["kl_divergence"]
        bad.cells[1].verdicts[0] = bad.cells[1].verdicts[0].model_copy(update={"metric": None})
        with History.open(url, create=True) as history:
            with pytest.raises(QsaeError) as caught:
                history.add(bad)
            assert run_ids(history) == []
            history.add(night(2))
            assert len(run_ids(history)) == 1
        one_line(caught.value)

    def test_any_order_and_repetition_gives_the_same_content(self, url, tmp_path):
        folders = [put(tmp_path / "runs", night(number, 0.01 * number)) for number in range(1, 5)]
        with History.open(url, create=True) as history:
            import_runs(history, folders, pytest.fail)
            wanted = content(history)
        rng = random.Random(0)
        for _ in range(4):
            orders = [rng.choice(folders) for _ in range(3)] + rng.sample(folders, len(folders))
            with History.open(url) as history:
                self.empty(history)
                for folder in orders:
                    import_runs(history, [folder], pytest.fail)
                assert content(history) == wanted

    def empty(self, history: History) -> None:
        with history._engine.begin() as connection:
            for table in reversed(schema.metadata.sorted_tables):
                if table is not schema.schema:
                    connection.execute(sa.delete(table))

    def test_two_that_write_at_once_lose_nothing(self, url):
        """Each opens, creates and adds on its own; half of what they add is the same runs."""
        spawn = multiprocessing.get_context("spawn")
        start = spawn.Event()
        shares = (list(range(1, 13)), list(range(7, 19)))
        writers = [spawn.Process(target=add_all, args=(url, share, start)) for share in shares]
        for writer in writers:
            writer.start()
        start.set()
        for writer in writers:
            writer.join(120)
        assert [writer.exitcode for writer in writers] == [0, 0]
        with History.open(url) as history:
            assert run_ids(history) == sorted(night(number).run_id for number in range(1, 19))
            (found,) = series(history, "tiny", "kl_divergence", "nf4")
            assert len(found.runs) == 18

    def test_a_history_of_another_schema_is_refused(self, url):
        with History.open(url, create=True) as history:
            history.add(night(1))
            with history._engine.begin() as connection:
                connection.execute(sa.update(schema.schema).values(version=7))
        for create in (True, False):
            with pytest.raises(QsaeError) as caught:
                History.open(url, create=create)
            assert "a history of schema 7; this version knows 1" in one_line(caught.value)
        assert "schema 7" in record_run(url, night(2), Path("runs/two"))

    def test_tables_of_ours_without_a_schema_are_refused(self, url):
        with History.open(url, create=True) as history, history._engine.begin() as connection:
            schema.schema.drop(connection)
        with pytest.raises(QsaeError) as caught:
            History.open(url, create=True)
        assert "schema unknown" in one_line(caught.value)

    def test_reading_makes_no_history(self, url):
        for _ in range(2):
            with pytest.raises(NoHistory) as caught:
                History.open(url)
            assert "no history yet" in one_line(caught.value)

    def test_what_is_asked_for_and_not_there_is_named(self, url):
        with History.open(url, create=True) as history:
            history.add(night(1))
            for asked, said in (
                (("tini", "kl_divergence"), "no model 'tini' (did you mean 'tiny'?)"),
                (("tiny", "kl_divergens"), "no metric 'kl_divergens' (did you mean 'kl_divergence'?)"),
                (("tiny", "kl_divergence", "nf5"), "no quantization 'nf5' (did you mean 'nf4'?)"),
                (("tiny", "fvu", "nf4", 9), "no layer 9 of fvu; known: 3"),
                (("tiny", "kl_divergence", "nf4", 3), "no layer 3 of kl_divergence; known: none"),
            ):
                with pytest.raises(QsaeError) as caught:
                    series(history, *asked)
                assert said in one_line(caught.value)

    def test_machines_and_texts_are_series_of_their_own(self, url):
        with History.open(url, create=True) as history:
            for number, changes in enumerate(
                [{}, {"gpu": "NVIDIA H100"}, {"fingerprint": "cd" * 16}, {}, {"synthetic": True}], 1
            ):
                history.add(night(number, **changes))
            found = series(history, "tiny", "kl_divergence", "nf4")
        keys = [(one.hardware, one.corpus[:2], one.synthetic, len(one.runs)) for one in found]
        assert keys == [
            ("NVIDIA H100", "ab", False, 1), ("NVIDIA H200", "ab", False, 2),
            ("NVIDIA H200", "ab", True, 1), ("NVIDIA H200", "cd", False, 1),
        ]  # fmt: skip

    def test_ways_of_measuring_are_series_of_their_own(self, url):
        saes = [{"saes": {"tiny": {"3": name}}} for name in ("a/layer3", "b/layer3")]
        with History.open(url, create=True) as history:
            for number, changes in enumerate([{}, batches(8), {"protocol": "study"}, *saes, {}], 1):
                history.add(night(number, **changes))
            whole = series(history, "tiny", "kl_divergence", "nf4")
            layer = series(history, "tiny", "fvu_drift", "nf4")
        assert [(one.protocol, one.batch_size, one.sae, len(one.runs)) for one in whole] == [
            ("", 8, "", 1), ("", 16, "", 4), ("study", 16, "", 1),
        ]  # fmt: skip
        assert [(one.protocol, one.batch_size, one.sae, len(one.runs)) for one in layer] == [
            ("", 8, "", 1), ("", 16, "", 2), ("", 16, "a/layer3", 1), ("", 16, "b/layer3", 1),
            ("study", 16, "", 1),
        ]  # fmt: skip

    def test_a_changed_formula_begins_a_series_and_is_no_change_of_level(self, url):
        """Twelve quiet nights, and as many with another formula that gives twice the number."""
        with History.open(url, create=True) as history:
            for number in range(1, 25):
                version = 1 if number <= 12 else UNKNOWN
                kl = version * (0.01 + 1e-5 * (number % 3))
                history.add(night(number, kl, metrics_version=version))
            found = series(history, "tiny", "kl_divergence", "nf4")
        assert [(one.metrics_version, len(one.runs)) for one in found] == [(1, 12), (UNKNOWN, 12)]
        assert not any("metrics" in name for one in found for name in one.runs[-1].versions)
        lines = list(history_lines(found))
        assert not [line for line in lines if line.startswith("changed on")]
        assert sum("no change of level in 12 runs" in line for line in lines) == 2
        text = " ".join(lines)
        assert (
            f"metrics version {UNKNOWN}: not known to this qsae-bench" in text
            and "series of their own" in text
        )

    def test_a_gate_is_held_against_runs_of_its_own_formulas_only(self, url):
        with History.open(url, create=True) as history:
            history.add(night(1))
            history.add(night(2, metrics_version=UNKNOWN))
            found, same, _ = self.accepted(history, night(9, status="fail"))
            assert found == night(1).run_id and same.setup.differences(setup_of(night(9))) == []
            found, _, _ = self.accepted(history, night(9, status="fail", metrics_version=UNKNOWN))
            assert found == night(2).run_id
            found, _, absent = self.accepted(history, night(9, status="fail", metrics_version=UNKNOWN + 1))
            assert found is None and "no accepted run" in absent

    def test_another_batch_size_is_a_difference_and_another_protocol_no_run_to_compare_with(self, url):
        tonight = night(9, status="fail")
        with History.open(url, create=True) as history:
            history.add(night(1))
            history.add(night(2, **batches(8)))
            history.add(night(3, protocol="study"))
            _, same, _ = self.accepted(history, tonight)
            _, other, _ = self.accepted(history, night(9, status="fail", **batches(4)))
            _, study, _ = self.accepted(history, night(9, status="fail", protocol="study"))
            assert same.run_id == night(1).run_id
            assert (other.run_id, other.setup.differences(setup_of(night(9, **batches(4))))) == (
                night(2).run_id, ["batch size 8 → 4"]
            )  # fmt: skip
            assert study.run_id == night(3).run_id

    # -- the last accepted run

    def accepted(self, history: History, now: RunDocument, gate: FailedGate = GATE):
        found, absent = last_accepted(history, gate, setup_of(now))
        return (found.run_id if found else None), found, absent

    def test_the_last_accepted_run_passed_and_its_reference_was_sane(self, url):
        with History.open(url, create=True) as history:
            for document in (
                night(1, 0.011), night(2, 0.012), night(3, status="fail"), night(4, status="inconclusive"),
                night(5, reference_reason="perplexity 900 is outside the sane range"),
                night(6, gpu="NVIDIA H100"), night(7, synthetic=True),
            ):  # fmt: skip
                history.add(document)
            run_id, found, _ = self.accepted(history, night(8))
        assert run_id == night(2).run_id
        assert found.own["kl_divergence"].value == 0.012
        assert found.reference["cross_entropy"].value == 1.5
        assert "fvu" not in found.reference
        assert (found.bound, found.failed_since, found.tokens) == ("≤ 1", 2, 2032)

    def test_a_gate_of_a_layer_has_the_layers_witnesses(self, url):
        with History.open(url, create=True) as history:
            history.add(night(1))
            _, found, _ = self.accepted(history, night(2), FailedGate("tiny", "nf4", "fvu_drift", 3))
        assert {key: found.reference[key].value for key in found.reference} == {
            "cross_entropy": 1.5, "fvu": 0.08, "l0": 40.0,
        }  # fmt: skip
        assert found.own["fvu"].value == 0.085
        assert found.own["fvu_drift"].value == pytest.approx(0.005)

    def test_the_same_setup_goes_before_the_newest(self, url):
        with History.open(url, create=True) as history:
            history.add(night(1))
            history.add(night(2, versions={"torch": "2.14.0"}))
            assert self.accepted(history, night(3))[0] == night(1).run_id
            newer = night(3, versions={"torch": "2.15.0"})
            run_id, found, _ = self.accepted(history, newer)
        assert run_id == night(2).run_id
        assert found.setup.differences(setup_of(newer)) == ["torch 2.14.0 → 2.15.0"]

    def test_where_nothing_was_accepted_it_says_why(self, url):
        with History.open(url, create=True) as history:
            assert self.accepted(history, night(1))[2].endswith("on NVIDIA H200 to compare with")
            history.add(night(1, gpu="NVIDIA H100"))
            assert self.accepted(history, night(2))[2].endswith("; only on NVIDIA H100")
            history.add(night(2, status="fail"))
            assert (
                "kl_divergence did not pass in any of the 1 recorded" in self.accepted(history, night(3))[2]
            )

    # -- what a document may hold

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            (lambda d: d["cells"].append(d["cells"][1]), "cell 'tiny-nf4' is in it twice"),
            (lambda d: d["cells"][1]["layers"].update(x={"metrics": {}}), "layer 'x' is no layer's number"),
            (lambda d: d.update(command="a\0b"), "a character that no database can store"),
            (lambda d: d["environment"].update(cpu="\ud800"), "a character that no database can store"),
            (lambda d: d["cells"][1].update(tokens=2**70), "beyond 64 bits"),
            (lambda d: d["environment"].update(threads=float("inf")), "beyond any float"),
        ],
    )
    def test_what_no_database_keeps_is_refused(self, url, change, said):
        document = tree(night(1))
        change(document)
        with History.open(url, create=True) as history:
            with pytest.raises(QsaeError) as caught:
                history.add(RunDocument.model_validate(document))
            assert said in one_line(caught.value)
            assert run_ids(history) == []

    def test_the_last_of_two_verdicts_on_a_gate_stands(self, url):
        document = tree(night(1))
        document["cells"][1]["verdicts"] += [verdict("kl_divergence", "fail")]
        with History.open(url, create=True) as history:
            assert history.add(RunDocument.model_validate(document))
            (found,) = series(history, "tiny", "kl_divergence", "nf4")
        assert found.runs[0].status == "fail"

    # -- through the command

    def command(self, url: str, *arguments: object) -> tuple[int, str, str]:
        command = [sys.executable, "-m", "qsae_bench.app.cli.main", "history", "--history", url]
        done = subprocess.run([*command, *map(str, arguments)], capture_output=True, text=True, timeout=120)
        assert "Traceback" not in done.stderr, done.stderr
        return done.returncode, done.stdout, done.stderr

    def test_import_then_show(self, url, tmp_path):
        for number in range(1, 13):
            put(tmp_path / "runs", night(number, 0.01 if number < 8 else 0.03))
        damaged = put(tmp_path / "runs", night(20))
        (damaged / "run.json").write_text('{"schema_version": 1')
        status, out, err = self.command(url, "import", tmp_path)
        assert (status, out) == (2, "")
        lines = err.splitlines()
        assert len(lines) == 2, err
        assert f"{damaged / 'run.json'}: not JSON" in lines[0]
        assert lines[1].endswith("12 imported, 0 already there, 1 failed")
        status, out, err = self.command(url, "--model", "tiny", "--metric", "kl_divergence", "--last", 6)
        assert (status, err) == (0, "")
        text = out.split("tiny-reference")[0]
        assert "changed on 2026-01-08 (run 20260108T030000Z-0008): 0.01 → 0.03 (+200%)" in text
        assert "no version changed in the same run" in " ".join(text.split())
        assert "6 earlier runs are not shown" in text
        marked = [line for line in text.splitlines() if line.endswith("◀ changed")]
        assert [line.split()[2] for line in marked] == ["20260108T030000Z-0008"]
