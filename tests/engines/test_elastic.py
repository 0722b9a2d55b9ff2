"""How many engines there should be, by the room that there is: whatever is seen, the bounds hold, and it comes to an end."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from miles_async.engines.elastic import Change, Seen, decide

NAMES = tuple(f"engine-{number}" for number in range(6))


def some(*names: str) -> frozenset[str]:
    return frozenset(names)


@st.composite
def sights(draw: st.DrawFn) -> tuple[Seen, int, int]:
    """A run, with its bounds."""
    engines = NAMES[: draw(st.integers(1, len(NAMES)))]
    of_them = st.frozensets(st.sampled_from(engines))
    waiting, noticed = draw(of_them), draw(of_them)
    seen = Seen(
        engines,
        serving=draw(of_them) - waiting,
        waiting=waiting,
        homeless=draw(of_them) & waiting,
        noticed=noticed - waiting,
        free=draw(st.integers(0, 8)),
    )
    least = draw(st.integers(1, 6))
    return seen, least, draw(st.integers(least, 8))


@given(sights())
def test_whatever_is_seen_nobody_leaves_who_is_needed_and_nobody_comes_for_whom_there_is_no_room(
    sight: tuple[Seen, int, int],
) -> None:
    seen, least, most = sight
    come, leave = decide(seen, least, most)
    left, going = set(seen.engines) - set(leave), seen.homeless | seen.noticed
    staying = set(seen.engines) - going
    assert len(set(leave)) == len(leave) and set(leave) <= set(seen.engines)
    assert len(left) >= min(least, len(seen.engines))
    assert len(seen.serving & left) >= min(least, len(seen.serving))
    assert come + len(seen.waiting & left) <= max(seen.free, len(seen.waiting & left))
    assert come == 0 or len(staying) + come <= most
    assert len(set(leave) - going) == max(0, len(staying) - most)


@given(sights())
def test_with_room_enough_a_run_comes_to_as_many_as_it_may_have_and_rests_there(sight: tuple[Seen, int, int]) -> None:
    seen, least, most = sight
    engines, gone, number = list(seen.engines), seen.homeless | seen.noticed, 0
    serving = set(seen.serving)
    for _ in range(12):
        going = gone & set(engines)
        come, leave = decide(Seen(tuple(engines), frozenset(serving), noticed=going, free=9), least, most)
        engines = [name for name in engines if name not in leave] + [f"new-{number + one}" for one in range(come)]
        number += come
        serving = set(engines) - gone | serving & set(engines)  # until the next look who has come serves
    assert len(engines) == most and not gone & set(engines)
    assert decide(Seen(tuple(engines), frozenset(serving), free=9), least, most) == Change()


@pytest.mark.parametrize(
    ("seen", "change"),
    [
        (Seen(NAMES[:2], some("engine-0", "engine-1"), free=1), Change(1)),
        (Seen(NAMES[:2], some("engine-0", "engine-1"), free=5), Change(2)),
        (Seen(NAMES[:2], some("engine-0"), waiting=some("engine-1"), free=1), Change()),  # it is for who waits
        (
            Seen(NAMES[:2], some("engine-0"), waiting=some("engine-1"), homeless=some("engine-1")),
            Change(0, ("engine-1",)),
        ),
        (Seen(NAMES[:1], waiting=some("engine-0"), homeless=some("engine-0")), Change()),  # there has to be one
        # on notice, and nobody else serves: another one comes first
        (Seen(NAMES[:1], some("engine-0"), noticed=some("engine-0"), free=1), Change(1)),
        (Seen(NAMES[:2], some("engine-0"), noticed=some("engine-0")), Change()),
        (Seen(NAMES[:2], some("engine-0", "engine-1"), noticed=some("engine-0")), Change(0, ("engine-0",))),
        # whose machine was lost, and in whose place another one had come
        (Seen(NAMES[:5], some(*NAMES[1:5]), waiting=some("engine-0")), Change(0, ("engine-0",))),
    ],
)
def test_what_is_done(seen: Seen, change: Change) -> None:
    assert decide(seen, least=1, most=4) == change
