"""Seconds are the innermost key's alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qsae_bench.run.stopwatch import Stopwatch


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


def test_by_hand():
    clock = Clock()
    watch = Stopwatch(clock)
    clock.now += 50  # nobody's
    with watch.at("a"):
        clock.now += 1
        with watch.at("b"):
            clock.now += 10
            with watch.at("a"):
                clock.now += 100
            clock.now += 10
        clock.now += 1
    clock.now += 50
    with watch.at("b"):
        clock.now += 5
    assert watch.seconds == {"a": 102, "b": 25}


def test_what_raised_is_closed():
    clock = Clock()
    watch = Stopwatch(clock)
    with pytest.raises(ValueError, match="no"), watch.at("a"), watch.at("b"):
        clock.now += 2
        raise ValueError("no")
    clock.now += 7
    with watch.at("c"):
        clock.now += 1
    assert watch.seconds == {"a": 0, "b": 2, "c": 1}


bodies = st.recursive(
    st.just([]),
    lambda inner: st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 9), inner), max_size=3),
    max_leaves=15,
)


@given(bodies)
def test_all_seconds_are_somebodys_once(plan):
    clock = Clock()
    watch = Stopwatch(clock)
    expected = {}

    def go(nodes):
        for key, seconds, inner in nodes:
            with watch.at(key):
                clock.now += seconds
                expected[key] = expected.get(key, 0) + seconds
                go(inner)

    go(plan)
    assert watch.seconds == pytest.approx(expected)
