"""A record that is read says what was published and batched last, and names what is missing."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from ledger_steps import group

from bus.codec import encode
from miles_async.monitor.record_lines import RecordError, TransitionLine
from miles_async.recording.reader import RecordedRun
from miles_async.recording.segments import Entry, block


def recorded(directory: Path, lines: list[TransitionLine], kept: list[tuple[str, str, bytes]]) -> RecordedRun:
    """``kept``: group id, lease, payload."""
    (directory / "transitions.jsonl").write_bytes(b"".join(msgspec.json.encode(line) + b"\n" for line in lines))
    (directory / "record").mkdir()
    for number, (group_id, lease, payload) in enumerate(kept):
        made = block([(Entry(group_id, lease, "published", len(payload)), payload)])
        (directory / "record" / f"{number}.seg").write_bytes(made)
    return RecordedRun(directory)


def line(kind: str, *groups: str, by: str = "", step: int = 0, reason: str = "") -> TransitionLine:
    return TransitionLine("1-0", kind, groups, by=by, step=step, reason=reason)


def test_a_group_is_the_attempt_that_was_published(tmp_path: Path) -> None:
    kept = [("a", "w/1", b"given up"), ("a", "w/2", b"published"), ("a", "w/3", b"too late")]
    run = recorded(tmp_path, [line("published", "a", by="w/2"), line("batched", "a", step=1)], kept)
    assert run.payload("a") == b"published"


def test_a_group_that_a_ledger_without_its_end_had_made_again_is_the_one_that_its_step_was_trained_on(
    tmp_path: Path,
) -> None:
    kept = [("a", "w/1", b"trained"), ("a", "w/2", b"made again before the learner came back")]
    lines = [line("published", "a", by="w/1"), line("batched", "a", step=1), line("published", "a", by="w/2")]
    run = recorded(tmp_path, [*lines, line("reconciled", "a", step=1)], kept)
    assert run.payload("a") == b"trained"


def test_of_two_that_one_lease_made_it_is_the_one_that_its_step_was_trained_on_wherever_they_lie(
    tmp_path: Path,
) -> None:
    """A ledger without its end has a worker that lives make a group again under the lease that it has."""
    made = [encode(msgspec.structs.replace(group("a"), finished=when)) for when in (1.5, 2.5)]
    kept = [("a", "w/1", payload) for payload in made]
    published = [msgspec.structs.replace(line("published", "a", by="w/1"), graded=when) for when in (1.5, 2.5)]
    batched = line("batched", "a", step=1)
    lost = [published[0], batched, published[1], line("reconciled", "a", step=1)]
    for name, lines, trained in (("batch", lost, made[0]), ("publication", [*published, batched], made[1])):
        (tmp_path / name).mkdir()
        assert recorded(tmp_path / name, lines, kept).payload("a") == trained, f"the {name} was lost"
    (tmp_path / "old").mkdir()
    assert recorded(tmp_path / "old", [line("published", "a", by="w/1"), batched], kept).payload("a") == made[1]


def test_of_a_step_that_was_recorded_twice_the_last_record_counts(tmp_path: Path) -> None:
    lines = [line("published", g, by="w/1") for g in "ab"]
    run = recorded(tmp_path, [*lines, line("batched", "a", step=1), line("batched", "b", step=1)], [("b", "w/1", b"x")])
    assert run.steps[1].groups == ("b",) and run.last_step == 1
    run.check(1, 1)


def test_what_was_recorded_behind_a_step_that_is_recorded_again_is_forgotten(tmp_path: Path) -> None:
    """The ledger had lost it with that step."""
    lines = [line("published", g, by="w/1") for g in "abcd"]
    lines += [line("batched", group, step=step) for step, group in enumerate("abc", 1)]
    run = recorded(tmp_path, [*lines, line("batched", "d", step=2)], [(g, "w/1", b"x") for g in "abcd"])
    assert {step: recorded.groups for step, recorded in run.steps.items()} == {1: ("a",), 2: ("d",)}
    with pytest.raises(RecordError, match="step 3 is not on record"):
        run.check(1, 3)


def test_a_step_trained_on_the_groups_that_were_not_quarantined(tmp_path: Path) -> None:
    lines = [line("published", g, by="w/1") for g in "abc"]
    lines += [line("batched", "a", "b", step=1), line("quarantined", "a", step=1, reason="not_finite")]
    lines += [line("extended", "c", step=1)]
    run = recorded(tmp_path, lines, [(g, "w/1", b"x") for g in "abc"])
    assert run.steps[1].trained == ("b", "c")
    assert run.steps[1].groups == ("a", "b", "c") and run.steps[1].lost == set()  # a replay leaves it out by itself
    assert run.payload("a") == b"x"


def test_a_group_whose_payload_was_gone_need_not_be_kept_and_one_that_is_missing_is_named(tmp_path: Path) -> None:
    lines = [line("published", g, by="w/1") for g in "abcd"]
    lines += [line("batched", "a", "b", step=1), line("quarantined", "b", step=1, reason="invalid_payload")]
    lines += [line("batched", "c", "d", step=2)]
    run = recorded(tmp_path, lines, [("a", "w/1", b"x"), ("c", "w/1", b"x")])
    run.check(1, 1)
    with pytest.raises(RecordError, match=r"of step 2 1 of 2 groups are not kept \(d for one\).*--set run.num_steps=1"):
        run.check(1, 2)
    with pytest.raises(RecordError, match="step 3 is not on record; its steps are 1 to 2"):
        run.check(3, 3)
    with pytest.raises(RecordError, match="group d is not in"):
        run.payload("d")


def test_a_directory_without_a_record_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="no run here that has a record"):
        RecordedRun(tmp_path)
    (tmp_path / "transitions.jsonl").touch()
    with pytest.raises(RecordError, match="no step of this run is on record"):
        RecordedRun(tmp_path)
