"""The floor of an open group is never above the version of its oldest token, whatever is looked at when."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from bus.messages import ReadyGroup
from miles_async.staleness.floors import Floors

# what happens between two looks: the engines get a newer version, a group is dealt, one begins, one is published, a look
EVENTS = st.lists(st.sampled_from(["version", "deal", "begin", "publish", "look"]), max_size=60)


@given(EVENTS)
def test_a_floor_is_at_most_the_version_of_the_first_token(events: list[str]) -> None:
    floors, serving, order = Floors(), 0, list[str]()
    states: dict[str, str] = {}
    first: dict[str, int] = {}  # the version of the first token of what is begun
    floors.look([], [], serving)
    for event in events:
        waiting = [g for g in order if states[g] == "w"]
        running = [g for g in order if states[g] == "f"]
        if event == "version":
            serving += 1
        elif event == "deal":
            order.append(str(len(order)))
            states[order[-1]] = "w"
        elif event == "begin" and waiting:
            states[waiting[0]], first[waiting[0]] = "f", serving
        elif event == "publish" and running:
            states[running[-1]] = "r"
        elif event == "look":
            floors.look(order, [states[g] for g in order], serving)
            lowest, *of_groups = floors.of({}, ())
            found = dict(zip(order, of_groups, strict=True))
            assert lowest == serving
            assert all(found[g] <= first.get(g, serving) for g in order)
            assert all(found[g] == serving for g in order if states[g] == "w")


def test_of_a_ready_group_it_is_its_oldest_token_and_what_is_chosen_is_left_out() -> None:
    floors = Floors()
    floors.look(["a", "b", "c"], ["f", "r", "r"], 7)
    ready = {g: ReadyGroup(g, "", version, 9, 1, 0.0, versions=((version, 1),)) for g, version in (("b", 4), ("c", 6))}
    assert list(floors.of(ready, {"c"})) == [7, 7, 4]
