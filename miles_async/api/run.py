"""One run, seen from Python: its state, its end, its metrics and samples.

Promises: what is read is what the command line says of the run; only :meth:`Run.wait` and :meth:`Run.stop` wait for it, and an
event loop that runs here does not matter.
"""

from __future__ import annotations

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from subprocess import Popen
from typing import Any

from miles_async.cli.errors import BAD_INPUT, NO_REDIS
from miles_async.config.schema import ConfigError
from miles_async.config.words import nearest
from miles_async.monitor import status as status_of
from miles_async.monitor.record_lines import LEARNER, is_step, read_metrics
from miles_async.recording.samples import samples_of_step
from miles_async.runs import state
from miles_async.runs.state import living

LOG = "launch.log"  # in the run directory: what the launch said
STOP_S = 300.0
LOOK_S = 0.25


class RunFailedError(RuntimeError):
    """The run ended as failed, or its launch did not come to begin it: the cause, in one line."""


def load(run_dir: str | Path) -> Run:
    """A run that is there, alive or ended. Raises ConfigError: none is."""
    status_of.check_is_run(Path(run_dir))
    return Run(Path(run_dir).absolute())


class Run:
    """One run, by its directory."""

    def __init__(self, directory: Path, process: Popen[Any] | None = None, launched: float = 0.0) -> None:
        """``process``: its launch, where it is this program's, of the time ``launched``, in seconds since the epoch."""
        self.directory = directory
        self._process, self._launched = process, launched

    def __repr__(self) -> str:
        return f"Run({str(self.directory)!r})"

    def status(self) -> dict[str, Any]:
        """What ``miles-async status --json`` says: ``status`` "starting", "running" or "dead", or the summary of a run that has
        ended. Raises RunFailedError: the launch ended before there was a run; SilentBusError."""
        if not status_of.is_run(self.directory) or self._only_begins():
            if not self._lives():
                raise RunFailedError(self._last_words())
            return {"status": "starting", "run_dir": str(self.directory)}
        # asking a bus takes an event loop, and in a notebook there is one in this thread already
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(status_of.status, self.directory).result()

    def wait(self, timeout_s: float | None = None) -> dict[str, Any]:
        """Until the run ends; its summary. An interruption leaves the run alone. Raises RunFailedError, TimeoutError."""
        end = None if timeout_s is None else time.monotonic() + timeout_s
        while self._lives():
            self._check_that_it_was_taken()
            if end is not None and time.monotonic() > end:
                raise TimeoutError(f"the run in {self.directory} has not ended within {timeout_s:g} s")
            time.sleep(LOOK_S)
        self._check_that_it_was_taken()
        found = self.status()
        if found["status"] not in ("finished", "stopped"):
            raise RunFailedError(found["reason"] or self._last_words())
        return found

    def stop(self, timeout_s: float = STOP_S) -> dict[str, Any]:
        """Stop it in order, as a Ctrl-C does: it has a checkpoint then, and a launch with its ``run_dir`` goes on. Its summary.

        A run that has ended is left as it is. Raises ConfigError: it is another machine's; TimeoutError, RunFailedError.
        """
        if self._process is not None and self._lives():
            self._process.send_signal(signal.SIGINT)
        elif (supervisor := living(self.directory)) is not None and supervisor.pid:
            if supervisor.elsewhere:
                raise ConfigError(
                    f"{self.directory}: its launch is pid {supervisor.pid} on {supervisor.elsewhere}: stop it there"
                )
            os.kill(supervisor.pid, signal.SIGINT)
        return self.wait(timeout_s)

    def metrics(self, actor: str = LEARNER) -> Any:
        """What an actor has reported: of the learner a row for each step. A pandas DataFrame where pandas is there, else a list
        of dicts: ``step``, ``time`` (seconds since the epoch) and the metrics by their names (docs/metrics.md).

        Raises ConfigError: no such actor has reported anything; RecordError.
        """
        known: set[str] = set()
        rows: list[dict[str, Any]] = []
        for line in read_metrics(self.directory):
            known.add(line.actor)
            if line.actor == actor and (actor != LEARNER or is_step(line)):
                rows.append({"step": line.step, "time": line.time, **line.values})
        if actor not in known and actor != LEARNER:
            there = ", ".join(sorted(known)) or "none yet"
            raise ConfigError(f'no actor "{actor}" has reported anything{nearest(actor, known)} (actors: {there})')
        return _as_table(rows)

    def samples(self, step: int) -> list[dict[str, Any]]:
        """What the step was trained on, a dict for each sample: ``group``, ``index``, ``prompt``, ``label``, ``text`` (the
        response), ``reward``, ``reward_parts``, ``finish_reason``, ``length``, ``trained_tokens`` and ``versions``.

        Raises RecordError: the step is not on record, or its groups are not kept (``record.level``).
        """
        return samples_of_step(self.directory, step)

    def _lives(self) -> bool:
        """Whether a launch is alive; this program's counts from its first moment on."""
        if self._process is not None and self._process.poll() is None:
            return True
        return living(self.directory) is not None

    def _only_begins(self) -> bool:
        """Our launch has not taken the directory yet: what lies there is of the one before."""
        if self._process is None or self._process.poll() is not None:
            return False
        there = state.read(self.directory)
        return there is None or there.started < self._launched

    def _check_that_it_was_taken(self) -> None:
        """Raises RunFailedError: our launch was refused, and the run, if there is one, is as it was."""
        if self._process is not None and self._process.poll() in (BAD_INPUT, NO_REDIS):
            raise RunFailedError(self._last_words())

    def _last_words(self) -> str:
        try:
            lines = (self.directory / LOG).read_text(errors="replace").strip().splitlines()
        except FileNotFoundError:
            lines = []
        said = [line for line in lines if line.startswith("miles-async: ")] or lines
        return said[-1].removeprefix("miles-async: ") if said else f"the launch in {self.directory} said nothing"


def _as_table(rows: list[dict[str, Any]]) -> Any:
    try:
        import pandas  # pyright: ignore[reportMissingImports]
    except ImportError:
        return rows
    return pandas.DataFrame(rows)
