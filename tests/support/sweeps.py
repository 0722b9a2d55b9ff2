"""A ``miles-async sweep``: how it is begun, and how it ended."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from launching import environment
from warm_start import WarmPopen


def begin(file: Path, *extra: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "miles_async.cli.app", "sweep", str(file), *extra]
    return WarmPopen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment())


def ended(process: subprocess.Popen[str], code: int) -> str:
    out, err = process.communicate(timeout=300)
    assert process.returncode == code, out + err
    return out
