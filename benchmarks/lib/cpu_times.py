"""CPU seconds of processes and of all below them, by role, while they run."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path

import psutil

CPU_INTERVAL_S = 0.5
# seconds since the epoch, role to CPU seconds, CPU seconds of the whole machine
Note = tuple[float, dict[str, float], float]


class CpuTimes:
    """CPU seconds of processes and all below them, by role, noted every ``interval_s`` (what a process did after its last
    note is missing). The role of an actor is the name of its log; all else goes by the name of the program."""

    def __init__(self, interval_s: float = CPU_INTERVAL_S) -> None:
        self._interval_s = interval_s
        self.notes: list[Note] = []
        self._seen: dict[int, tuple[str, float]] = {}

    @contextmanager
    def following(self, *pids: int) -> Iterator[None]:
        ended = threading.Event()
        thread = threading.Thread(target=self._follow, args=(pids, ended), daemon=True)
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

    def machine_between(self, begin: float, end: float) -> float:
        """CPU seconds of all that the machine did from one moment to another; as :meth:`between`."""
        return self._machine_at(end) - self._machine_at(begin)

    def roles(self) -> dict[int, str]:
        """The role of every process that was seen, by its pid."""
        return {pid: role for pid, (role, _) in self._seen.items()}

    def _at(self, moment: float) -> dict[str, float]:
        (_, before, _), (_, after, _), share = self._around(moment)
        return {role: before.get(role, 0.0) * (1 - share) + seconds * share for role, seconds in after.items()}

    def _machine_at(self, moment: float) -> float:
        (_, _, before), (_, _, after), share = self._around(moment)
        return before * (1 - share) + after * share

    def _around(self, moment: float) -> tuple[Note, Note, float]:
        """The notes before and after it, and how far it is from the one to the other."""
        for before, after in pairwise(self.notes):
            if before[0] <= moment <= after[0]:
                return before, after, (moment - before[0]) / (after[0] - before[0])
        raise ValueError(f"nothing was noted around {moment}")

    def _follow(self, pids: Sequence[int], ended: threading.Event) -> None:
        tops = list[psutil.Process]()
        for pid in pids:
            with suppress(psutil.NoSuchProcess):
                tops.append(psutil.Process(pid))
        while True:
            live = [self._look(top) for top in tops]
            if not any(live):
                return
            roles = dict.fromkeys((role for role, _ in self._seen.values()), 0.0)
            for role, seconds in self._seen.values():
                roles[role] += seconds
            self.notes.append((time.time(), roles, _machine_cpu_s()))
            if ended.wait(self._interval_s):
                return

    def _look(self, top: psutil.Process) -> bool:
        """Note what ``top`` and all below it have taken; False: it is gone."""
        with suppress(psutil.NoSuchProcess):
            for process in (top, *top.children(recursive=True)):
                with suppress(psutil.Error, OSError):
                    times = process.cpu_times()
                    self._seen[process.pid] = (_role(process), times.user + times.system)
            return True
        return False


def _machine_cpu_s() -> float:
    times = psutil.cpu_times()
    return sum(times) - times.idle - getattr(times, "iowait", 0.0) - getattr(times, "guest", 0.0)


def _role(process: psutil.Process) -> str:
    output = Path(os.readlink(f"/proc/{process.pid}/fd/1"))
    return output.stem.rpartition("-")[0] or output.stem if output.parent.name == "logs" else process.name()
