"""Machines of one box: network namespaces with an address each, a /tmp and a memory of their own, and shared directories.

    with machines(("one", "two"), shared=(tmp_path,)) as net:
        net["one"].run(["redis-cli", "-h", net["two"].address, "ping"])

Promises: what is started on a machine reaches another one only by its address, and sees of its files only what is shared; no
namespace, interface or mount is left behind, however the test ends: all of them live as long as a process that ends with it.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from bus.server import die_with_parent
from miles_async.weights.interface import GLOO, NCCL

ROOT = Path(__file__).parents[2]
NETWORK = "10.213.77"
ROUTE = f"ip route add default via {NETWORK}.254"  # where nobody is: Ray finds no address of its own without one
NAMESPACES = ("--net", "--mount", "--uts")
PRIVATE = ("/tmp", "/var/tmp", "/dev/shm")
OF_THIS_ONE = ("TMPDIR", "TEMP", "TMP", GLOO, NCCL)
READY_S = 20.0


@dataclass(frozen=True)
class Machine:
    """``holder``: the process whose namespaces it is."""

    name: str
    address: str
    holder: int

    def command(self, words: Sequence[str]) -> list[str]:
        """``words``, to be run here by a process of any machine."""
        return ["nsenter", "--target", str(self.holder), *NAMESPACES, "--wd=/", "--", *words]

    def popen(self, words: Sequence[str], **options: Any) -> subprocess.Popen[str]:
        """Start a program here. Its process is the one that is returned, and ends with this one."""
        options = {"text": True, "env": environment(), "preexec_fn": die_with_parent(signal.SIGKILL)} | options
        return subprocess.Popen(self.command(words), **options)

    def run(self, words: Sequence[str], timeout: float = 60.0, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a program here to its end; what it wrote is in the result."""
        options = {"text": True, "env": environment(), "capture_output": True} | options
        return subprocess.run(self.command(words), timeout=timeout, check=False, **options)

    def processes(self) -> list[psutil.Process]:
        """Who runs here."""
        here = os.readlink(f"/proc/{self.holder}/ns/net")
        found: list[psutil.Process] = []
        for process in psutil.process_iter():
            with contextlib.suppress(OSError):
                if os.readlink(f"/proc/{process.pid}/ns/net") == here:
                    found.append(process)
        return found

    def kill(self) -> None:
        """The machine is lost: all that runs on it, at once. Its namespaces stay."""
        for process in self.processes():
            if process.pid != self.holder:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()


def environment(**extra: str) -> dict[str, str]:
    """Of what runs on a machine: the code of this checkout and the tests' own, no directory and no interface of this one."""
    path = os.pathsep.join((str(ROOT), str(Path(__file__).parent)))
    kept = {key: value for key, value in os.environ.items() if key not in OF_THIS_ONE}
    return {**kept, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **extra}


def why_not() -> str:
    """Why there can be no machines here; "": there can."""
    try:
        trial = "ip link add m0 type veth peer name m1 && ip link add m2 type bridge && mount -t tmpfs none /tmp"
        done = _done(["unshare", *NAMESPACES, "sh", "-c", trial])
        entered = _done(["nsenter", "--version"])
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"no network namespaces here: {error}"
    wrong = done if done.returncode else entered
    return f"no network namespaces here: {wrong.stderr.strip()[:200]}" if wrong.returncode else ""


@contextlib.contextmanager
def machines(names: Sequence[str], shared: Sequence[Path]) -> Iterator[Mapping[str, Machine]]:
    """``names`` on one network. They share the directories ``shared``, besides what lies outside of PRIVATE anyway."""
    kept = sorted({str(path.resolve()) for path in (*shared, ROOT, Path(sys.prefix), Path(sys.base_prefix))})
    with contextlib.ExitStack() as stack:
        switch = stack.enter_context(_held(["unshare", "--net"], "ip link add hub type bridge && ip link set hub up"))
        made: dict[str, Machine] = {}
        for number, name in enumerate(names, 1):
            script = f"hostname {shlex.quote(name)} && {_private(kept)}"
            holder = stack.enter_context(_held(["unshare", *NAMESPACES, "--propagation", "private"], script))
            machine = made[name] = Machine(name, f"{NETWORK}.{number}", holder)
            _sh(f"ip link add p{number} netns {switch} type veth peer name wire netns {holder}")
            _sh(f"ip link set p{number} master hub up", switch)
            wire = f"ip address add {machine.address}/24 dev wire && ip link set wire up"
            _sh(f"ip link set lo up && {wire} && {ROUTE}", holder)
        stack.callback(lambda: [machine.kill() for machine in made.values()])
        yield made


def _private(kept: Sequence[str]) -> str:
    """A script that hides what others have in PRIVATE, but for the directories ``kept``."""
    hidden = [path for path in kept if path.startswith(tuple(f"{place}/" for place in PRIVATE))]
    opened = [f"exec {number}<{shlex.quote(path)}" for number, path in enumerate(hidden, 3)]
    mounted = [f"mount -t tmpfs -o mode=1777 none {place}" for place in PRIVATE]
    bound = [
        f"mkdir -p {shlex.quote(path)} && mount -c --bind /proc/self/fd/{number} {shlex.quote(path)} && exec {number}<&-"
        for number, path in enumerate(hidden, 3)
    ]
    return " && ".join((*opened, *mounted, *bound))


@contextlib.contextmanager
def _held(unshare: Sequence[str], script: str) -> Iterator[int]:
    """The process of namespaces that ``script`` has prepared. They end with it, and it with this one."""
    words = [*unshare, "sh", "-c", f"{script} && echo ready && exec cat"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    process = subprocess.Popen(words, preexec_fn=die_with_parent(signal.SIGKILL), **pipes)  # noqa: PLW1509
    assert process.stdout is not None and process.stdin is not None
    try:
        assert process.stdout.readline() == "ready\n", f"{shlex.join(words)} ended with {process.wait(READY_S)}"
        yield process.pid
    finally:
        process.stdin.close()
        process.kill()
        process.wait()
        process.stdout.close()


def _sh(line: str, holder: int | None = None) -> None:
    """A line of commands in the network of ``holder``, or in this process's own."""
    where = [] if holder is None else ["nsenter", "--target", str(holder), "--net", "--"]
    done = _done([*where, "sh", "-c", line])
    assert done.returncode == 0, f"{line}: {done.stderr}"


def _done(words: Sequence[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, capture_output=True, text=True, timeout=READY_S, check=False)
