"""The Ray actor that keeps a launch: it outlives the command that asked for it, and Ray starts it again.

Promises: the launch is a process of its own, which ends with this one, also by kill -9; where it dies of a signal this process
dies, too, and Ray starts both again, on this machine or another, as often as it was told to; what ends of itself, well or not,
is not started again; the run goes on from its directory, as any launch on it does, once nobody else holds that; who holds it
for longer than that is waited for is named.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import ray

from bus.server import die_with_parent
from miles_async.runs import lock

NAME = "launch"
ASKED_S = 20.0  # for whoever asks how it ended
HELD_S = 120.0  # a machine that Ray has given up needs up to a minute to see that, and with it the launch there
LOOK_S = 0.2
PRIVATE = 0o600
STOPPED = 130  # what a launch that was interrupted ends with


_die_with_this = die_with_parent(signal.SIGKILL)


def _as_a_launch() -> None:
    """In the child: it hears signals, which Ray's processes have blocked."""
    _die_with_this()
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


class Keeper:
    """``command``: the launch; ``env``: what its environment has besides this process's own; ``held_s``: how long a launch
    that is started again waits for the one before it to leave the directory."""

    def __init__(
        self, command: Sequence[str], run_dir: str, log: str, cwd: str, env: Mapping[str, str], held_s: float
    ) -> None:
        self._command, self._run_dir, self._log, self._cwd, self._env = command, Path(run_dir), log, cwd, env
        self._held_s = held_s
        self._child: subprocess.Popen[bytes] | None = None
        self._over = threading.Event()
        self._told = False  # to stop: it is not started again, however it ends
        self._code = 0
        self._again = ray.get_runtime_context().was_current_actor_reconstructed
        self._handle = ray.get_runtime_context().current_actor
        # a thread that lives as long as the launch: with it ends what was told to end with its parent
        threading.Thread(target=self._keep, daemon=True).start()

    def ended(self) -> int:
        """Wait for the end of the launch; its exit code."""
        self._over.wait()
        return self._code

    def signal(self, signum: int) -> None:
        """Tell the launch to stop."""
        self._told = True
        if self._child is not None:
            with contextlib.suppress(ProcessLookupError):
                self._child.send_signal(signum)

    def _keep(self) -> None:
        log = os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, PRIVATE)
        if self._again and (held := until_free(self._run_dir, self._held_s)):
            os.write(log, f"miles-async: {held}, also after {self._held_s:g} s\n".encode())  # the launch may refuse it
        path = os.pathsep.join(part for part in sys.path if part)
        environment = {**os.environ, **self._env, "PYTHONPATH": path}
        self._child = subprocess.Popen(
            self._command,
            cwd=self._cwd,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            preexec_fn=_as_a_launch,  # noqa: PLW1509
        )
        code = self._child.wait()
        if code < 0 and not self._told:
            os.write(log, f"miles-async: the launch was killed by signal {-code}\n".encode())
            os._exit(1)  # Ray starts the next one
        self._code = code if code >= 0 else STOPPED
        self._over.set()
        time.sleep(ASKED_S)
        ray.kill(self._handle, no_restart=True)


def until_free(run_dir: Path, held_s: float) -> str:
    """Wait until no launch holds ``run_dir``, for at most ``held_s``; who does then, in words, or "".

    The launch before may live, on a machine that has not seen yet that it was given up.
    """
    until = time.monotonic() + held_s
    while True:
        try:
            held = lock.in_use(run_dir)
        except OSError as error:  # of a file system that other machines share
            held = f"{run_dir} cannot be looked at ({error})"
        if not held or time.monotonic() >= until:
            return held
        time.sleep(LOOK_S)
