"""Launches that import nothing: each is forked from one process that has imported all that a run needs.

Promises: a :class:`WarmPopen` is a ``subprocess.Popen`` of ``python -m MODULE ARGUMENTS``, a child of this process with the
arguments, environment, directory and pipes that it was given; its fork server is a process of its own, and its child. What
differs from the usual way is only that the modules are in memory: torch and Megatron cost seven seconds of CPU with each
launch, and the suite has a hundred. Where a start itself is what a test is about, it uses ``subprocess``.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import importlib
import itertools
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any, NoReturn

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36  # prctl(2)
_ORDER_BYTES = 1 << 17
_NEEDED = (
    "miles_async.cli.app",
    "actors.runtime.supervisor",
    "actors.runtime.placement.local",
    "multiprocessing.forkserver",
    "multiprocessing.popen_forkserver",
)
_PRELOADS = ("actors.runtime.placement.preload", "actors.runtime.placement.preload_learner")
# what Popen.__init__ of CPython 3.11 and 3.12 (Lib/subprocess.py) hands over besides the arguments, in its order
_HANDED = (
    *("executable", "preexec_fn", "close_fds", "pass_fds", "cwd", "env", "startupinfo", "creationflags", "shell"),
    *("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite"),
    *("restore_signals", "gid", "gids", "uid", "umask", "start_new_session", "process_group"),
)
_PIPES = slice(9, 15)
# what a program ignores if whoever starts it does (`nohup`, a shell's `&`); else it does this
_INHERITED = {signal.SIGHUP: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler}


class WarmPopen(subprocess.Popen[Any]):
    """Of ``[python, "-m", MODULE, *ARGUMENTS]``; takes what ``subprocess.Popen`` takes of ``stdout``, ``stderr``, ``text``,
    ``env``, ``cwd`` and ``start_new_session``."""

    def _execute_child(self, args: Sequence[str], *handed: Any) -> None:
        how = dict(zip(_HANDED, handed, strict=True))
        assert args[1] == "-m", args
        order = {
            "args": [str(arg) for arg in args],
            "cwd": os.fspath(how["cwd"] or os.getcwd()),
            "env": dict(how["env"] or os.environ),
            "session": bool(how["start_new_session"]),
            "ignored": [number for number in _INHERITED if signal.getsignal(number) is signal.SIG_IGN],
        }
        ends = (how["p2cread"], how["c2pwrite"], how["errwrite"])
        given = [number if number >= 0 else inherited for inherited, number in enumerate(ends)]
        with _adopting() as control:
            socket.send_fds(control, [json.dumps(order).encode()], given)
            self.pid = int(control.recv(64))
        self._child_created = True
        self._close_pipe_fds(*handed[_PIPES])


@contextlib.contextmanager
def _adopting() -> Iterator[socket.socket]:
    """Who takes orders. Meanwhile an orphan below this process becomes its child, which only such a one can wait for."""
    control = _server()
    prctl = ctypes.CDLL(None).prctl
    prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        yield control
    finally:
        prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


@cache
def _server() -> socket.socket:
    """Of this process, once it is needed."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        command, nothing = [sys.executable, __file__, str(theirs.fileno())], subprocess.DEVNULL
        server = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=nothing, stdout=nothing)
    atexit.register(server.kill)
    return ours


# the process that all of them are forked from


def _serve(control: socket.socket) -> None:
    for module in (*_PRELOADS, *_NEEDED):
        importlib.import_module(module)
    # a fork server ends with the thread that started it, which may be one of a pool here; this ends when no order can come
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, 0, 0, 0, 0)
    before = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    path = [entry for entry in sys.path[1:] if entry not in before]
    while True:
        content, given, _, _ = socket.recv_fds(control, _ORDER_BYTES, 3)
        if not content:
            return
        told, tells = os.pipe()
        if (between := os.fork()) == 0:
            if (number := os.fork()) == 0:
                os.close(told), os.close(tells), control.close()
                return _become(json.loads(content), given, path)
            os.write(tells, str(number).encode())
            os._exit(0)  # so that the other one is an orphan
        os.waitpid(between, 0)
        control.send(os.read(told, 64))
        for number in (told, tells, *given):
            os.close(number)


def _become(order: dict[str, Any], given: Sequence[int], path: Sequence[str]) -> None:
    """Be what ``python -m`` would have become."""
    import setproctitle

    for target, number in enumerate(given):
        os.dup2(number, target)
    os.closerange(3, max(given) + 1)
    if order["session"]:
        os.setsid()
    for number, usual in _INHERITED.items():
        signal.signal(number, signal.SIG_IGN if number in order["ignored"] else usual)
    os.chdir(order["cwd"])
    os.environ.clear()
    os.environ.update(order["env"])
    _, _, module, *arguments = order["args"]
    sys.argv = [module, *arguments]
    sys.path[:] = [order["cwd"], *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)), *path]
    setproctitle.setproctitle(" ".join(order["args"]))
    for again in (module, *_PRELOADS):  # they do something where they are imported
        sys.modules.pop(again, None)
    _fork_for_multiprocessing()
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _fork_for_multiprocessing() -> None:
    from multiprocessing import util

    usual = util.spawnv_passfds

    def spawn(program: bytes, args: Sequence[str], passed: Sequence[int]) -> int:
        if "forkserver" not in args[-1]:
            return usual(program, args, passed)
        pid = os.fork()
        return pid if pid else _run(args[-1], passed)

    util.spawnv_passfds = spawn


def _run(code: str, passed: Sequence[int]) -> NoReturn:
    """What ``python -c CODE`` would do, with those files alone, and the signals as a new program has them."""
    status = 1
    try:
        signal.set_wakeup_fd(-1)
        for number in signal.valid_signals():
            if callable(signal.getsignal(number)):
                usual = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
                signal.signal(number, usual)
        kept = sorted({2, *passed})  # what lies between them is the launch's
        for before, after in itertools.pairwise((*kept, 1 << 16)):
            if before + 1 < after:  # the system takes an empty range for all that there is
                os.closerange(before + 1, after)
        sys.argv = ["-c"]
        exec(code, {"__name__": "__main__"})
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[1])) as orders:
        _serve(orders)
