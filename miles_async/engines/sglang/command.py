"""What the server is started with: its command line and environment. Pure, apart from looking at what is installed.

Promises: the stand-ins of ``shim/`` are put before a CPU server only, from which CUDA is hidden as well; the API key is
on no command line; further flags of the caller come last, so that they win.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

SHIM = Path(__file__).parent / "shim"
BOUND_EXEC = Path(__file__).parent / "bound_exec.py"
OLDEST_VERSION = (0, 5, 23)  # the one that the contract suite is run against
RETURN_ROUTES = "--enable-return-routed-experts"
# By default a CPU server takes most of the machine's memory for its KV cache.
CPU_KV_TOKENS = 65536


class SglangError(RuntimeError):
    """One clear line about the SGLang server: not installed, too old, did not start, does not stop."""


@dataclass(frozen=True, kw_only=True)
class ServerOptions:
    """What one server is started with. ``context_length`` in tokens (None: the model's). ``routes``: it can return experts."""

    model_path: str
    host: str
    port: int
    device: Literal["cpu", "cuda"]
    dtype: Literal["float32", "bfloat16"]
    max_running_requests: int
    context_length: int | None
    tp_size: int
    weight_version: str
    args: tuple[str, ...]
    routes: bool = False


def version_of(text: str) -> tuple[int, ...]:
    """The first three numbers of a version, ``(0, 0, 0)`` where there are none."""
    numbers = [int(part) for part in re.findall(r"\d+", text)[:3]]
    return tuple(numbers + [0] * (3 - len(numbers)))


def installed_version() -> str:
    """Version of the installed ``sglang``, which is not imported. Raises SglangError: none, or older than we know."""
    if importlib.util.find_spec("sglang") is None:
        raise SglangError(
            'engine.kind = "sglang" needs the package sglang, which is not installed for '
            f'{sys.executable}: requirements/install.sh test installs it for a CPU; or use engine.kind = "embedded"'
        )
    version = importlib.metadata.version("sglang")
    if version_of(version) < OLDEST_VERSION:
        raise SglangError(f"sglang {version} is installed; at least {'.'.join(map(str, OLDEST_VERSION))} is needed")
    return version


def resolve_device(device: Literal["auto", "cpu", "cuda"]) -> Literal["cpu", "cuda"]:
    """``auto`` is ``cuda`` where torch sees a GPU. Raises SglangError for ``cuda`` without one."""
    if device == "cpu":
        return "cpu"
    import torch  # takes seconds: whoever names the device does not pay for it

    if torch.cuda.is_available():
        return "cuda"
    if device == "cuda":
        raise SglangError('model.device = "cuda", but torch sees no GPU here: allowed are "auto" and "cpu"')
    return "cpu"


def command_line(options: ServerOptions, config_file: Path | None = None) -> list[str]:
    """The server's command. ``config_file``: a YAML file with further options, which other users cannot read."""
    flags: dict[str, str | int] = {
        "--model-path": options.model_path,
        "--host": options.host,
        "--port": options.port,
        "--device": options.device,
        "--dtype": options.dtype,
        "--max-running-requests": options.max_running_requests,
        "--tp-size": options.tp_size,
        "--weight-version": options.weight_version,
        "--log-level": "warning",  # at "info" there is a line for each request
    }
    if options.context_length is not None:
        flags["--context-length"] = options.context_length
    if options.device == "cpu":
        flags["--attention-backend"] = "torch_native"
        flags["--max-total-tokens"] = CPU_KV_TOKENS
    if config_file is not None:
        flags["--config"] = str(config_file)
    words = [sys.executable, "-m", "sglang.launch_server"]
    for flag, value in flags.items():
        words += [flag, str(value)]
    words.append("--sleep-on-idle")  # without it an idle scheduler burns a core
    if options.routes:
        words.append(RETURN_ROUTES)
    return [*words, *options.args]


def environment(device: Literal["cpu", "cuda"], temporary: Path, base: Mapping[str, str]) -> dict[str, str]:
    """The server's environment, from ``base``. ``temporary``: where its sockets go, which it does not remove itself."""
    env = dict(base) | {"TMPDIR": str(temporary)}
    # with it log-probs are not of the distribution that is sampled from, but of the one before the temperature
    env.pop("SGLANG_RETURN_ORIGINAL_LOGPROB", None)
    if device == "cpu":
        path: Sequence[str] = [str(SHIM), *filter(None, [base.get("PYTHONPATH")])]
        env |= {
            "PYTHONPATH": os.pathsep.join(path),
            "SGLANG_USE_CPU_ENGINE": "1",
            "CUDA_VISIBLE_DEVICES": "",
            "OMP_NUM_THREADS": "1",  # several processes share the cores, and the matrices are small
        }
    return env


def bound_to(parent: int, command: Sequence[str]) -> list[str]:
    """``command``, run so that it is killed when process ``parent`` dies."""
    return [sys.executable, "-I", "-S", str(BOUND_EXEC), str(parent), *command]
