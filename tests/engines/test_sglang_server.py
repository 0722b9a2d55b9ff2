"""What the SGLang driver is made of, without SGLang: the shim, the command line, the process group that dies with us."""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from miles_async.engines.sglang import process_group
from miles_async.engines.sglang.command import (
    SHIM,
    ServerOptions,
    bound_to,
    command_line,
    environment,
    installed_version,
)
from miles_async.engines.sglang.crowded import LEAST, share
from miles_async.engines.sglang.driver import SglangError, SglangServer, free_port

ROOT = Path(__file__).parents[2]
DEADLINE_S = 20.0
OPTIONS = ServerOptions(
    model_path="model",
    host="127.0.0.1",
    port=1234,
    device="cpu",
    dtype="float32",
    max_running_requests=8,
    context_length=None,
    tp_size=1,
    weight_version="3",
    args=("--max-total-tokens", "99"),
)
# A leader that ignores SIGTERM and has started a process of its own; it says when both run.
STUBBORN = (
    "import signal, subprocess, sys; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
    "child = subprocess.Popen([sys.executable, '-S', '-c', 'import time; time.sleep(600)']); "
    "print(child.pid, flush=True); child.wait()"
)

linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux can bind a process to its parent's life")


def wait_until_gone(group: int) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while members := process_group.running_members(group):
        assert time.monotonic() < deadline, f"processes {members} still run"
        time.sleep(0.02)


def start_stubborn() -> subprocess.Popen[str]:
    """The leader of a group of three (with its reaper), ready."""
    process = subprocess.Popen(
        bound_to(os.getpid(), [sys.executable, "-S", "-c", STUBBORN]),
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert int(process.stdout.readline()) in process_group.running_members(process.pid)
    return process


@linux
def test_a_group_whose_leader_is_killed_is_gone() -> None:
    leader = start_stubborn()
    assert len(process_group.running_members(leader.pid)) == 3
    leader.kill()
    wait_until_gone(leader.pid)
    leader.wait()


@linux
def test_a_group_whose_parent_is_killed_is_gone() -> None:
    script = (
        "import os, subprocess, sys; from miles_async.engines.sglang.command import bound_to; "
        f"p = subprocess.Popen(bound_to(os.getpid(), [sys.executable, '-S', '-c', {STUBBORN!r}]), start_new_session=True,"
        " stdout=subprocess.PIPE); p.stdout.readline(); print(p.pid, flush=True); p.wait()"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert parent.stdout is not None
    group = int(parent.stdout.readline())
    assert len(process_group.running_members(group)) == 3
    parent.kill()
    parent.wait()
    wait_until_gone(group)


@linux
def test_nothing_is_started_for_a_parent_that_is_gone(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    process = subprocess.run(
        bound_to(psutil.Process().ppid(), ["/bin/sh", "-c", f"touch {mark}"]), start_new_session=True, check=False
    )
    assert process.returncode == -signal.SIGKILL
    assert not mark.exists()


async def test_ending_a_group_takes_those_that_ignore_sigterm() -> None:
    leader = start_stubborn()
    await process_group.end(leader.pid, grace_s=0.1, deadline_s=DEADLINE_S)
    assert process_group.running_members(leader.pid) == []
    leader.wait()
    await process_group.end(leader.pid, grace_s=0.1, deadline_s=DEADLINE_S)  # a second time: nothing to do


def test_the_callers_flags_come_last_and_the_api_key_is_on_no_command_line(tmp_path: Path) -> None:
    words = command_line(OPTIONS, tmp_path / "secret.yaml")
    assert words[-2:] == ["--max-total-tokens", "99"]
    assert words[words.index("--config") + 1] == str(tmp_path / "secret.yaml")
    assert "--api-key" not in words


def test_only_a_cpu_server_gets_the_shim_and_sees_no_gpu(tmp_path: Path) -> None:
    base = {"PYTHONPATH": "mine", "CUDA_VISIBLE_DEVICES": "0"}
    cpu, cuda = environment("cpu", tmp_path, base), environment("cuda", tmp_path, base)
    assert cpu["PYTHONPATH"] == f"{SHIM}{os.pathsep}mine"
    assert cpu["CUDA_VISIBLE_DEVICES"] == ""
    assert cuda == {**base, "TMPDIR": str(tmp_path)}
    assert "--attention-backend" not in command_line(OPTIONS.__class__(**{**vars(OPTIONS), "device": "cuda"}))
    for routes in (True, False):
        words = command_line(OPTIONS.__class__(**{**vars(OPTIONS), "routes": routes}))
        assert ("--enable-return-routed-experts" in words) == routes


def run_python(code: str, *flags: str, shim: bool = False) -> subprocess.CompletedProcess[str]:
    env = dict(os.environ) | ({"PYTHONPATH": str(SHIM)} if shim else {})
    return subprocess.run(
        [sys.executable, *flags, "-c", code], capture_output=True, text=True, env=env, cwd=ROOT, check=False
    )


def test_without_sglang_one_line_says_so() -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "from miles_async.engines.sglang.command import SglangError, installed_version\n"
        "try: installed_version()\n"
        "except SglangError as error: print(error)"
    )
    result = run_python(code, "-I", "-S")  # no site-packages
    assert result.stdout.count("\n") == 1, result.stderr
    assert "sglang, which is not installed" in result.stdout


async def test_a_port_in_use_is_named_before_anything_starts(tmp_path: Path) -> None:
    if importlib.util.find_spec("sglang") is None:
        pytest.skip("sglang is not installed")
    assert installed_version()
    with socket.create_server(("127.0.0.1", free_port("127.0.0.1"))) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SglangError, match=f"127.0.0.1:{port}: Address already in use"):
            await SglangServer.start("model", port=port, device="cpu", log_file=tmp_path / "log.txt")
    assert not (tmp_path / "log.txt").exists()


async def test_a_start_may_last_as_much_longer_as_its_machine_is_crowded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if importlib.util.find_spec("sglang") is None:
        pytest.skip("sglang is not installed")
    assert [share(load, 2) for load in (0.0, 2.0, 8.0, 1e9)] == [1.0, 1.0, 0.25, LEAST]
    stand_in = tmp_path / "path" / "sglang" / "launch_server.py"
    stand_in.parent.mkdir(parents=True)
    stand_in.write_text("import signal; signal.pause()")  # a server that hangs
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "path"))
    loads = [1e9] * 12  # then everybody is gone

    def load() -> tuple[float, float, float]:
        return (loads.pop() if loads else 0.0, 0.0, 0.0)

    monkeypatch.setattr(os, "getloadavg", load)
    with pytest.raises(SglangError, match=r"did not answer /health within 1 s"):
        await SglangServer.start("model", device="cpu", log_file=tmp_path / "log.txt", timeout_s=1.0)
    assert not loads  # three seconds of a crowded machine


@pytest.mark.skipif(importlib.util.find_spec("triton") is not None, reason="a really installed Triton wins")
def test_the_shim_serves_imports_and_answers_probes_with_absent() -> None:
    code = """
import importlib.util, sys
from torch.utils._triton import has_triton_package
assert not has_triton_package() and "triton" not in sys.modules
assert importlib.util.find_spec("triton") is None
import triton, triton.language as tl
from triton.runtime import KernelInterface
assert triton.cdiv(7, 2) == 4 and triton.next_power_of_2(9) == 16
class Mine(KernelInterface): pass
@triton.jit
def kernel(x: tl.constexpr): return x
@triton.jit(debug=True)
def other(x): return x
assert kernel(3) == other(3) == 3
try: triton.anything[(1,)]
except RuntimeError as error: print(error)
"""
    result = run_python(code, shim=True)
    assert "stand-in" in result.stdout, result.stderr


def test_the_kernels_shim_fills_page_tables_and_refuses_the_rest() -> None:
    code = """
import torch, sgl_kernel
table = torch.zeros(3, 6, dtype=torch.int32)
sgl_kernel.assign_req_to_token_pool_cpu(
    torch.tensor([2, 0]), table, torch.tensor([1, 0]), torch.tensor([3, 3]), torch.tensor([7, 8, 9, 10, 11]), 6)
assert table.tolist() == [[9, 10, 11, 0, 0, 0], [0] * 6, [0, 7, 8, 0, 0, 0]]
try: sgl_kernel.rmsnorm()
except NotImplementedError as error: print(error)
"""
    result = run_python(code, shim=True)
    assert "sgl_kernel.rmsnorm" in result.stdout, result.stderr
