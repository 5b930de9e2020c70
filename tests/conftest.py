"""Fixtures of all tests, and those shared by tests that run a pass."""

from __future__ import annotations

import gc
import os
import signal
import sys

import pytest

pytest_plugins = ["pytester"]

LONGEST = (
    "test_local_workers", "test_ray_workers", "test_red_night", "test_kill", "test_kill_often",
    "test_fuzz_registry", "test_fuzz_history", "test_synthetic", "test_memory", "test_resume",
    "test_gate_is_red", "test_hub_failures", "test_local_hub", "test_real_world_failures", "test_extension",
    "test_compare_cli",
)  # fmt: skip
"""files of tests/integration and tests/nightly: of several processes none should be left with one of these
when the others have nothing more to do"""


def pytest_configure() -> None:
    # a shell that starts us in the background has it ignored, and so would be what the tests interrupt
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # of runs that the tests start: as a part of ours pytest-benchmark would not time, and where CI is set,
    # pytest's list of failures repeats each message whole
    for name in ("PYTEST_XDIST_WORKER", "PYTEST_XDIST_WORKER_COUNT", "CI", "BUILD_NUMBER"):
        os.environ.pop(name, None)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """For several processes: the longest first."""
    if hasattr(config, "workerinput"):
        places = {name: place for place, name in enumerate(LONGEST)}
        items.sort(key=lambda item: places.get(item.path.stem, len(LONGEST)))


@pytest.fixture(autouse=True)
def imports_are_no_garbage():
    """What is alive once sae-lens is imported, a million objects, is not searched for garbage again.

    Each load of a model collects, several times; nearly half of the time of the sessions' tests went there.
    """
    if "sae_lens" in sys.modules and not gc.get_freeze_count():
        gc.collect()
        gc.freeze()


@pytest.fixture
def paired(tmp_path):
    """``paired(model_r, model_q, corpus, saes)`` -> (measurement, stored reference), through the store."""
    import torch

    import stand_ins
    from qsae_bench.measure.evaluation import evaluate
    from qsae_bench.measure.store.local import LocalStore
    from qsae_bench.models.taps import Subject

    def run(model_r, model_q, corpus, saes, key="key", **options):
        store = LocalStore(tmp_path / "references", 1 << 40)
        stored = store.open(key, "cpu")
        if stored is None:
            store.write(key, stand_ins.reference_pass(model_r, corpus, tuple(saes)))
            stored = store.open(key, "cpu")
        subject = Subject(model_q, torch.device("cpu")) if model_q is not None else None
        name = "reference" if model_q is None else "damaged"
        cell = stand_ins.cell(name, width=model_r.config.hidden_size)
        return evaluate(cell, corpus, stored, saes, "cpu", subject, **options), stored

    return run


@pytest.fixture
def sessions(tmp_path):
    """``sessions(registry, thresholds, **options)`` opens one, and closes it after the test.

    What they say is in ``sessions.said``.
    """
    from qsae_bench.run.local_session import LocalSession
    from qsae_bench.run.session import SessionOptions

    opened = []

    def make(registry, thresholds, **options):
        settings = {"qsae_dir": tmp_path, "command": "test", "on_warning": make.said.append}
        made = LocalSession(SessionOptions(registry, thresholds, **settings | options))
        opened.append(made)
        return made

    make.said = []
    yield make
    for one in opened:
        one.close()
