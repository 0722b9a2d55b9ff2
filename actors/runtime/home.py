"""The run directory as the supervisor uses it: identity, incarnation, inputs made locally, one supervisor at a time.

Promises: a run keeps its id for ever and counts its launches, also where a power cut emptied the file that says so; a
directory in which a launch is alive is refused; a full disk ends no launch that has begun; where its bus is, which may
hold a password, is for the user's own eyes.
"""

from __future__ import annotations

import contextlib
import errno
import os
import platform
import time
from pathlib import Path

import psutil

from actors.runtime.site import MEETINGS
from bus.listen import remove_socket
from miles_async.config.schema import RunConfig
from miles_async.data import bytes_to_read, load_prompts
from miles_async.evaluation.datasets import load_datasets
from miles_async.models.builtin import is_builtin, make_model
from miles_async.resume.begin import INPUTS
from miles_async.resume.remembered import remembered
from miles_async.runs import state
from miles_async.runs.lock import RunLock
from miles_async.runs.state import STATE_FILE, RunState, RunStateError
from miles_async.text.tokenizer import Tokenizer

UNWRITTEN = 1000  # more incarnations than a launch has while its disk is full
OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EIO)
CHECKED_BYTES = 32_000_000  # prompt files up to this size are read at launch


class RunHome:
    """The run directory ``path``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.state = RunState("", 0)  # until it is entered
        self.unwritten = ""  # why the file does not hold the state
        self._lock = RunLock(path)

    def enter(self) -> bool:
        """Take the directory for this launch; True if it holds an earlier launch.

        Raises RunInUseError, RunStateError (also where nothing can be written), OSError (of a disk that is full or fails).
        """
        try:
            return self._enter()
        except OSError as error:
            if error.errno in OF_THE_DISK:
                raise
            raise RunStateError(f"{self.path} cannot be a run directory: {error.strerror} ({error.filename})") from None

    def _enter(self) -> bool:
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock.take()
        try:
            earlier = state.read(self.path)
            # emptied; without one, what lies here is another run's
            if earlier is None and (self.path / STATE_FILE).exists():
                earlier = remembered(self.path)
            self._sweep(earlier)
            # a launch that was killed may have had numbers that its disk did not take
            skipped = UNWRITTEN if earlier and earlier.pid is not None else 0
            incarnation = earlier.incarnation + 1 + skipped if earlier else 1
            run_id = earlier.run_id if earlier else f"{self.path.name}-{os.urandom(4).hex()}"
            born = psutil.Process().create_time()
            self.state = RunState(run_id, incarnation, os.getpid(), time.time(), born, host=platform.node())
            self._write()
        except BaseException:
            self._lock.release()
            raise
        return earlier is not None

    def next_incarnation(self) -> int:
        """A number that no process of this run has had."""
        self.state.incarnation += 1
        self._try_to_write()
        return self.state.incarnation

    def go_past(self, incarnation: int) -> None:
        """The bus knows of this one, which the file may not have."""
        if incarnation >= self.state.incarnation:
            self.state.incarnation = incarnation
            self.next_incarnation()

    def announce(self, bus_url: str, redis_pid: int | None) -> None:
        """Where the bus is; ``redis_pid``: of a server of our own."""
        self.state.bus_url, self.state.redis_pid = bus_url, redis_pid
        self._try_to_write()

    def leave(self) -> None:
        """The launch is over: no process of it lives."""
        try:
            with contextlib.suppress(OSError):
                self._sweep(None)
            self.state.pid = self.state.bus_url = self.state.redis_pid = None
            self._try_to_write()
        finally:
            self._lock.release()

    def _sweep(self, earlier: RunState | None) -> None:
        """Remove what only processes that are gone had a use for: where ranks met, and the socket of a killed Redis."""
        for rendezvous in self.path.glob(f"{MEETINGS}*"):
            rendezvous.unlink(missing_ok=True)
        if earlier is not None:
            remove_socket(earlier.bus_url)

    def write_again(self) -> None:
        """What was not written."""
        if self.unwritten:
            self._try_to_write()

    def _try_to_write(self) -> None:
        """A full disk is no reason to end: the run goes on without its file, and says so in ``unwritten``."""
        try:
            self._write()
            self.unwritten = ""
        except OSError as error:
            self.unwritten = str(error)

    def _write(self) -> None:
        state.write(self.path, self.state)

    def model_path(self, config: RunConfig) -> Path:
        """Where the model's directory is, or will be made."""
        name = config.model.hf_checkpoint
        return self.path / INPUTS / "model" if is_builtin(name) else Path(name)


def make_inputs(name: str, directory: Path, seed: int) -> None:
    """Make a built-in model once; a launch that was interrupted while making it makes it again."""
    if (directory / "config.json").exists():
        return
    temporary = directory.with_name(f"{directory.name}.{os.getpid()}")
    temporary.mkdir(parents=True)
    make_model(name, temporary, seed)
    temporary.replace(directory)


def check_prompts(config: RunConfig, model_path: Path) -> None:
    """Read the prompts as the dealer will, unless that would take long: so a bad line is told before anything starts.

    Those of the evaluation are read in any case. Raises DataError, TokenizerError.
    """
    size = bytes_to_read(config.data)
    if size is not None and size <= CHECKED_BYTES:
        load_prompts(config, Tokenizer(model_path))
    if config.eval.eval_interval is not None:
        load_datasets(config, Tokenizer(model_path))
