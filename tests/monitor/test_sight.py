"""Where an actor runs is looked at as its placement has named it, and whatever a heartbeat names is no surprise."""

from __future__ import annotations

import os

import msgspec
import pytest

from actors.runtime.placement import process
from bus.messages import Heartbeat
from miles_async.monitor.diagnosis import Process
from miles_async.monitor.sight import as_json, look, process_of, shown


def test_a_process_is_looked_at_by_the_place_that_its_actor_tells() -> None:
    where = process.place(os.getpid())
    assert look(where) == process_of(os.getpid()) and look(where).where == where
    assert as_json(where) == {"pid": os.getpid()} and shown(as_json(where)) == where


@pytest.mark.parametrize("number", ["999999999", "99999999999999999999", "x", "-1", "²", ""])
def test_a_number_that_no_process_has_is_gone(number: str) -> None:
    assert look(f"pid {number}") == Process(f"pid {number}", "gone")


@pytest.mark.parametrize("where", ["", "moon 7"])
def test_of_a_place_that_nobody_looks_at_no_more_is_said_than_its_name(where: str) -> None:
    assert look(where) == Process(where)


@pytest.mark.parametrize("where", ["pid", "pid 1\n", "os.system 1", "pid 1; rm", "pid " + "1" * 300])
def test_a_heartbeat_from_a_place_that_no_placement_writes_is_refused(where: str) -> None:
    beat = Heartbeat(actor="dealer", role="dealer", incarnation=1, time=1.0, where=where)
    with pytest.raises(msgspec.ValidationError):
        msgspec.msgpack.decode(msgspec.msgpack.encode(beat), type=Heartbeat)
