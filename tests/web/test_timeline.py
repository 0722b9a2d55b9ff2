"""Who did what when, from what a run leaves on disk."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from web_runs import BEGAN, other_lines, step_line

from bus.messages import Begun
from miles_async.monitor.record_lines import EventLine, TransitionLine
from miles_async.web.spans import Span, Track
from miles_async.web.timeline import Timeline, lanes


def transition(kind: str, time: float, group: str, by: str = "") -> TransitionLine:
    return TransitionLine(f"{round(time * 1000)}-0", kind, (group,), by=by)


def spans(timeline: Timeline, name: str) -> list[tuple[str, float, float]]:
    return [(span.kind, span.begin, span.end) for span in timeline.tracks[name].spans()]


def test_a_learner_waits_saves_and_trains_for_as_long_as_it_reported() -> None:
    timeline = Timeline()
    timeline.add_metrics(step_line(1, **{"perf/save_model_time": 0.25}))
    end = BEGAN + 2.0
    assert spans(timeline, "learner-0") == [
        ("save", end - 2.25, end - 2.0),
        ("wait", end - 2.0, end - 1.5),
        ("train", end - 1.5, end),
    ]


def test_a_worker_generates_from_claim_to_end_and_waits_while_it_holds_nothing() -> None:
    timeline = Timeline()
    for line in (
        transition("claimed", 10.0, "a", "rollout-0/1"),
        transition("claimed", 11.0, "b", "rollout-0/1"),
        transition("published", 12.0, "a", "rollout-0/1"),
        transition("failed", 13.0, "b", "rollout-0/1"),
        transition("claimed", 15.0, "b", "rollout-0/1"),
        transition("claimed", 16.0, "b", "rollout-1/2"),
        transition("published", 18.0, "b", "rollout-1/2"),
    ):
        timeline.add_transition(line)
    assert spans(timeline, "rollout-0") == [
        ("generate", 10.0, 12.0),
        ("generate", 11.0, 13.0),
        ("wait", 13.0, 15.0),
        ("generate", 15.0, 16.0),
    ]
    assert timeline.tracks["rollout-0"].spans()[-1].says == "group b: its lease ended"
    assert spans(timeline, "rollout-1") == [("generate", 16.0, 18.0)]


def test_when_the_first_token_came_is_said_where_it_is_known() -> None:
    timeline = Timeline()
    timeline.add_transition(transition("claimed", 10.0, "a", "rollout-0/1"))
    published = transition("published", 12.0, "a", "rollout-0/1")
    timeline.add_transition(msgspec.structs.replace(published, begun=Begun(first_token_at=10.25)))
    assert timeline.tracks["rollout-0"].spans()[0].says == "group a: published, first token after 0.25 s"


def test_a_push_ends_with_its_report_and_its_engine_pauses_in_it() -> None:
    timeline = Timeline()
    for line in other_lines(1):
        timeline.add_metrics(line)
    timeline.add_event(EventLine("supervisor", "died", 5.0, {"actor": "engine-0"}))
    timeline.add_event(EventLine("ledger", "dropped", 5.0))
    end = BEGAN + 2.5
    assert spans(timeline, "broadcaster") == [("push", end - 0.25, end)]
    assert ("pause", end - 0.125, end) in spans(timeline, "engine-0")
    assert [mark.kind for mark in timeline.marks_between(0.0, 10.0, 10)] == ["died"]
    assert timeline.names() == ["engine-0", "broadcaster"]


moments = st.lists(st.tuples(st.floats(0, 100), st.floats(0.01, 20)), min_size=1, max_size=30)


@given(moments)
def test_no_two_spans_of_a_lane_are_at_the_same_time(times: list[tuple[float, float]]) -> None:
    made = sorted(Span(begin, begin + took, "generate", "") for begin, took in times)
    placed = list(zip(made, lanes(made), strict=True))
    for n, (one, lane) in enumerate(placed):
        assert all(other.begin >= one.end for other, of in placed[n + 1 :] if of == lane)
    busiest = max(sum(other.begin <= one.begin < other.end for other in made) for one in made)
    assert max(lane for _, lane in placed) < busiest


@given(moments, st.floats(0, 50), st.floats(1, 100), st.integers(1, 12))
def test_the_levels_of_a_window_are_the_time_that_was_spent_in_it(
    times: list[tuple[float, float]], first: float, size: float, count: int
) -> None:
    track = Track()
    for begin, took in times:
        track.add(Span(begin, begin + took, "generate", ""))
    last = first + size
    spent = sum(max(0.0, min(begin + took, last) - max(begin, first)) for begin, took in times)
    levels = track.levels(first, last, count).get("generate", [0.0])
    assert sum(levels) * size / count == pytest.approx(spent, abs=0.001 * size + 1e-6)


def test_a_share_of_a_second_counts_for_a_share_and_a_window_has_what_reaches_into_it() -> None:
    track = Track()
    track.add(Span(0.0, 100.0, "busy", "", 0.25))
    track.add(Span(50.0, 51.0, "pause", ""))
    assert sum(track.levels(0.0, 100.0, 4)["busy"]) == pytest.approx(1.0)
    assert [span.kind for span in track.between(60.0, 70.0)] == ["busy"]
