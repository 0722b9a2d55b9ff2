"""The cells of a sweep, run: so many at a time, each a launch of its own in a directory of its own.

Promises: a cell that is finished is not run again, one that was interrupted goes on; a cell that fails costs itself; an
interruption stops the runs in order, and no other one begins; a directory in which another sweep was begun is refused.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from miles_async.config.schema import ConfigError
from miles_async.disk.durable import write_whole
from miles_async.monitor.summary import is_finished
from miles_async.sweeping.grid import Cell, Sweep

FILE = "sweep.toml"  # in the sweep's directory: what it was begun with
LOG = "launch.log"  # in the cell's: what its launches said


def claim(sweep: Sweep, text: str) -> None:
    """Take the directory for the sweep in ``text``. Raises ConfigError: another one has it."""
    root = Path(sweep.directory)
    root.mkdir(parents=True, exist_ok=True)
    begun = root / FILE
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
    """Run what is not finished; exit codes by name of those that were run. ``tell`` hears of each beginning and end."""
    waiting = [cell for cell in cells if not is_finished(run_dir(sweep, cell))]
    if done := len(cells) - len(waiting):
        tell(f"{done} of {len(cells)} cells are finished already")
    stopped, codes = asyncio.Event(), dict[str, int]()
    running: set[asyncio.subprocess.Process] = set()

    def interrupt() -> None:
        stopped.set()
        for process in running:  # once: a second one would end it by force
            process.send_signal(signal.SIGINT)

    async def worker() -> None:
        while waiting and not stopped.is_set():
            cell = waiting.pop(0)
            tell(f"{cell.name}: begins ({len(cells) - len(waiting)} of {len(cells)})")
            codes[cell.name] = await _run(sweep, cell, running)
            tell(f"{cell.name}: {'finished' if codes[cell.name] == 0 else f'exit code {codes[cell.name]}, see {LOG}'}")

    loop = asyncio.get_running_loop()
    for signum in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(signum, interrupt)
    await asyncio.gather(*(worker() for _ in range(sweep.jobs)))
    if stopped.is_set():
        raise KeyboardInterrupt
    return codes


async def _run(sweep: Sweep, cell: Cell, running: set[asyncio.subprocess.Process]) -> int:
    directory = run_dir(sweep, cell)
    directory.mkdir(mode=0o700, exist_ok=True)
    with (directory / LOG).open("ab") as log:
        process = await asyncio.create_subprocess_exec(
            *command(sweep, cell),
            stdout=log,
            stderr=log,
            stdin=asyncio.subprocess.DEVNULL,
            start_new_session=True,  # a Ctrl-C is handed on once, by us
            env=os.environ,
        )
        running.add(process)
        try:
            return await process.wait()
        finally:
            running.discard(process)
