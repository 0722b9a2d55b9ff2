"""A placement of somebody else's: the supervisor is handed it and asks it for everything, and actors ask it where they are."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from elsewhere import ASKED, Elsewhere
from launching import events, left_behind, summary, write_config

from actors.runtime.spec import ActorId
from actors.runtime.supervisor import OK, Supervisor
from miles_async.cli.load import load
from miles_async.monitor import Monitor


@pytest.mark.usefixtures("as_a_launch")
def test_a_run_on_a_placement_of_ones_own_ends_in_order_and_replaces_who_was_taken_away(tmp_path: Path) -> None:
    config, run_dir = load(write_config(tmp_path), []), tmp_path / "run"
    placement = Elsewhere(victim=ActorId("rollout-0", 1))
    assert Supervisor(config, run_dir, Monitor(stream=io.StringIO()), placement).run() == OK
    found = summary(run_dir)
    assert found["status"] == "finished" and found["steps"] == 4 and found["balanced"]
    [restarted] = events(run_dir, "restarted")
    assert restarted["data"]["cause"] == "rollout-0: it was elsewhere, and killed by signal 9"
    assert ActorId("rollout-0", 2) in placement.started  # another life, under the same name
    assert len(placement.started) == len(set(placement.started)) and set(placement.ends) == set(placement.started)
    assert placement.calls == ["warm_up", "make_room", "go_on", "end", "close"]
    assert left_behind(run_dir) == []
    # nobody has gone past what the placement says of where they are
    asked = (run_dir / ASKED).read_text().splitlines()
    assert asked.count("rendezvous 1") == 1 and asked.count("snapshot_root") == 5
    assert not list(run_dir.glob("rendezvous-*"))
    urls = [up["data"]["url"] for up in events(run_dir, "engine_up")]
    assert urls and all(url.startswith("http://127.0.0.2:") for url in urls)
