"""The sampler of `bench step` never harms whom it looks at."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

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


def test_a_thread_may_end_between_its_signal_and_the_look_at_it(tmp_path: Path) -> None:
    sampled = {DIRECTORY: str(tmp_path), "PYTHONPATH": python_path(ROOT / "benchmarks" / "lib" / "sampled")}
    command = [sys.executable, "-c", LATE_SIGNAL]
    process = subprocess.run(command, env=os.environ | sampled, capture_output=True, text=True, timeout=60, check=False)
    assert (process.returncode, process.stdout) == (0, "True\n"), process.stderr
