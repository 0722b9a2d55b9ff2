"""A launch that is forked is what one that is started would be."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from warm_start import WarmPopen, _server

PROGRAM = """
import json, os, signal, sys, multiprocessing
usual = {signal.SIGTERM: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler}
handlers = [signal.getsignal(number) is handler for number, handler in usual.items()]
print(json.dumps([
    sys.argv[1:], os.getcwd(), os.environ.get("MINE"), os.environ.get("OMP_NUM_THREADS"), os.getsid(0) == os.getpid(),
    __name__, sys.path[0], handlers, multiprocessing.current_process().name, sorted(os.listdir("/proc/self/fd"))[:4],
]))
print("trouble", file=sys.stderr)
if "wait" in sys.argv:
    sys.stdout.flush()
    signal.pause()
sys.exit(7)
"""


@pytest.mark.parametrize("new_session", [False, True])
def test_a_forked_launch_has_the_arguments_environment_place_pipes_and_end_of_a_started_one(
    tmp_path: Path, new_session: bool
) -> None:
    (tmp_path / "my_program.py").write_text(PROGRAM)
    (tmp_path / "place").mkdir()
    command = [sys.executable, "-m", "my_program", "a b", "é"]
    found = []
    for popen in (subprocess.Popen, WarmPopen):
        process = popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(tmp_path), "MINE": "x"},
            cwd=tmp_path / "place",
            start_new_session=new_session,
        )
        found.append((*process.communicate(timeout=60), process.returncode))
    assert found[0] == found[1] and found[0][2] == 7


def test_launches_are_forked_also_when_the_thread_of_the_first_one_has_ended(tmp_path: Path) -> None:
    (tmp_path / "my_program.py").write_text(PROGRAM)
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}

    def launch() -> int:
        _server.cache_clear()
        nothing = subprocess.DEVNULL
        return WarmPopen([sys.executable, "-m", "my_program"], stdout=nothing, stderr=nothing, env=env).wait(60)

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(launch).result() == 7
    again = WarmPopen(
        [sys.executable, "-m", "my_program"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=env
    )
    assert again.wait(60) == 7


def test_a_forked_launch_is_a_child_that_can_be_killed_and_waited_for(tmp_path: Path) -> None:
    (tmp_path / "my_program.py").write_text(PROGRAM)
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    process = WarmPopen(
        [sys.executable, "-m", "my_program", "wait"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=env
    )
    assert process.stdout is not None and process.stdout.readline()
    assert psutil.Process(process.pid).ppid() == os.getpid() and process.poll() is None
    process.kill()
    assert process.wait(timeout=60) == -signal.SIGKILL
    process.stdout.close()
    assert not psutil.pid_exists(process.pid)
