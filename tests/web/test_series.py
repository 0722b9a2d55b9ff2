"""Curves as a picture has room for them: no peak is lost, and a step that is trained again counts once."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st
from web_runs import other_lines, step_line

from miles_async.monitor.record_lines import MetricsLine
from miles_async.web.series import Series, decimated


@given(st.lists(st.floats(-1e6, 1e6) | st.just(math.nan) | st.just(math.inf), max_size=60), st.integers(1, 20))
def test_what_is_left_of_a_curve_has_its_ends_and_its_bounds(values: list[float], most: int) -> None:
    steps = list(range(1, len(values) + 1))
    found = decimated(steps, values, most)
    assert len(found.steps) == len(found.mean) == min(most, len(values))
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        assert all(value is None for value in found.mean)
        return
    assert found.steps[-1] == steps[-1] and found.steps == sorted(set(found.steps))
    least, greatest = [v for v in found.least if v is not None], [v for v in found.most if v is not None]
    assert math.isclose(min(least), min(finite), rel_tol=1e-4) and math.isclose(
        max(greatest), max(finite), rel_tol=1e-4
    )


def test_a_short_curve_is_given_as_it_is() -> None:
    found = decimated([1, 2, 3], [0.5, math.nan, 1.5], 10)
    assert found == ([1, 2, 3], [0.5, None, 1.5], [0.5, None, 1.5], [0.5, None, 1.5])


def test_a_step_that_is_trained_again_takes_the_place_of_all_from_there_on() -> None:
    series = Series()
    for step in (1, 2, 3):
        series.add(step_line(step, reward=0.1 * step))
    series.add(step_line(2, reward=0.9))
    assert series.points("raw_reward")[:2] == ([1, 2], [0.1, 0.9])


def test_names_of_others_have_their_actor_and_come_behind_and_a_null_is_no_value() -> None:
    series = Series()
    for line in other_lines(1):
        series.add(line)
    series.add(step_line(1))
    series.add(MetricsLine("learner-0", 1, 0.0, {"odd": None}))
    names = series.names()
    assert names.index("router: router/inflight") > names.index("loss")
    assert series.points("odd").mean == [None] and series.points("nothing").steps == []


def test_a_stretch_of_steps_can_be_asked_for() -> None:
    series = Series()
    for step in range(1, 11):
        series.add(step_line(step, reward=float(step)))
    assert series.points("raw_reward", 3, 5).steps == [3, 4, 5]
    assert series.points("raw_reward", 9).steps == [9, 10]
