"""CPU seconds of a process and of all below it, by role, while it runs."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path

import psutil

CPU_INTERVAL_S = 0.5


class CpuTimes:
    """CPU seconds of a process and all below it, by role, noted every ``interval_s`` (what a process did after its last
    note is missing). The role of an actor is the name of its log; all else goes by the name of the program."""

    def __init__(self, interval_s: float = CPU_INTERVAL_S) -> None:
        self._interval_s = interval_s
        # seconds since the epoch, role to CPU seconds, CPU seconds of the whole machine
        self.notes: list[tuple[float, dict[str, float], float]] = []
        self._seen: dict[int, tuple[str, float]] = {}

    @contextmanager
    def following(self, pid: int) -> Iterator[None]:
        ended = threading.Event()
        thread = threading.Thread(target=self._follow, args=(pid, ended), daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def until(self, moment: float) -> dict[str, float]:
        """``cpu_s`` and ``cpu_s/ROLE`` at the last note before ``moment``; ``others_cores``: what all else kept busy."""
        begin, _, before = self.notes[0]
        end, roles, busy = next(note for note in reversed(self.notes) if note[0] <= moment)
        total = sum(roles.values())
        others = max(0.0, busy - before - total) / max(end - begin, self._interval_s)
        by_role = {f"cpu_s/{role}": seconds for role, seconds in sorted(roles.items())}
        return {"cpu_s": total, "others_cores": others} | by_role

    def between(self, begin: float, end: float) -> dict[str, float]:
        """Role to CPU seconds from one moment (since the epoch) to another, as if each did equally much between two notes.

        Raises ValueError: it was not followed for so long.
        """
        before, after = self._at(begin), self._at(end)
        return {role: seconds - before.get(role, 0.0) for role, seconds in after.items()}

    def roles(self) -> dict[int, str]:
        """The role of every process that was seen, by its pid."""
        return {pid: role for pid, (role, _) in self._seen.items()}

    def _at(self, moment: float) -> dict[str, float]:
        for (begin, before, _), (end, after, _) in pairwise(self.notes):
            if begin <= moment <= end:
                share = (moment - begin) / (end - begin)
                return {role: before.get(role, 0.0) * (1 - share) + seconds * share for role, seconds in after.items()}
        raise ValueError(f"nothing was noted around {moment}")

    def _follow(self, pid: int, ended: threading.Event) -> None:
        with suppress(psutil.NoSuchProcess):
            top = psutil.Process(pid)
            while True:
                for process in (top, *top.children(recursive=True)):
                    with suppress(psutil.Error, OSError):
                        times = process.cpu_times()
                        self._seen[process.pid] = (_role(process), times.user + times.system)
                roles = dict.fromkeys((role for role, _ in self._seen.values()), 0.0)
                for role, seconds in self._seen.values():
                    roles[role] += seconds
                self.notes.append((time.time(), roles, _machine_cpu_s()))
                if ended.wait(self._interval_s):
                    return


def _machine_cpu_s() -> float:
    times = psutil.cpu_times()
    return sum(times) - times.idle - getattr(times, "iowait", 0.0) - getattr(times, "guest", 0.0)


def _role(process: psutil.Process) -> str:
    output = Path(os.readlink(f"/proc/{process.pid}/fd/1"))
    return output.stem.rpartition("-")[0] or output.stem if output.parent.name == "logs" else process.name()
