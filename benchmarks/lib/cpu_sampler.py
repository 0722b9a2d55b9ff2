"""Where the threads of this process spend their CPU time: a sampler of call stacks that runs on the CPU clock of each thread.

    thread burns INTERVAL_S of CPU ─timer─► a signal of its own ─► the main thread looks at that thread's stack

Promises: the CPU time between two samples of a thread counts for the place where the second finds it; what the sampler takes
itself counts as ``profiler``, and threads that Python knows nothing of as ``native threads``; a forked child samples on. The
places go to PID.jsonl in the directory that MILES_ASYNC_SAMPLES names, a line every FLUSH_S at most (`Line`).
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import json
import os
import signal
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

from benchmarks.lib.layers import LayerTable, Place

DIRECTORY = "MILES_ASYNC_SAMPLES"
INTERVAL_S = 0.002  # of CPU; the kernel looks at such clocks once a tick, so that it may be 4 ms
FLUSH_S = 0.1
SWITCH_S = 1e-4  # the main thread looks at another one only once that lets go of the interpreter
SIGNALS = range(signal.SIGRTMIN + 4, signal.SIGRTMIN + 20)  # one for each thread that is sampled at a time
PROFILER = Place("profiler", "the sampler itself")
NATIVE = Place("native threads", "no Python")


class Line(NamedTuple):
    """What the threads of a process did since its line before."""

    time: float  # since the epoch
    places: list[tuple[str, str, float]]  # layer, function, CPU seconds


class _Event(ctypes.Structure):  # struct sigevent
    _fields_ = [
        ("value", ctypes.c_void_p),
        ("signal", ctypes.c_int),
        ("notify", ctypes.c_int),
        ("rest", ctypes.c_char * 48),
    ]


class _Times(ctypes.Structure):  # struct itimerspec
    _fields_ = [(name, ctypes.c_long) for name in ("every_s", "every_ns", "first_s", "first_ns")]


_libc = ctypes.CDLL(None, use_errno=True)


class _Thread:
    """A thread that is sampled, by its timer. Made in the thread itself."""

    def __init__(self, number: int) -> None:
        self.ident = threading.get_ident()
        self.clock = time.pthread_getcpuclockid(self.ident)
        self.seen_ns = time.clock_gettime_ns(self.clock)
        self._timer = ctypes.c_void_p()
        event, every_ns = _Event(None, number, 0), int(INTERVAL_S * 1e9)
        if _libc.timer_create(self.clock, ctypes.byref(event), ctypes.byref(self._timer)):
            raise OSError(ctypes.get_errno(), "timer_create")
        _libc.timer_settime(self._timer, 0, ctypes.byref(_Times(0, every_ns, 0, every_ns)), None)

    def end(self) -> None:
        _libc.timer_delete(self._timer)


class CpuSampler:
    """The sampler of a process and of those that are forked from it."""

    def __init__(self, directory: Path) -> None:
        self._directory, self._table = directory, LayerTable()
        self._looking = False

    def start(self) -> None:
        """Begin, in the main thread."""
        sys.setswitchinterval(SWITCH_S)
        for number in SIGNALS:
            signal.signal(number, self._look)
            signal.siginterrupt(number, False)
        threading.setprofile(self._first_event)
        os.register_at_fork(after_in_child=self._begin)
        atexit.register(self._end)
        self._begin()

    def _begin(self) -> None:
        self._looking = False
        self._lock = threading.Lock()
        self._threads: dict[int, _Thread] = {}
        self._places: Counter[Place] = Counter()
        self._total_ns, self._flushed = time.process_time_ns(), time.monotonic()
        self._add()

    def _end(self) -> None:
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        for thread in [*self._threads.values()]:
            thread.end()

    def _first_event(self, *_: Any) -> None:
        """In a new thread."""
        sys.setprofile(None)
        self._add()

    def _add(self) -> None:
        with self._lock, contextlib.suppress(StopIteration):  # more than there are signals: native threads
            alive = sys._current_frames()
            for number, thread in [*self._threads.items()]:
                if thread.ident not in alive:
                    self._threads.pop(number).end()
            number = next(number for number in SIGNALS if number not in self._threads)
            self._threads[number] = _Thread(number)

    def _look(self, number: int, frame: FrameType | None) -> None:
        if self._looking:  # another thread's timer rings meanwhile: its time counts at its next look
            return
        self._looking = True
        try:
            self._look_at(number, frame)
        finally:
            self._looking = False

    def _look_at(self, number: int, frame: FrameType | None) -> None:
        began = time.thread_time_ns()
        if (thread := self._threads.get(number)) is None:
            return
        main = self._threads[SIGNALS[0]]
        try:
            now = began if thread is main else time.clock_gettime_ns(thread.clock)
        except OSError:  # it has ended since its timer rang: what it did last counts as native
            return
        found = frame if thread is main else sys._current_frames().get(thread.ident)
        if found is not None:
            self._places[self._table.place(found)] += now - thread.seen_ns
        thread.seen_ns = now
        if time.monotonic() - self._flushed >= FLUSH_S:
            self._flush()
        took = time.thread_time_ns() - began
        self._places[PROFILER] += took
        main.seen_ns += took

    def _flush(self) -> None:
        total = time.process_time_ns()
        known = sum(self._places.values())
        # what threads did after their last sample is in their next one, so that this may be less than nothing once
        self._places[NATIVE] += total - self._total_ns - known
        line = Line(time.time(), [(*place, took / 1e9) for place, took in self._places.items()])
        with contextlib.suppress(OSError), (self._directory / f"{os.getpid()}.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
        self._total_ns, self._flushed = total, time.monotonic()
        self._places.clear()
