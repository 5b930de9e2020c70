"""Ray's engine without Ray: what is waited for, what is lost, and how a cluster is connected to."""

from __future__ import annotations

import threading

import pytest

from qsae_bench.run.workers.dispatch import WorkerLost
from qsae_bench.run.workers.ray import CONNECT_ATTEMPTS, RayEngine, connect, message_of

H100 = {"CPU": 16.0, "GPU": 2.0, "memory": 64.0, "accelerator_type:H100": 1.0}
T4 = {"CPU": 16.0, "GPU": 4.0, "memory": 64.0, "accelerator_type:T4": 1.0}


class Timeout(Exception):
    pass


class Never:
    """A Ray that has no answer for so many checks; nodes as they are at each."""

    class exceptions:
        GetTimeoutError = Timeout
        RayTaskError, RaySystemError, RayError = ZeroDivisionError, EOFError, OSError

    def __init__(self, checks):
        self.checks, self.asked, self.cancelled = list(checks), [], []

    def remote(self, *arguments):
        self.asked.append(arguments)
        return "running"

    def nodes(self):
        return [{"Alive": True, "Resources": node} for node in self.checks.pop(0)]

    def get(self, running, timeout):
        if not self.checks:
            return "done"
        raise Timeout

    def cancel(self, running, force):
        self.cancelled.append(running)


def engine_on(cluster):
    engine = RayEngine.__new__(RayEngine)
    engine._ray, engine._closed, engine._running, engine._mine = cluster, False, set(), False
    engine._submitting = threading.Lock()
    return engine


ONE_H100 = {"num_cpus": 2, "num_gpus": 1, "memory": 0, "accelerator_type": "H100"}


def test_a_task_that_no_node_can_take_any_more_is_lost_when_that_was_seen_twice():
    cluster = Never([[H100], [T4], [H100], [T4], [T4], [H100]])
    with pytest.raises(WorkerLost, match="the node that could take it is gone"):
        engine_on(cluster)._submit(cluster, ONE_H100)
    assert cluster.cancelled == ["running"] and len(cluster.checks) == 1


def test_a_task_that_a_node_could_take_is_waited_for():
    cluster = Never([[H100, T4], [T4], [T4, H100], [T4], [H100]])
    assert engine_on(cluster)._submit(cluster, ONE_H100) == "done"
    assert not cluster.cancelled


def test_nothing_is_handed_to_ray_once_the_run_has_ended():
    """Ray would connect anew, or start a cluster."""
    cluster = Never([])
    engine = engine_on(cluster)
    engine.close()
    with pytest.raises(WorkerLost, match="the run has ended"):
        engine._submit(cluster, ONE_H100)
    assert not cluster.asked


def test_nor_is_ray_asked_again_for_what_was_waited_for_at_the_end(monkeypatch):
    cluster = Never([[H100], [H100], [H100]])
    engine = engine_on(cluster)
    monkeypatch.setattr(engine, "_nodes", lambda: [engine.close(), H100][1:])
    with pytest.raises(WorkerLost, match="the run has ended"):
        engine._submit(cluster, ONE_H100)


class Head:
    """Fails so often, in this way."""

    def __init__(self, failures, error):
        self.failures, self.error, self.asked = failures, error, []

    def init(self, address, **options):
        self.asked.append(address)
        if len(self.asked) <= self.failures:
            raise self.error


BUSY = ConnectionAbortedError(
    "Initialization failure from server:\nTraceback …\nRuntimeError: not there in time\n"
)


def test_a_head_that_is_slow_to_serve_a_client_is_asked_again():
    head = Head(CONNECT_ATTEMPTS - 1, BUSY)
    connect(head, "ray://there:10001")
    assert head.asked == ["ray://there:10001"] * CONNECT_ATTEMPTS


@pytest.mark.parametrize(
    ("error", "times"), [(BUSY, CONNECT_ATTEMPTS), (ConnectionError("ray client connection timeout"), 1)]
)
def test_one_that_never_does_or_is_not_there_is_not_asked_without_end(error, times):
    head = Head(100, error)
    with pytest.raises(ConnectionError):
        connect(head, "ray://there:10001")
    assert len(head.asked) == times


def test_what_ray_says_is_one_line_with_the_cause():
    assert message_of(BUSY) == "Initialization failure from server: RuntimeError: not there in time"
    assert (
        message_of(ConnectionError("ray client connection timeout\nmore"))
        == "ray client connection timeout"
    )
    assert message_of(ValueError()) == "ValueError"
