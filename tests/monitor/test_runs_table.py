"""``miles-async runs``: a line for each run of a directory, whatever state it is in."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from monitored import close, started, train
from simulations import settings
from typer.testing import CliRunner

from miles_async.cli.app import app
from miles_async.monitor.runs_table import found_in, row
from miles_async.runs.lock import RunLock
from miles_async.runs.state import RunState, write
from miles_async.simulation.directory import simulate_into


def listed(root: Path) -> dict[str, Any]:
    result = CliRunner().invoke(app, ["runs", str(root), "--json"])
    assert result.exit_code == 0, result.output
    return {row["run"]: row for row in json.loads(result.stdout)}


def living(run_dir: Path, url: str | None) -> RunLock:
    run_dir.mkdir(exist_ok=True)
    write(run_dir, RunState("a-run", 1, os.getpid(), bus_url=url))
    lock = RunLock(run_dir)
    lock.take()
    return lock


def test_runs_in_any_state_are_listed_with_how_far_they_are(tmp_path: Path) -> None:
    now = time.time()
    ended = started(tmp_path / "ended")
    train(ended, 1, 10, now - 10)
    ended.finish("finished", {})
    for name in ("killed", "alive"):
        monitor = started(tmp_path / name)
        train(monitor, 1, 30, now - 60, seconds=2.0)
        close(monitor)
    write(tmp_path / "killed", RunState("another", 1, 1, bus_url="unix:///gone"))
    locks = [living(tmp_path / "alive", "unix:///there"), living(tmp_path / "begun", None)]
    (tmp_path / "no-run").mkdir()
    rows = listed(tmp_path)
    assert {name: row["state"] for name, row in rows.items()} == {
        "ended": "finished",
        "killed": "dead",
        "alive": "running",
        "begun": "starting",
    }
    assert (rows["alive"]["step"], rows["alive"]["num_steps"]) == (30, 40)
    assert rows["alive"]["reward"] == 0.28 and rows["alive"]["lag"] == 0.5  # the mean of the last 5 steps
    assert rows["alive"]["max_lag"] >= rows["alive"]["lag"] and rows["alive"]["tokens_per_s"] > 0
    assert rows["alive"]["samples_per_s"] == 5.0 and rows["ended"]["samples_per_s"] == 10.0
    assert list(listed(tmp_path / "ended")) == ["ended"]
    text = CliRunner().invoke(app, ["runs", str(tmp_path)]).stdout
    assert text.splitlines()[0].split() == ["run", "state", "step", "reward", "lag", "samples/s", "age"]
    assert any(line.split()[:4] == ["alive", "running", "30/40", "0.280"] for line in text.splitlines())
    for lock in locks:
        lock.release()


def test_a_damaged_run_is_a_line_and_takes_no_other_one_with_it(tmp_path: Path) -> None:
    monitor = started(tmp_path / "sound")
    train(monitor, 1, 3, time.time() - 3)
    monitor.finish("finished", {})
    for name, file in (("summary", "summary.json"), ("record", "metrics.jsonl"), ("config", "config.toml")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.jsonl").touch()
        (tmp_path / name / file).write_text("{]\n")
    rows = listed(tmp_path)
    assert rows["sound"]["state"] == "finished" and rows["sound"]["trouble"] == ""
    assert {name for name, row in rows.items() if row["state"] == "damaged" and row["trouble"]} == {
        "summary",
        "record",
        "config",
    }


def test_a_directory_that_cannot_be_looked_into_takes_no_run_with_it_nor_does_one_that_has_gone(tmp_path: Path) -> None:
    root = tmp_path
    while len(os.fsencode(root)) < 3900:
        root = root / ("d" * min(200, 4000 - len(os.fsencode(root))))
    (root / "run").mkdir(parents=True)
    (root / "run" / "metrics.jsonl").touch()
    (root / ("e" * 90)).mkdir()  # what is in it has a longer path than the system takes
    assert [path.name for path in found_in(root)] == ["run"]
    gone = row(tmp_path / "gone", time.time())
    assert (gone["run"], gone["age_s"], gone["changed"]) == ("gone", 0, 0)


def test_a_simulation_is_listed_among_the_runs(tmp_path: Path) -> None:
    simulate_into(settings("simulation.num_steps=5"), tmp_path / "simulated")
    row = listed(tmp_path)["simulated"]
    assert (row["state"], row["step"], row["num_steps"], row["trouble"]) == ("simulated", 5, 5, "")
    assert row["reward"] is None and row["samples_per_s"] > 0 and row["max_lag"] >= row["lag"]


def test_no_runs_are_said_and_no_directory_is_one_line(tmp_path: Path) -> None:
    assert CliRunner().invoke(app, ["runs", str(tmp_path)]).stdout == f"no runs in {tmp_path}\n"
    result = CliRunner().invoke(app, ["runs", str(tmp_path / "none")])
    assert result.exit_code == 2 and result.stderr == f"miles-async: {tmp_path / 'none'}: no such directory\n"
