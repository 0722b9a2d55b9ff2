"""Which nodes are suspected, over made histories: machines and processes that die, a bus and an onlooker that are away."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from miles_async.monitor.nodes import Sign, SilentNode, silent_nodes

BEAT_S, SILENT_S, TOGETHER_S = 1.0, 5.0, 2.0
NODES = ("a", "b", "c")
NAMES = {node: tuple(f"{node}-{index}" for index in range(3)) for node in NODES}

phases = st.floats(0.0, BEAT_S)
sizes = st.fixed_dictionaries({node: st.integers(1, 3) for node in NODES})
moments = st.floats(20.0, 60.0)


def last_sign(phase: float, until: float) -> float:
    """Of an actor that beats each BEAT_S, from ``phase`` on, up to ``until``."""
    return phase + BEAT_S * ((until - phase) // BEAT_S)


def look(signs: list[Sign], now: float) -> list[SilentNode]:
    return silent_nodes(signs, now, silent_s=SILENT_S, together_s=TOGETHER_S)


@given(st.data(), sizes, moments, st.floats(SILENT_S + BEAT_S, 100.0))
def test_a_node_that_dies_is_suspected_and_no_other(
    data: st.DataObject, sizes: dict[str, int], died: float, after: float
) -> None:
    now = died + after
    signs = [
        Sign(name, node, last_sign(data.draw(phases), died if node == "b" else now))
        for node in NODES
        for name in NAMES[node][: sizes[node]]
    ]
    [found] = look(signs, now)
    assert found.node == "b" and found.actors == NAMES["b"][: sizes["b"]] and found.lone == (sizes["b"] == 1)
    assert died - BEAT_S <= found.since <= died


@given(st.data(), sizes, moments, st.sets(st.sampled_from([name for node in NODES for name in NAMES[node]])))
def test_processes_that_die_beside_one_that_lives_are_no_dead_node(
    data: st.DataObject, sizes: dict[str, int], now: float, dead: set[str]
) -> None:
    signs = [
        Sign(name, node, last_sign(data.draw(phases), now - (50.0 if name in dead and index else 0.0)))
        for node in NODES
        for index, name in enumerate(NAMES[node][: sizes[node]])
    ]
    assert look(signs, now) == []


@given(st.data(), sizes, moments, st.floats(0.0, 100.0))
def test_a_bus_or_an_onlooker_that_was_away_makes_nobody_suspect(
    data: st.DataObject, sizes: dict[str, int], away: float, after: float
) -> None:
    signs = [
        Sign(name, node, last_sign(data.draw(phases), away)) for node in NODES for name in NAMES[node][: sizes[node]]
    ]
    assert look(signs, away + after) == []


@given(moments, st.floats(TOGETHER_S + 0.1, 15.0))
def test_processes_that_die_one_after_the_other_are_no_dead_node(now: float, apart: float) -> None:
    last = now - SILENT_S - 1.0
    signs = [Sign("a-0", "a", now), Sign("b-0", "b", last), Sign("b-1", "b", last - apart)]
    assert look(signs, now) == []


@given(moments, st.floats(0.0, SILENT_S - 0.1))
def test_a_node_is_not_suspected_before_its_time(now: float, silent: float) -> None:
    assert look([Sign("a-0", "a", now), Sign("b-0", "b", now - silent), Sign("b-1", "b", now - silent)], now) == []


@given(
    st.permutations([Sign("a-0", "a", 99.0), Sign("b-0", "b", 10.0), Sign("b-1", "b", 10.5), Sign("c-0", "c", 12.0)])
)
def test_the_order_of_the_signs_does_not_matter_and_several_nodes_may_be_silent(signs: list[Sign]) -> None:
    assert look(signs, 100.0) == [SilentNode("b", 10.5, ("b-0", "b-1"), False), SilentNode("c", 12.0, ("c-0",), True)]


def test_one_node_alone_and_who_has_not_said_where_it_is_are_no_reason() -> None:
    assert look([Sign("a-0", "a", 1.0), Sign("a-1", "a", 1.0)], 100.0) == []
    assert look([Sign("a-0", "a", 1.0), Sign("a-1", "a", 1.0), Sign("x", "", 100.0)], 100.0) == []


def test_limits_that_suspect_everybody_are_refused() -> None:
    for silent_s, together_s in ((0.0, 1.0), (1.0, 0.0), (float("nan"), 1.0)):
        with pytest.raises(ValueError, match="both must be > 0"):
            silent_nodes([], 1.0, silent_s=silent_s, together_s=together_s)
