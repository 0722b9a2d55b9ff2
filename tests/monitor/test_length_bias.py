"""The length-bias meter: no drop, no bias; dropping the longest shows; only settled groups count; memory is bounded."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus.messages import ReadyGroup, Transition
from miles_async.cli.load import parse
from miles_async.monitor import Monitor
from miles_async.monitor.length_bias import LengthBias
from miles_async.monitor.record_lines import TransitionLine, read_metrics

_numbers = count()
Group = tuple[int, ...]
GROUPS = st.lists(st.lists(st.integers(0, 300), min_size=1, max_size=4).map(tuple), min_size=1, max_size=12)


def line(kind: str, *groups: str, by: str = "", step: int = 0, lengths: Group = ()) -> TransitionLine:
    return TransitionLine(f"{1000 + next(_numbers)}-0", kind, groups, by=by, step=step, lengths=lengths)


def names() -> Iterator[str]:
    return (f"0-{i}-0" for i in count())


def fold(trained: Sequence[Group], dropped: Sequence[Group], window: int = 4096) -> dict[str, float]:
    """A group without lengths is dropped while it waits, the others when they are ready."""
    bias, ids = LengthBias(window), names()
    for step, lengths in enumerate(trained, 1):
        bias.add(line("published", name := next(ids), by="r/1", lengths=lengths))
        bias.add(line("batched", name, step=step))
    for lengths in dropped:
        name = next(ids)
        if lengths:
            bias.add(line("published", name, by="r/1", lengths=lengths))
        bias.add(line("dropped", name, lengths=lengths))
    return short(bias)


def short(bias: LengthBias) -> dict[str, float]:
    return {name.removeprefix("length_bias/"): value for name, value in bias.values().items()}


def test_a_group_that_is_quarantined_after_it_was_batched_counts_as_dropped() -> None:
    bias = LengthBias()
    for name, length in (("a", 1), ("b", 9)):
        bias.add(line("published", name, by="r/1", lengths=(length,)))
    bias.add(line("batched", "a", "b", step=1))
    bias.add(line("quarantined", "b", step=1, lengths=(9,)))
    assert (short(bias)["trained_mean"], short(bias)["dispatched_mean"]) == (1.0, 5.0)


def brute_force_ks(a: Sequence[int], b: Sequence[int]) -> float:
    """By its definition: the greatest distance of two empirical distribution functions."""
    return max(abs(sum(x <= v for x in a) / len(a) - sum(x <= v for x in b) / len(b)) for v in {*a, *b})


def flat(groups: Sequence[Group]) -> list[int]:
    return [length for group in groups for length in group]


@given(GROUPS)
def test_where_nothing_is_dropped_there_is_no_bias(trained: list[Group]) -> None:
    found = fold(trained, [])
    assert found["ks"] == 0
    assert found["unknown_share"] == 0
    assert found.get("ratio", 1.0) == 1  # left out where no response has a token


@given(GROUPS, st.integers(1, 100))
def test_dropping_the_longest_shows_as_a_ratio_below_1_and_a_distance(trained: list[Group], more: int) -> None:
    found = fold(trained, [(max(flat(trained)) + more,)])
    assert found["ratio"] < 1
    assert found["ks"] > 0


@given(GROUPS, GROUPS)
def test_the_figures_are_those_of_their_definitions(trained: list[Group], dropped: list[Group]) -> None:
    found = fold(trained, dropped)
    a, b = flat(trained), flat(trained) + flat(dropped)
    assert found["ks"] == pytest.approx(brute_force_ks(a, b), abs=1e-12)
    assert found["trained_mean"] == pytest.approx(sum(a) / len(a))
    assert found["dispatched_mean"] == pytest.approx(sum(b) / len(b))


@given(GROUPS, GROUPS, st.integers(1, 8))
def test_the_window_counts_the_last_groups_as_if_there_had_been_no_others(
    trained: list[Group], dropped: list[Group], window: int
) -> None:
    split = max(0, len(trained) + len(dropped) - window)
    alone = fold(trained[split:], dropped[max(0, split - len(trained)) :])
    assert fold(trained, dropped, window) == alone


def test_groups_in_flight_or_ready_do_not_count() -> None:
    bias = LengthBias()
    bias.add(line("admitted", "a", "b"))
    bias.add(line("claimed", "a", by="r/1"))
    bias.add(line("published", "b", by="r/1", lengths=(5, 6)))
    assert not bias.unreported
    assert bias.values() == {}


def test_a_group_dropped_before_any_length_is_known_counts_as_unknown_only() -> None:
    found = fold([(4, 4), (4, 4), (4, 4)], [()])
    assert found == {"trained_mean": 4, "dispatched_mean": 4, "ratio": 1, "ks": 0, "unknown_share": 0.25}


def test_the_lengths_of_a_failed_attempt_are_those_of_the_group_if_no_later_one_has_any() -> None:
    bias = LengthBias()
    bias.add(line("failed", "a", by="r/1", lengths=(9,)))
    bias.add(line("dropped", "a", by="r/2"))
    assert short(bias) == {"dispatched_mean": 9, "unknown_share": 0}


def test_what_was_published_before_this_start_counts_on_neither_side() -> None:
    bias = LengthBias()
    bias.add(line("batched", "a", step=7))
    bias.add(line("dropped", "b", lengths=(8, 8)))
    assert bias.values() == {}


def test_a_step_batched_again_after_a_rollback_counts_once() -> None:
    bias = LengthBias()
    for name, length in (("a", 2), ("b", 10)):
        bias.add(line("published", name, by="r/1", lengths=(length,)))
    bias.add(line("batched", "b", step=1))
    bias.add(line("batched", "a", step=1))  # the record that the ledger has, since a power cut took the first
    assert short(bias) == {"trained_mean": 2, "dispatched_mean": 2, "ratio": 1, "ks": 0, "unknown_share": 0}
    bias.add(line("batched", "b", step=2))
    assert short(bias)["trained_mean"] == 6


def test_the_monitor_reports_it_with_each_batch_and_in_the_summary(tmp_path: Path) -> None:
    config = parse(
        '[model]\nhf_checkpoint = "here"\n[data]\nprompt_data = "here"\n[monitor]\ntensorboard = false\nlive = "off"',
        check=False,
    )
    monitor = Monitor(stream=io.StringIO())
    monitor.start(config, tmp_path, resumed=False)
    for number, (name, lengths) in enumerate({"a": (2, 4), "b": (9, 9)}.items()):
        group = ReadyGroup(
            group_id=name,
            payload_key=name,
            oldest_version=0,
            newest_version=0,
            n_tokens=sum(lengths),
            published=1.0,
            lengths=lengths,
        )
        monitor.on_transition(Transition(kind="published", group_ids=(name,), by="r/1", group=group), f"100{number}-0")
    monitor.on_transition(Transition(kind="batched", group_ids=("a",), step=1), "2000-0")
    monitor.on_transition(Transition(kind="dropped", group_ids=("b",), reason="too_old", lengths=(9, 9)), "3000-0")
    summary = monitor.finish("stopped", {})

    reported = [metrics for metrics in read_metrics(tmp_path) if "length_bias/ratio" in metrics.values]
    assert [metrics.actor for metrics in reported] == ["ledger", "ledger"]
    assert [metrics.values["length_bias/ratio"] for metrics in reported] == [1.0, 0.5]
    assert (reported[0].step, reported[0].time) == (1, 2.0)
    expected = {"trained_mean": 3.0, "dispatched_mean": 6.0, "ratio": 0.5, "ks": 0.5, "unknown_share": 0.0}
    assert summary["length_bias"] == expected
    assert json.loads((tmp_path / "summary.json").read_text())["length_bias"] == expected
    assert summary["steps"] == 0  # only the learner makes steps


def test_a_run_without_transitions_has_measured_nothing(tmp_path: Path) -> None:
    summary = Monitor(stream=io.StringIO()).finish("failed", {})
    assert set(summary["length_bias"].values()) == {None}
