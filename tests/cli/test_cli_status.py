"""``status``: a living run is asked over its bus, an ended one has its summary, a killed one is called dead."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from engine_lines import set_engine
from typer.testing import CliRunner, Result

from bus import Roster, connect
from bus.codec import TOKENS, pack
from bus.ledger import Ledger
from bus.messages import Heartbeat, Metrics, Ticket, Wait
from bus.waits import WaitKind
from miles_async.cli import app as cli
from miles_async.cli.load import parse
from miles_async.monitor import Monitor
from miles_async.runs.lock import RunLock
from miles_async.runs.state import RunState, write

CONFIG = parse(
    '[model]\nhf_checkpoint = "here"\n[data]\nprompt_data = "here"\n[monitor]\ntensorboard = false', check=False
)


def status(*args: object) -> Result:
    return CliRunner().invoke(cli.app, ["status", *(str(arg) for arg in args)])


def write_supervisor(run_dir: Path, pid: int, url: str) -> RunLock:
    """As a supervisor leaves it; one that is this process holds the lock that is returned."""
    run_dir.mkdir(exist_ok=True)
    write(run_dir, RunState("status", 1, pid, bus_url=url))
    lock = RunLock(run_dir)
    lock.take()
    if pid != os.getpid():
        lock.release()
    return lock


def ended_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


ENGINE = {"engine_busy/engine-1": 1.0, "engine_running/engine-1": 3.0, "engine_tokens_per_s/engine-1": 45.6}


def record(run_dir: Path, steps: int) -> Monitor:
    monitor = Monitor(stream=open(os.devnull, "w"))  # noqa: SIM115
    monitor.start(CONFIG, run_dir, resumed=False)
    for step in range(1, steps + 1):
        values = {"raw_reward": 0.5, "n_samples": 8.0, "n_tokens": 80.0}
        monitor.on_metrics(Metrics(actor="learner-0", step=step, time=time.time(), values=values))
    says = ENGINE | {"router/inflight": 3.0}
    monitor.on_metrics(Metrics(actor="router", step=steps, time=time.time(), values=says))
    return monitor


async def populate(url: str) -> None:
    bus = await connect(url, "status")
    ledger = Ledger(bus)
    await ledger.prepare()
    tickets = [Ticket(group_id=f"0-{i}-0", prompt_tokens=pack([3], TOKENS), sampling_seed=i) for i in range(3)]
    await ledger.admit(tickets, limit=3, position=0)
    now = time.time()
    await bus.beat(Heartbeat(actor="dealer", role="dealer", incarnation=1, where="pid 1", time=now))
    wait = Wait(kind=WaitKind.GROUPS, since=now - 7, about={"step": 7})
    await bus.beat(Heartbeat(actor="learner-0", role="learner", incarnation=1, where="pid 2", time=now, waits=(wait,)))
    await set_engine(bus, "engine-0", "http://127.0.0.1:1", 1, 4, "serving")
    await set_engine(bus, "engine-1", "http://127.0.0.1:2", 1, 6, "serving")
    await bus.set_roster(Roster(frozenset({"engine-0", "engine-1"}), leaving=frozenset({"engine-1"})))
    await bus.close()


def test_a_living_run_says_who_waits_for_whom_and_where_every_group_is(tmp_path: Path, redis_url: str) -> None:
    run_dir = tmp_path / "run"
    record(run_dir, steps=6).finish("stopped", {})  # of an earlier launch
    write_supervisor(run_dir, os.getpid(), redis_url)
    asyncio.run(populate(redis_url))

    found = json.loads(status(run_dir, "--json").stdout)
    assert found["status"] == "running"
    assert found["ledger"]["dealt"] == found["ledger"]["waiting"] == 3
    assert (found["engines"]["engine-0"]["version"], found["engines"]["engine-0"]["lag"]) == (4, 2)
    actors = {actor["actor"]: actor for actor in found["actors"]}
    assert actors["dealer"]["waits_for"] == ""
    assert actors["learner-0"]["waits_for"] == "groups for step 7"
    assert actors["learner-0"]["waits_s"] == pytest.approx(7, abs=5)

    text = status(run_dir).stdout
    assert "waits for groups for step 7" in text
    assert "v4 serving, 2 behind\n" in text and "v6 serving, leaving, 3 running, 46 tokens/s\n" in text
    assert [found["engines"][name]["tokens_per_s"] for name in ("engine-0", "engine-1")] == [None, 45.6]
    assert [found["engines"][name]["leaving"] for name in ("engine-0", "engine-1")] == [False, True]
    assert "dealt 3 = waiting 3" in text


def test_a_living_run_whose_bus_is_gone_ends_with_3(tmp_path: Path) -> None:
    write_supervisor(tmp_path, os.getpid(), f"unix://{tmp_path}/no.sock")
    result = status(tmp_path)
    assert result.exit_code == 3
    assert "no.sock" in result.stderr
    assert result.stderr.count("\n") == 1


def test_an_ended_run_prints_its_summary(tmp_path: Path) -> None:
    record(tmp_path, steps=3).finish("finished", {"dealt": 3, "trained": 3})
    write_supervisor(tmp_path, ended_pid(), "unix:///gone")
    assert json.loads(status(tmp_path, "--json").stdout) == json.loads((tmp_path / "summary.json").read_text())
    assert "finished" in status(tmp_path).stdout


def test_a_run_whose_supervisor_was_killed_is_dead_and_says_how_far_it_came(tmp_path: Path) -> None:
    monitor = record(tmp_path, steps=3)
    assert monitor._record is not None
    monitor._record.close()
    write_supervisor(tmp_path, ended_pid(), "unix:///gone")
    found = json.loads(status(tmp_path, "--json").stdout)
    assert found["status"] == "dead"
    assert found["steps"] == 3
    assert found["ledger"] is None
    assert "dead" in status(tmp_path).stdout


def test_another_process_with_the_supervisors_number_is_not_the_supervisor(tmp_path: Path) -> None:
    record(tmp_path, steps=1).finish("stopped", {})
    write_supervisor(tmp_path, os.getpid(), "unix:///gone").release()
    assert json.loads(status(tmp_path, "--json").stdout)["status"] == "stopped"


def test_a_directory_without_a_run_is_bad_input(tmp_path: Path) -> None:
    result = status(tmp_path)
    assert result.exit_code == 2
    assert "no run here" in result.stderr
