"""Changes of level: found where they were planted, and rarely where there are none."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qsae_bench.stats.changepoints import FEWEST_POINTS, Point, find_level_changes


def points(values, half_width=0.0, tokens=2032):
    return [Point(float(value), half_width, tokens) for value in values]


@pytest.mark.parametrize("n", [8, 12, 30, 90])
def test_false_alarms_on_white_noise(n):
    """Of 1 000 series of pure noise at most 2.5% have a change, and as many a newest point that stands out."""
    rng = np.random.default_rng(n)
    found = [find_level_changes(points(rng.normal(5, 0.3, size=n))) for _ in range(1000)]
    assert sum(bool(one.found) for one in found) <= 25
    assert sum(one.stands_out for one in found) <= 25


@pytest.mark.parametrize(
    ("n", "sigmas", "least"), [(12, 8, 0.95), (30, 6, 0.95), (60, 6, 0.95), (60, 4, 0.9)]
)
def test_a_planted_shift_is_found_where_it_is(n, sigmas, least):
    rng = np.random.default_rng(n)
    hits = 0
    for _ in range(200):
        values = rng.normal(1, 0.01, size=n)
        values[n // 2 :] += 0.01 * sigmas
        found = find_level_changes(points(values)).found
        hits += len(found) == 1 and abs(found[0].index - n // 2) <= 1
    assert hits >= least * 200


def test_two_shifts_and_the_levels_between():
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(level, 0.01, size=15) for level in (1, 1.2, 0.9)])
    found = find_level_changes(points(values)).found
    assert [change.index for change in found] == [15, 30]
    levels = [(round(c.before, 2), round(c.after, 2)) for c in found]
    assert levels == [(1.0, 1.2), (1.2, 0.9)]


def test_bit_identical_nights_have_no_noise():
    """Any step that lasts is a change, however small beside the interval."""
    assert find_level_changes(points([4.3] * 20, 0.1)).found == ()
    assert not find_level_changes(points([4.3] * 20, 0.1)).stands_out
    (found,) = find_level_changes(points([4.3] * 10 + [4.301] * 2, 0.1)).found
    assert (found.index, found.before, found.after) == (10, 4.3, 4.301)
    assert find_level_changes(points([0.0] * 9)).found == ()
    assert [change.index for change in find_level_changes(points([0.0] * 9 + [1e-9] * 3)).found] == [9]


def test_one_night_is_an_outlier_and_the_newest_stands_out():
    quiet = [4.3] * 10
    assert find_level_changes(points([*quiet, 5.0, *quiet], 0.1)).found == ()
    newest = find_level_changes(points([*quiet, 5.0], 0.1))
    assert newest.found == ()
    assert newest.stands_out


def test_more_tokens_are_no_change():
    """The same text read further moves a value within its interval; beyond it, something else did."""
    first, then = points([4.70] * 8, 0.6, 2032), points([4.33] * 8, 0.2, 16256)
    assert find_level_changes(first + then).found == ()
    assert len(find_level_changes(first + points([9.0] * 8, 0.2, 16256)).found) == 1
    assert len(find_level_changes(first + points([4.33] * 8, 0.6, 2032)).found) == 1


def test_few_nights_say_nothing():
    assert find_level_changes(points([1, 9] * 3)).too_few
    assert find_level_changes([]).too_few
    assert not find_level_changes(points(range(FEWEST_POINTS))).too_few


@given(st.lists(st.integers(-1000, 1000), min_size=FEWEST_POINTS, max_size=40), st.integers(-20, 20))
def test_the_unit_changes_nothing(values, power):
    """In another unit, a power of two so that nothing is rounded, the same nights changed."""
    ours, scaled = (
        find_level_changes(points([factor * v for v in values])) for factor in (1.0, 2.0**power)
    )
    assert all(0 < change.index < len(values) for change in ours.found)
    assert [c.index for c in scaled.found] == [c.index for c in ours.found]
    assert scaled.stands_out == ours.stands_out
