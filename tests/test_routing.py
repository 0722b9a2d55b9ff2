"""The routing policy: pure, so every promise is checked on plain values."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from miles_async.routing import LeastInflight


def policy(*engines: str) -> LeastInflight:
    made = LeastInflight()
    for engine in engines:
        made.add(engine, version=0)
    return made


def take(made: LeastInflight, **how: object) -> str | None:
    engine = made.choose(**how)  # type: ignore[arg-type]
    if engine is not None:
        made.started(engine)
    return engine


def test_the_engine_with_the_fewest_requests_is_chosen() -> None:
    made = policy("a", "b")
    assert sorted([take(made), take(made)], key=str) == ["a", "b"]
    made.finished("b")
    assert take(made) == "b"


def test_idle_engines_share_the_work_evenly() -> None:
    made = policy("a", "b", "c")
    seen = Counter()
    for _ in range(30):
        engine = take(made)
        assert engine is not None
        seen[engine] += 1
        made.finished(engine)
    assert set(seen.values()) == {10}


def test_dead_excluded_and_outdated_engines_are_never_chosen() -> None:
    made = policy("a", "b", "c")
    made.set_state("a", "dead")
    made.add("c", version=7)
    assert made.choose(exclude=("b",)) == "c"
    assert made.choose(min_version=7) == "c"
    assert made.choose(exclude=("b", "c")) is None
    assert made.choose(min_version=8) is None
    made.set_state("a", "up")
    assert made.choose(exclude=("b", "c")) == "a"


def test_an_engine_being_updated_is_the_last_choice_but_still_one() -> None:
    made = policy("a", "b")
    made.set_state("a", "updating")
    for _ in range(5):
        assert take(made) == "b"
    made.remove("b")
    assert take(made) == "a"
    made.add("b", 0)
    made.add("a", 1)  # its update is done
    assert made.loads["a"].state == "up" and made.loads["a"].inflight == 1


@given(
    st.lists(st.sampled_from(["add a", "add b", "remove a", "start a", "start b", "finish a", "finish b", "dead b"]))
)
def test_no_order_of_events_makes_a_count_negative_or_chooses_who_is_not_there(steps: list[str]) -> None:
    made = policy()
    for step in steps:
        verb, engine = step.split()
        match verb:
            case "add":
                made.add(engine)
            case "remove":
                made.remove(engine)
            case "start":
                made.started(engine)
            case "finish":
                made.finished(engine)
            case "dead":
                made.set_state(engine, "dead")
        assert all(load.inflight >= 0 for load in made.loads.values())
        chosen = made.choose()
        assert chosen is None or made.loads[chosen].state == "up"
