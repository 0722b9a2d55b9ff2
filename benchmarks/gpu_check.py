"""What cannot be seen on a CPU, on a machine with CUDA, in under ten minutes and without a network: ``make gpu-check``.

    reference (CPU, float32) ─► learner (bfloat16, packed and padded, recomputed) ─► engine, pushes ─► speed

Each part is a process of its own, so that one that fails, or is not done at its deadline, costs the others nothing. Prints one
JSON document: the command, the machine, what each part found (``ok``: within its limits). Exit code 0: all parts are; 1: one is
not; 2: there is no CUDA device. The models are made here.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

BUDGET_S = 570.0  # of all parts together
PARTS = {  # module of benchmarks.lib.gpu, function
    "reference": ("learner", "reference"),
    "learner": ("learner", "compared"),
    "engine": ("engine", "checked"),
    "speed": ("learner", "speed"),
}


def run(device: str = "cuda", parts: Sequence[str] = tuple(PARTS)) -> dict[str, Any]:
    """The document."""
    began, found = time.monotonic(), dict[str, Any]()
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as root:
        for name in parts:
            found[name] = _apart(name, device, root, BUDGET_S - (time.monotonic() - began))
    return {
        "command": "python -m benchmarks.gpu_check",
        **machine(device),
        "parts": found,
        "ok": all(part["ok"] for part in found.values()),
        "seconds": round(time.monotonic() - began, 1),
    }


def machine(device: str) -> dict[str, Any]:
    """What it was measured on."""
    import torch

    numbers = range(torch.cuda.device_count() if device != "cpu" else 0)
    cards = [torch.cuda.get_device_name(number) for number in numbers]
    with_te = importlib.util.find_spec("transformer_engine") is not None
    return {"device": device, "cards": cards, "torch": torch.__version__, "transformer_engine": with_te}


def part(name: str, device: str, root: Path) -> dict[str, Any]:
    """What one part finds, in this process."""
    from benchmarks.lib.gpu.size import SIZES

    module, function = PARTS[name]
    work = getattr(importlib.import_module(f"benchmarks.lib.gpu.{module}"), function)
    return {"ok": True, **work(device, SIZES[device], root)}


def _apart(name: str, device: str, root: str, left_s: float) -> dict[str, Any]:
    """The same in a process of its own; ``error`` where it has failed."""
    command = [sys.executable, "-m", "benchmarks.gpu_check", "--device", device, "--part", name, "--root", root]
    began = time.monotonic()
    try:
        ended = subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True, timeout=max(1.0, left_s))
    except subprocess.TimeoutExpired:
        return {"ok": False, "error": f"it was not done when its {left_s:.0f} s were over"}
    if ended.returncode:
        return {"ok": False, "error": f"exit code {ended.returncode}; it says on stderr why"}
    found = json.loads(ended.stdout.splitlines()[-1])
    print(f"{name}: {time.monotonic() - began:.0f} s", file=sys.stderr)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_check", description=__doc__)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"), help=argparse.SUPPRESS)
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)  # of a process of its own
    parser.add_argument("--root", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    import torch

    if options.device == "cuda" and not torch.cuda.is_available():
        print(f"error: gpu-check needs a CUDA device: torch {torch.__version__} sees none", file=sys.stderr)
        return 2
    if options.part:
        print(json.dumps(part(options.part, options.device, options.root)))
        return 0
    found = run(options.device)
    print(json.dumps(found, indent=2))
    return 0 if found["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
