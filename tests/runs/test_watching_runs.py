"""A run that is watched from other terminals: they show what it does, end with it, and leave it alone."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from launching import TINY, begin, environment, summary, wait_for_step, wait_until, write_config
from typer.testing import CliRunner
from warm_start import WarmPopen

import miles_async as ma
from miles_async.cli.app import app


class Watcher:
    """A command that watches the run; what it says goes to a file, which can be read while it goes on."""

    def __init__(self, file: Path, *words: object) -> None:
        command = [sys.executable, "-m", "miles_async.cli.app", *map(str, words)]
        self._file = file
        with file.open("wb") as out:
            self.process = WarmPopen(command, stdout=out, stderr=subprocess.STDOUT, env=environment())

    def said(self) -> list[str]:
        return self._file.read_text(errors="replace").splitlines()

    def steps(self) -> list[str]:
        return [line for line in self.said() if line.startswith("step ")]


class Watched(NamedTuple):
    """A run that was stopped, with who watched it. ``listed``: what ``runs`` printed while it lived."""

    run_dir: Path
    summary: dict[str, Any]
    top: Watcher
    logs: Watcher
    interrupted: Watcher
    listed: str


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    directory = tmp_path_factory.mktemp("watched")
    config = write_config(directory, run=TINY["run"] | {"num_steps": 100_000})
    run = begin(config, directory / "run")
    try:
        yield watch(run, directory)
    finally:
        run.kill()


def watch(run: subprocess.Popen[str], directory: Path) -> Watched:
    """Watch it, leave off, and stop it."""
    run_dir = directory / "run"
    wait_for_step(run_dir, 1, run)
    top, logs, interrupted = (
        Watcher(directory / name, *words, run_dir, *more)
        for name, words, more in (("top", ["top"], []), ("logs", ["logs"], ["-f"]), ("interrupted", ["top"], []))
    )
    wait_until(lambda: bool(top.steps() and logs.said() and interrupted.steps()), "word of who watches", run)
    interrupted.process.send_signal(signal.SIGINT)
    interrupted.process.wait(120)
    listed = CliRunner().invoke(app, ["runs", str(directory)]).stdout
    assert run.poll() is None, "the run ended with who watched it"
    assert ma.load(run_dir).stop()["status"] == "stopped"
    run.communicate(timeout=120)
    for watcher in (top, logs):
        watcher.process.wait(120)
    return Watched(run_dir, summary(run_dir), top, logs, interrupted, listed)


def test_top_shows_the_steps_of_a_run_and_ends_with_it_and_its_summary(watched: Watched) -> None:
    assert watched.top.process.returncode == 0
    lines = watched.top.said()
    assert lines[0] == str(watched.run_dir)
    assert all("/100000  reward " in line and "samples/s" in line for line in watched.top.steps())
    assert "stopped: interrupted" in lines
    assert any(line.startswith(f"steps    {watched.summary['steps']} of 100000") for line in lines)


def test_who_stops_watching_leaves_the_run_alone(watched: Watched) -> None:
    assert watched.interrupted.process.returncode == 0
    assert not any("stopped" in line or "Traceback" in line for line in watched.interrupted.said())
    assert watched.summary["status"] == "stopped" and watched.summary["balanced"]


def test_logs_follow_a_run_to_its_end(watched: Watched) -> None:
    assert watched.logs.process.returncode == 0
    files = (watched.run_dir / "logs").glob("*.log")
    written = {path.stem: path.read_text(errors="replace").splitlines() for path in files}
    said: dict[str, list[str]] = {name: [] for name in written}
    for line in watched.logs.said():
        name, _, text = line.partition(" | ")
        said[name.strip()].append(text)
    assert said == written and "learner_done" in said["learner-0"][-1]


def test_a_run_that_lives_is_listed_as_such(watched: Watched) -> None:
    (line,) = watched.listed.splitlines()[1:]
    name, state, step, *_ = line.split()
    assert (name, state) == ("run", "running") and int(step.partition("/")[0]) > 0
