"""The sampler of `bench step` never harms whom it looks at."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.lib.cpu_sampler import DIRECTORY
from benchmarks.lib.launched import ROOT, python_path

# the signal of the thread's timer is kept back until the thread is gone
LATE_SIGNAL = """
import signal, threading, time
from benchmarks.lib.cpu_sampler import SIGNALS

def burn():
    while time.thread_time() < 0.05:
        pass

signal.pthread_sigmask(signal.SIG_BLOCK, [SIGNALS[1]])
thread = threading.Thread(target=burn)
thread.start()
thread.join()
print(SIGNALS[1] in signal.sigpending())
signal.pthread_sigmask(signal.SIG_UNBLOCK, [SIGNALS[1]])
"""

# two looks at once would change what the other goes through
SIGNAL_IN_A_LOOK = """
import signal
from benchmarks.lib.cpu_sampler import PROFILER, SIGNALS

inside = most = 0

def place(_):
    global inside, most
    inside += 1
    most = max(most, inside)
    if inside < 3:
        signal.raise_signal(SIGNALS[0])
    inside -= 1
    return PROFILER

signal.getsignal(SIGNALS[0]).__self__._table.place = place
signal.raise_signal(SIGNALS[0])
print(most == 1)
"""


@pytest.mark.parametrize("script", [LATE_SIGNAL, SIGNAL_IN_A_LOOK], ids=["late", "nested"])
def test_a_signal_may_come_at_any_moment(script: str, tmp_path: Path) -> None:
    sampled = {DIRECTORY: str(tmp_path), "PYTHONPATH": python_path(ROOT / "benchmarks" / "lib" / "sampled")}
    command = [sys.executable, "-c", script]
    process = subprocess.run(command, env=os.environ | sampled, capture_output=True, text=True, timeout=60, check=False)
    assert (process.returncode, process.stdout) == (0, "True\n"), process.stderr
