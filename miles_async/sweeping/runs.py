"""The cells of a sweep, run: so many at a time, each in a directory of its own; runs and replays as launches, simulations one
after the other in a process for each job.

Promises: a cell that is finished is not run again, one that was interrupted goes on (a simulation begins again, which gives the
same); a cell that fails costs itself; an interruption stops the runs in order, and no other one begins; so does the end of this
process, also by kill -9, and the next sweep waits for that; a directory in which another sweep was begun, or something else
lies, is refused.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from bus.server import die_with_parent
from miles_async.config.schema import ConfigError
from miles_async.disk.durable import write_whole
from miles_async.monitor.summary import is_finished
from miles_async.runs import kinds
from miles_async.runs.lock import RunInUseError, holder
from miles_async.sweeping.grid import Cell, Sweep
from miles_async.sweeping.simulating import Asked, answer_of, ask

LOG = "launch.log"  # in the cell's: what its launches said
LEFT_S = 120.0  # for a launch that has been told to stop
LOOK_S = 0.1


class Job(Protocol):
    """Runs one cell after the other."""

    async def run(self, cell: Cell) -> int:
        """The exit code."""
        ...

    def interrupt(self) -> None:
        """The cell that is under way ends in order."""
        ...

    async def close(self) -> None: ...


def claim(sweep: Sweep, text: str) -> None:
    """Take the directory for the sweep in ``text``. Raises ConfigError: another one has it, or something else."""
    root = Path(sweep.directory)
    kinds.refuse_another(root, kinds.SWEEP)
    root.mkdir(parents=True, exist_ok=True)
    begun = root / kinds.SWEEP_FILE
    if not begun.exists():
        write_whole(begun, text.encode())
    elif begun.read_bytes() != text.encode():
        raise ConfigError(f"{root} was begun with another sweep ({begun}): give this one another sweep.directory")


def command(sweep: Sweep, cell: Cell) -> list[str]:
    """The launch of one cell."""
    begin = ["launch", sweep.config] if sweep.config else ["replay", sweep.replay]
    sets = [part for override in cell.overrides for part in ("--set", override)]
    return [sys.executable, "-m", "miles_async", *begin, *sets, "--run-dir", str(run_dir(sweep, cell)), "--json"]


def run_dir(sweep: Sweep, cell: Cell) -> Path:
    return Path(sweep.directory) / cell.name


async def run_cells(sweep: Sweep, cells: Sequence[Cell], tell: Callable[[str], None]) -> dict[str, int]:
    """Run what is not finished; exit codes by name of those that were run. ``tell`` hears of each beginning and end.

    Raises RunInUseError: a launch lives in a cell, and does not leave it; KeyboardInterrupt.
    """
    for cell in cells:
        await _left(run_dir(sweep, cell), tell)
    waiting = [cell for cell in cells if not is_finished(run_dir(sweep, cell))]
    if done := len(cells) - len(waiting):
        tell(f"{done} of {len(cells)} cells are finished already")
    stopped, codes = asyncio.Event(), dict[str, int]()
    jobs: list[Job] = [Simulations(sweep) if sweep.simulation else Launches(sweep) for _ in range(sweep.jobs)]

    def interrupt() -> None:
        if not stopped.is_set():  # once: a second one would end a run by force
            stopped.set()
            for job in jobs:
                job.interrupt()

    async def worker(job: Job) -> None:
        try:
            while waiting and not stopped.is_set():
                cell = waiting.pop(0)
                tell(f"{cell.name}: begins ({len(cells) - len(waiting)} of {len(cells)})")
                codes[cell.name] = code = await job.run(cell)
                if code and stopped.is_set():
                    tell(f"{cell.name}: interrupted")
                else:
                    tell(f"{cell.name}: {'finished' if code == 0 else f'exit code {code}, see {LOG}'}")
        finally:
            await job.close()

    loop = asyncio.get_running_loop()
    for signum in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(signum, interrupt)
    await asyncio.gather(*(worker(job) for job in jobs))
    if stopped.is_set():
        raise KeyboardInterrupt
    return codes


async def _left(directory: Path, tell: Callable[[str], None]) -> None:
    """Wait until the launch that a sweep which was killed had under way there has stopped. Raises RunInUseError."""
    until, told = time.monotonic() + LEFT_S, False
    while (pid := holder(directory)) is not None:
        if time.monotonic() > until:
            raise RunInUseError(
                f"{directory} is in use by a launch that is alive (pid {pid}): of another sweep, if one runs"
            )
        if not told:
            tell(f"{directory.name}: waits for the launch of an earlier sweep to stop (pid {pid})")
        told = True
        await asyncio.sleep(LOOK_S)


class Launches:
    """Each cell is a launch of its own, which a Ctrl-C is handed on to."""

    def __init__(self, sweep: Sweep) -> None:
        self._sweep = sweep
        self._process: asyncio.subprocess.Process | None = None
        self._interrupted = False

    async def run(self, cell: Cell) -> int:
        directory = run_dir(self._sweep, cell)
        directory.mkdir(mode=0o700, exist_ok=True)
        with (directory / LOG).open("ab") as log:
            self._process = process = await asyncio.create_subprocess_exec(
                *command(self._sweep, cell),
                stdout=log,
                stderr=log,
                stdin=asyncio.subprocess.DEVNULL,
                start_new_session=True,  # a Ctrl-C is handed on once, by us
                preexec_fn=die_with_parent(signal.SIGTERM),  # which it hears as one
                env=os.environ,
            )
            if self._interrupted:  # while it was started
                process.send_signal(signal.SIGINT)
            try:
                return await process.wait()
            finally:
                self._process = None

    def interrupt(self) -> None:
        self._interrupted = True
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)

    async def close(self) -> None:
        """Nothing of it is left."""


class Simulations:
    """One process that simulates the cells that it is asked for: to start one for each would take longer than they do."""

    def __init__(self, sweep: Sweep) -> None:
        self._sweep = sweep
        self._process: asyncio.subprocess.Process | None = None

    async def run(self, cell: Cell) -> int:
        directory = run_dir(self._sweep, cell)
        directory.mkdir(mode=0o700, exist_ok=True)
        if self._process is None:
            pipe = asyncio.subprocess.PIPE
            self._process = await asyncio.create_subprocess_exec(
                *ask(self._sweep.simulation),
                stdin=pipe,
                stdout=pipe,
                start_new_session=True,
                preexec_fn=die_with_parent(signal.SIGTERM),
                env=os.environ,
            )
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None
        stdin.write(Asked(str(directory), list(cell.overrides)).line())
        line = await stdout.readline()
        if not line:  # it was interrupted, or died
            code, self._process = await self._process.wait(), None
            return code or 1
        code, words = answer_of(line)
        (directory / LOG).write_text(words)
        return code

    def interrupt(self) -> None:
        if self._process is not None:
            self._process.terminate()  # a cell without a summary is simulated again

    async def close(self) -> None:
        if self._process is not None:
            assert self._process.stdin is not None
            self._process.stdin.close()
            await self._process.wait()
