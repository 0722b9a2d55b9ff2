"""How long samples and groups take, as it is reported: the tail of a group is what is left when half of it has ended."""

from __future__ import annotations

import pytest
from generate_answers import answer

from miles_async.rollout.timing import GroupTimes, Timing


def test_the_tail_of_a_group_is_what_is_left_of_its_time_when_half_of_its_samples_have_ended() -> None:
    timing, times = Timing(), GroupTimes()
    answers = [answer("r", [1], e2e_latency=seconds) for seconds in (1.0, 2.0, 4.0, 10.0)]
    times.answered(100.0, 110.5, [*answers, answer("r", [1], "abort", e2e_latency=3.0), "junk", {}])
    timing.add(times, 4)
    short = GroupTimes()
    short.ended(0.0, 5.0)
    timing.add(short, 4)  # three of its samples failed: nothing is known of its tail
    report = timing.report()
    assert report["rollout/tail_share"] == pytest.approx(0.8)
    assert (report["rollout/sample_seconds"], report["rollout/sample_seconds_max"]) == pytest.approx((22 / 5, 10.0))
    assert timing.report() == {}
