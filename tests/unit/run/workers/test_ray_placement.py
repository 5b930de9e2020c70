"""How Ray is asked: for a connection, and for what a task needs, on which kind of GPU."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qsae_bench.errors import QsaeError
from qsae_bench.run.workers.engine import Lost
from qsae_bench.run.workers.ray import CONNECTS, RayEngine, connect, said
from qsae_bench.run.workers.ray_placement import chosen_kind, fits, gpus_by_kind, needs

GIB = 1 << 30
CPU_NODE = {"CPU": 16.0, "memory": 64.0 * GIB}
H100 = CPU_NODE | {"GPU": 8.0, "accelerator_type:H100": 1.0}
T4 = CPU_NODE | {"GPU": 4.0, "accelerator_type:T4": 1.0}
UNNAMED = CPU_NODE | {"GPU": 1.0}


def test_gpus_are_counted_by_kind():
    assert gpus_by_kind([H100, T4, H100, CPU_NODE, UNNAMED]) == {"H100": 16, "T4": 4, "": 1}


@pytest.mark.parametrize(
    ("nodes", "told", "expected"),
    [
        ([CPU_NODE], "", ""), ([H100, H100], "", ""), ([H100], "H100", "H100"), ([H100, T4], "", "H100"),
        ([H100, T4, T4, T4], "", "T4"), ([H100, T4], "T4", "T4"), ([UNNAMED], "", ""), ([UNNAMED, T4], "", "T4"),
    ],
)  # fmt: skip
def test_one_kind_of_gpu_a_run(nodes, told, expected):
    assert chosen_kind(nodes, told) == expected


@pytest.mark.parametrize(
    ("nodes", "said"),
    [([H100, T4], "the cluster has H100, T4 (did you mean 'H100'?)"), ([UNNAMED], "the cluster names no kind of GPU")],
)  # fmt: skip
def test_a_kind_that_is_not_there_is_one_line(nodes, said):
    with pytest.raises(QsaeError) as refused:
        chosen_kind(nodes, "H10")
    assert str(refused.value) == f"--gpu-kind 'H10': {said}"


def test_whole_gpus_of_the_kind():
    assert needs(100 * GIB, 2, 80 * GIB, [T4, H100], "H100") == {
        "num_cpus": 2, "num_gpus": 2, "memory": 0, "accelerator_type": "H100",
    }  # fmt: skip
    assert needs(0, 2, 80 * GIB, [H100], "") == {"num_cpus": 2, "num_gpus": 1, "memory": 0}


@pytest.mark.parametrize(("nodes", "kind"), [([CPU_NODE], ""), ([CPU_NODE, T4], "H100"), ([], "")])
def test_what_is_to_have_a_gpu_does_not_run_on_a_cpu_once_the_last_is_gone(nodes, kind):
    with pytest.raises(QsaeError, match="the cluster has no node with a GPU"):
        needs(10 * GIB, 2, 80 * GIB, nodes, kind)


def test_threads_and_memory_without_gpus():
    assert needs(10 * GIB, 3, 0, [CPU_NODE], "") == {"num_cpus": 3, "num_gpus": 0, "memory": 10 * GIB}


def test_what_no_node_has_is_asked_of_the_best():
    """So that the task is placed, and says itself what is too little."""
    assert needs(1000 * GIB, 2, 16 * GIB, [T4, H100], "T4")["num_gpus"] == 4
    assert needs(1000 * GIB, 64, 0, [CPU_NODE], "") == {"num_cpus": 16, "num_gpus": 0, "memory": 64 * GIB}


@given(
    st.integers(0, 500), st.integers(1, 32), st.sampled_from([0, 16, 80]),
    st.lists(st.sampled_from([CPU_NODE, H100, T4, UNNAMED]), min_size=1, max_size=4),
)  # fmt: skip
def test_some_node_has_all_that_is_asked(memory, threads, gpu, nodes):
    nodes = [*nodes, *[UNNAMED] * (gpu > 0)]
    kind = chosen_kind(nodes, "") if gpu else ""
    asked = needs(memory * GIB, threads, gpu * GIB, nodes, kind)
    has = [
        node for node in nodes
        if node["CPU"] >= asked["num_cpus"] and node.get("GPU", 0) >= asked["num_gpus"] and node["memory"] >= asked["memory"]
        and ("accelerator_type" not in asked or "accelerator_type:" + kind in node)
    ]  # fmt: skip
    assert has
    assert fits(asked, nodes)
    assert not fits(asked, [node for node in nodes if node not in has])


class Timeout(Exception):
    pass


class Never:
    """A Ray that has no answer for so many looks; nodes as they are at each."""

    class exceptions:
        GetTimeoutError = Timeout
        RayTaskError, RaySystemError, RayError = ZeroDivisionError, EOFError, OSError

    def __init__(self, looks):
        self.looks, self.asked, self.cancelled = list(looks), [], []

    def remote(self, *arguments):
        self.asked.append(arguments)
        return "running"

    def nodes(self):
        return [{"Alive": True, "Resources": node} for node in self.looks.pop(0)]

    def get(self, running, timeout):
        if not self.looks:
            return "done"
        raise Timeout

    def cancel(self, running, force):
        self.cancelled.append(running)


def engine_on(cluster):
    engine = RayEngine.__new__(RayEngine)
    engine._ray, engine._closed, engine._running, engine._mine = cluster, False, set(), False
    engine._handing = threading.Lock()
    return engine


ONE_H100 = {"num_cpus": 2, "num_gpus": 1, "memory": 0, "accelerator_type": "H100"}


def test_a_task_that_no_node_can_take_any_more_is_lost_when_that_was_seen_twice():
    cluster = Never([[H100], [T4], [H100], [T4], [T4], [H100]])
    with pytest.raises(Lost, match="the node that could take it is gone"):
        engine_on(cluster)._done(cluster, ONE_H100)
    assert cluster.cancelled == ["running"] and len(cluster.looks) == 1


def test_a_task_that_a_node_could_take_is_waited_for():
    cluster = Never([[H100, T4], [T4], [T4, H100], [T4], [H100]])
    assert engine_on(cluster)._done(cluster, ONE_H100) == "done"
    assert not cluster.cancelled


def test_nothing_is_handed_to_ray_once_the_run_has_ended():
    """Ray would connect anew, or start a cluster."""
    cluster = Never([])
    engine = engine_on(cluster)
    engine.close()
    with pytest.raises(Lost, match="the run has ended"):
        engine._done(cluster, ONE_H100)
    assert not cluster.asked


def test_nor_is_ray_asked_again_for_what_was_waited_for_at_the_end(monkeypatch):
    cluster = Never([[H100], [H100], [H100]])
    engine = engine_on(cluster)
    monkeypatch.setattr(engine, "_nodes", lambda: [engine.close(), H100][1:])
    with pytest.raises(Lost, match="the run has ended"):
        engine._done(cluster, ONE_H100)


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
    head = Head(CONNECTS - 1, BUSY)
    connect(head, "ray://there:10001")
    assert head.asked == ["ray://there:10001"] * CONNECTS


@pytest.mark.parametrize(
    ("error", "times"), [(BUSY, CONNECTS), (ConnectionError("ray client connection timeout"), 1)]
)
def test_one_that_never_does_or_is_not_there_is_not_asked_without_end(error, times):
    head = Head(100, error)
    with pytest.raises(ConnectionError):
        connect(head, "ray://there:10001")
    assert len(head.asked) == times


def test_what_ray_says_is_one_line_with_the_cause():
    assert said(BUSY) == "Initialization failure from server: RuntimeError: not there in time"
    assert said(ConnectionError("ray client connection timeout\nmore")) == "ray client connection timeout"
    assert said(ValueError()) == "ValueError"
