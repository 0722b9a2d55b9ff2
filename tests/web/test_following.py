"""A file that grows is read on from where it was read to; one that was replaced from its beginning."""

from __future__ import annotations

import os
from pathlib import Path

from web_runs import append

from miles_async.monitor.record_lines import EventLine
from miles_async.web.following import Follower


def event(n: int) -> EventLine:
    return EventLine("a", f"k{n}", float(n))


def test_each_line_is_given_once_and_whole(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    follower = Follower(path, EventLine)
    assert follower.read() == (False, [])
    append(path, event(1))
    with path.open("ab") as file:
        file.write(b'{"actor": "a", "kind"')
    assert follower.read() == (False, [event(1)])
    with path.open("ab") as file:
        file.write(b': "k2", "time": 2.0}\n')
    assert follower.read() == (False, [event(2)])
    assert follower.read() == (False, [])


def test_a_file_that_was_replaced_or_cut_is_begun_again(tmp_path: Path) -> None:
    path, other = tmp_path / "events.jsonl", tmp_path / "other"
    append(path, event(1), event(2))
    follower = Follower(path, EventLine)
    follower.read()
    append(other, event(1), event(3), event(4))
    other.replace(path)
    assert follower.read() == (True, [event(1), event(3), event(4)])
    os.truncate(path, 0)
    assert follower.read() == (True, [])
    path.unlink()
    assert follower.read() == (False, [])


def test_a_line_that_cannot_be_read_is_named_and_those_behind_it_are_read(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    append(path, event(1))
    with path.open("ab") as file:
        file.write(b"no json\n")
    append(path, event(2))
    follower = Follower(path, EventLine)
    assert follower.read()[1] == [event(1), event(2)]
    assert follower.trouble.startswith("events.jsonl line 2 cannot be read")
