"""What Ray is asked for: a task's resources, on one kind of GPU."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qsae_bench.errors import QsaeError
from qsae_bench.run.workers.ray_placement import chosen_kind, fits, gpus_by_kind, task_options

GIB = 1 << 30
CPU_NODE = {"CPU": 16.0, "memory": 64.0 * GIB}
H100 = CPU_NODE | {"GPU": 8.0, "accelerator_type:H100": 1.0}
T4 = CPU_NODE | {"GPU": 4.0, "accelerator_type:T4": 1.0}
UNNAMED = CPU_NODE | {"GPU": 1.0}


def test_gpus_are_counted_by_kind():
    assert gpus_by_kind([H100, T4, H100, CPU_NODE, UNNAMED]) == {"H100": 16, "T4": 4, "": 1}


@pytest.mark.parametrize(
    ("nodes", "wanted", "expected"),
    [
        ([CPU_NODE], "", ""), ([H100, H100], "", ""), ([H100], "H100", "H100"), ([H100, T4], "", "H100"),
        ([H100, T4, T4, T4], "", "T4"), ([H100, T4], "T4", "T4"), ([UNNAMED], "", ""), ([UNNAMED, T4], "", "T4"),
    ],
)  # fmt: skip
def test_one_kind_of_gpu_a_run(nodes, wanted, expected):
    assert chosen_kind(nodes, wanted) == expected


@pytest.mark.parametrize(
    ("nodes", "said"),
    [([H100, T4], "the cluster has H100, T4 (did you mean 'H100'?)"), ([UNNAMED], "the cluster names no kind of GPU")],
)  # fmt: skip
def test_a_kind_that_is_not_there_is_one_line(nodes, said):
    with pytest.raises(QsaeError) as refused:
        chosen_kind(nodes, "H10")
    assert str(refused.value) == f"--gpu-kind 'H10': {said}"


def test_whole_gpus_of_the_kind():
    assert task_options(100 * GIB, 2, 80 * GIB, [T4, H100], "H100") == {
        "num_cpus": 2, "num_gpus": 2, "memory": 0, "accelerator_type": "H100",
    }  # fmt: skip
    assert task_options(0, 2, 80 * GIB, [H100], "") == {"num_cpus": 2, "num_gpus": 1, "memory": 0}


@pytest.mark.parametrize(("nodes", "kind"), [([CPU_NODE], ""), ([CPU_NODE, T4], "H100"), ([], "")])
def test_what_is_to_have_a_gpu_does_not_run_on_a_cpu_once_the_last_is_gone(nodes, kind):
    with pytest.raises(QsaeError, match="the cluster has no node with a GPU"):
        task_options(10 * GIB, 2, 80 * GIB, nodes, kind)


def test_threads_and_memory_without_gpus():
    assert task_options(10 * GIB, 3, 0, [CPU_NODE], "") == {
        "num_cpus": 3,
        "num_gpus": 0,
        "memory": 10 * GIB,
    }


def test_what_no_node_has_is_asked_of_the_best():
    """So that the task is placed, and says itself what is too little."""
    assert task_options(1000 * GIB, 2, 16 * GIB, [T4, H100], "T4")["num_gpus"] == 4
    assert task_options(1000 * GIB, 64, 0, [CPU_NODE], "") == {
        "num_cpus": 16,
        "num_gpus": 0,
        "memory": 64 * GIB,
    }


@given(
    st.integers(0, 500), st.integers(1, 32), st.sampled_from([0, 16, 80]),
    st.lists(st.sampled_from([CPU_NODE, H100, T4, UNNAMED]), min_size=1, max_size=4),
)  # fmt: skip
def test_some_node_has_all_that_is_asked(memory, threads, gpu, nodes):
    nodes = [*nodes, *[UNNAMED] * (gpu > 0)]
    kind = chosen_kind(nodes, "") if gpu else ""
    asked = task_options(memory * GIB, threads, gpu * GIB, nodes, kind)
    has = [
        node for node in nodes
        if node["CPU"] >= asked["num_cpus"] and node.get("GPU", 0) >= asked["num_gpus"] and node["memory"] >= asked["memory"]
        and ("accelerator_type" not in asked or "accelerator_type:" + kind in node)
    ]  # fmt: skip
    assert has
    assert fits(asked, nodes)
    assert not fits(asked, [node for node in nodes if node not in has])
