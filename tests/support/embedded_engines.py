"""Embedded engines as real processes, for the tests of the weight plane and the router."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from miles_async.weights.snapshot import load_snapshot, write_snapshot


@dataclass
class EngineProcess:
    """One engine. ``url`` answers from the start."""

    process: subprocess.Popen[str]
    url: str

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(10)

    def freeze(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.process.send_signal(signal.SIGCONT)


@contextlib.contextmanager
def engines(model: Path, count: int, *flags: str, port: int = 0) -> Iterator[list[EngineProcess]]:
    """``count`` engines that serve ``model`` as version 0; killed at the end."""
    command = [
        sys.executable,
        "-m",
        "miles_async.engines.embedded.server",
        "--model-path",
        str(model),
        "--device",
        "cpu",
    ]
    command += ["--dtype", "float32", "--weight-version", "0", "--port", str(port), *flags]
    command += ["--weight-roots", "/"]  # the tests' own directories are anywhere
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, bufsize=1) for _ in range(count)
    ]
    try:
        yield [EngineProcess(process, _url(process)) for process in processes]
    finally:
        for process in processes:
            process.kill()  # a frozen one, too
            process.wait(10)
            assert process.stdout is not None
            process.stdout.close()


def _url(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    for line in process.stdout:
        if "http://" in line:
            return line.split()[-1]
    raise RuntimeError(f"the engine ended with status {process.wait(10)} before it was ready")


def snapshot_of(model: Path, root: Path, version: int, incarnation: int = 0) -> Path:
    """A snapshot that differs from ``model`` by noise which depends on the version and the incarnation."""
    noise = torch.Generator().manual_seed(1000 * incarnation + version)
    tensors = {
        name: tensor + 0.01 * torch.randn(tensor.shape, generator=noise)
        for name, tensor in load_snapshot(model).items()
    }
    return write_snapshot(root, version, incarnation, tensors, str(model))
