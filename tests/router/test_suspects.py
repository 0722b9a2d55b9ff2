"""The judgement of engines that misbehave: each kind is found in the stated time, and somebody honest stays."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from miles_async.router.observe.suspects import FORGIVEN_S, LYING_LOOKS, Observation, Probe, Suspects, Verdict

LOOKS, HUNG_S = 5, 30.0
WELL = Probe("", 16, 0.1)


def suspects(interval_s: float = 1.0) -> Suspects:
    return Suspects(interval_s=interval_s, slow_share=0.2, slow_looks=LOOKS, hung_s=HUNG_S)


class Story:
    """A fleet looked at once a second: each engine's rate for each of four requests, and whatever else ``play`` is told."""

    def __init__(self, *rates: float) -> None:
        self.judge, self.now = suspects(), 0.0
        self.rates = dict(enumerate(rates))
        self.tokens = dict.fromkeys(self.rates, 0.0)

    def play(self, looks: int, **changes: dict[str, Any]) -> dict[str, tuple[float, str | None]]:
        """``changes``: by name (e0, e1, ...), what is seen of an engine. Gives back the verdicts and when each came."""
        found: dict[str, tuple[float, str | None]] = {}
        for _ in range(looks):
            self.now += 1.0
            seen = []
            for number, rate in self.rates.items():
                self.tokens[number] += 4 * rate
                fields: dict[str, Any] = {"inflight": 4, "running": 4, "tokens": int(self.tokens[number])}
                fields |= {"announced": "1", "reported": "1"} | changes.get(f"e{number}", {})
                seen.append(Observation(f"e{number}", **fields))
            found |= {v.engine: (self.now, v.kind) for v in self.judge.look(self.now, seen)}
        return found


def test_a_slow_engine_is_found_after_so_many_looks_and_only_that_one() -> None:
    assert Story(50, 50, 9, 45).play(LOOKS) == {}  # the first look measures nothing
    assert Story(50, 50, 9, 45).play(LOOKS + 1) == {"e2": (LOOKS + 1, "slow")}
    assert Story(50, 50, 11, 45).play(100) == {}


def test_an_engine_that_is_slow_now_and_then_stays() -> None:
    story = Story(50, 50, 5)
    for _ in range(5):
        story.rates[2] = 5
        assert story.play(LOOKS - 1) == {}
        story.rates[2] = 50
        assert story.play(1) == {}


def test_the_throughput_that_an_engine_reports_serves_where_it_counts_no_tokens() -> None:
    story = Story(0, 0, 0)
    fast, slow = ({"tokens": None, "throughput": rate} for rate in (200.0, 20.0))
    assert story.play(LOOKS + 1, e0=fast, e1=fast, e2=slow) == {"e2": (LOOKS + 1, "slow")}


def test_a_hung_engine_is_found_in_time_while_others_do_not_stand_still() -> None:
    assert Story(50, 0).play(3, e1={"quiet_s": HUNG_S - 0.1}) == {}
    assert Story(50, 0).play(3, e1={"quiet_s": HUNG_S}) == {"e1": (1.0, "hung")}
    assert Story(50, 0).play(3, e0={"inflight": 0}, e1={"quiet_s": HUNG_S}) == {"e1": (1.0, "hung")}
    assert Story(0, 0).play(3, e0={"quiet_s": HUNG_S}, e1={"quiet_s": HUNG_S}) == {}


def test_the_last_engine_stays_however_slow_or_hung() -> None:
    assert Story(50).play(3, e0={"quiet_s": 100.0}) == {}
    story = Story(50, 50)
    assert story.judge.garbage(0.0, "e1", "nonsense") is not None
    assert story.play(20, e0={"quiet_s": 100.0}) == {}
    story.rates[0] = 1
    assert story.play(20) == {}


def test_an_engine_paused_for_its_weights_is_excused_and_its_time_begins_after_that() -> None:
    story = Story(50, 50)
    updating = {"excused": True, "quiet_s": 100.0, "reported": "2", "running": 0}
    assert story.play(100, e1=updating) == {}
    assert story.play(int(HUNG_S) - 1, e1={"quiet_s": 150.0, "tokens": 7}) == {}
    assert story.play(1, e1={"quiet_s": 150.0, "tokens": 7}) == {"e1": (story.now, "hung")}


def test_another_version_than_the_announced_one_is_a_lie_from_the_second_look_on() -> None:
    assert Story(50, 50).play(LYING_LOOKS, e1={"reported": "7"}) == {"e1": (LYING_LOOKS, "lying")}
    assert Story(50).play(LYING_LOOKS, e0={"reported": "default"}) == {"e0": (LYING_LOOKS, "lying")}, (
        "also the last one"
    )
    unknown = {"announced": None, "reported": "7"}
    assert Story(50, 50).play(10, e0=unknown, e1={"reported": None}) == {}


def test_an_announcement_that_comes_a_look_late_makes_no_liar() -> None:
    story = Story(50, 50)
    for version in range(1, 20):
        assert story.play(1, e1={"announced": str(version), "reported": str(version + 1)}) == {}


def test_garbage_is_judged_at_once_and_once() -> None:
    judge = suspects()
    assert judge.garbage(1.0, "e0", "<html>") == Verdict("e0", "garbage", "<html>")
    assert judge.garbage(1.1, "e0", "<html>") is None


@pytest.mark.parametrize("kind", ["slow", "hung", "lying", "garbage"])
def test_what_is_out_comes_back_when_its_probe_is_answered_as_it_should_be(kind: str) -> None:
    story = Story(50, 50, 1 if kind == "slow" else 50)
    bad: dict[str, Any] = {"hung": {"quiet_s": 40.0}, "lying": {"reported": "7"}}.get(kind, {})
    if kind == "garbage":
        story.judge.garbage(0.0, "e2", "<html>")
    else:
        assert story.play(LOOKS + 1, e2=bad)["e2"][1] == kind
    out: dict[str, Any] = {"inflight": 0, "running": None, "tokens": None}
    assert story.play(5, e2=out) == {}
    assert story.play(5, e2=out | {"probe": Probe("no answer")}) == {}
    assert story.play(5, e2=out | {"probe": WELL, "reported": "7"}) == {}
    assert story.play(5, e2=out | {"probe": WELL, "reported": None}) == {}
    slowly = story.play(1, e2=out | {"probe": Probe("", 16, 1.0)})
    assert slowly == ({} if kind == "slow" else {"e2": (story.now, None)})
    if kind == "slow":
        assert story.play(1, e2=out | {"probe": WELL}) == {"e2": (story.now, None)}


def test_each_time_an_engine_goes_out_it_stays_out_twice_as_long_and_long_good_conduct_is_rewarded() -> None:
    judge, now, holds = suspects(), 0.0, []
    for _ in range(8):
        assert judge.garbage(now, "e0", "nonsense")
        went = now
        while judge.is_out("e0"):
            now += 1.0
            judge.look(now, [Observation("e0", probe=WELL)])
        holds.append(now - went)
    assert holds == [1, 2, 4, 8, 16, 32, 64, 64]
    now += FORGIVEN_S + 1
    judge.garbage(now, "e0", "nonsense")
    judge.look(now + 1.0, [Observation("e0", probe=WELL)])
    assert not judge.is_out("e0")


_optional = st.none() | st.integers(0, 50)
_observations = st.builds(
    dict,
    excused=st.booleans(),
    inflight=st.integers(0, 3),
    quiet_s=st.sampled_from([0.0, 31.0]),
    running=_optional,
    tokens=_optional,
    announced=st.sampled_from([None, "1"]),
    reported=st.sampled_from([None, "1", "1", "2"]),
    probe=st.sampled_from([None, Probe("no"), WELL]),
)


@given(st.lists(st.lists(_observations, min_size=3, max_size=3), max_size=20))
def test_whatever_is_seen_verdicts_alternate_and_somebody_honest_stays(looks: list[list[dict[str, Any]]]) -> None:
    judge, out = suspects(), dict[str, str | None]()
    for number, fleet in enumerate(looks):
        for verdict in judge.look(float(number), [Observation(f"e{i}", **fields) for i, fields in enumerate(fleet)]):
            assert (verdict.kind is None) == (out.get(verdict.engine) is not None)
            out[verdict.engine] = verdict.kind
        assert all(judge.is_out(name) == (kind is not None) for name, kind in out.items())
        kinds = [kind for kind in out.values() if kind is not None]
        assert len(kinds) < 3 or "lying" in kinds
