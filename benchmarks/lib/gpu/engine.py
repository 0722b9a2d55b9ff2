"""The embedded engine on a device: its log-probs beside those of a CPU, its speed, and pushes of new weights to it."""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.lib.gpu.size import Size
from miles_async.config.schema import Data, Model, RunConfig, Weights
from miles_async.engines.lean_client import LeanEngineClient
from miles_async.weights.snapshot import load_snapshot, write_snapshot
from miles_async.weights.transports.table import make_transport
from miles_async.weights.update import Receiver

PROMPT, PROMPTS, LOG_PROB_LIMIT, VOCAB = 64, 16, 0.02, 1024
PUSHES, TIMEOUT_S = 3, 120.0
# what may break its engine comes last
WAYS = {
    "disk": ("disk", "auto"),
    "collective, gloo": ("collective", "gloo"),
    "collective, nccl": ("collective", "nccl"),
}


def checked(device: str, size: Size, root: Path) -> dict[str, Any]:
    """See the head of this file. ``ok``: the log-probs agree, and some way brought new weights."""
    model = size.write(root)[1]
    with ExitStack() as stack:
        # NCCL takes one process a card: where there is a second one, the engine is there
        places = (("cpu", "float32"), (_second(device), "bfloat16"))
        plain, url = map(_url, [_started(stack, model, *place, root) for place in places])
        count = min(size.answers, PROMPTS)
        apart = np.abs(_log_probs(url, count) - _log_probs(plain, count))
        began = time.perf_counter()
        generated = _generated(url, size)
        seconds = time.perf_counter() - began
        pushes = {name: _pushed(url, device, model, root, *way) for name, way in WAYS.items()}
    mean = round(float(apart.mean()), 5)
    return {
        "to_float32_on_a_cpu": {"log_prob_mean": mean, "log_prob_max": round(float(apart.max()), 5)},
        "limit": LOG_PROB_LIMIT,
        "tokens_per_s": round(generated / seconds),
        "push": pushes,
        "ok": mean <= LOG_PROB_LIMIT and any("seconds" in way for way in pushes.values()),
    }


def _second(device: str) -> str:
    return "cuda:1" if device == "cuda" and torch.cuda.device_count() > 1 else device


def _started(stack: ExitStack, model: Path, device: str, dtype: str, root: Path) -> subprocess.Popen[str]:
    """An engine's process, which ends with the stack."""
    command = [sys.executable, "-m", "miles_async.engines.embedded.server", "--model-path", str(model), "--port", "0"]
    command += ["--device", device, "--dtype", dtype, "--weight-version", "0", "--weight-roots", str(root)]
    command += ["--threads", str(os.cpu_count() or 1)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    stack.callback(process.wait)
    stack.callback(process.kill)
    return process


def _url(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    line = next((line for line in process.stdout if "http://" in line), None)
    if line is None:
        raise RuntimeError("an engine ended before it was ready; it says on stderr why")
    return line.split()[-1]


def _asked(url: str, body: dict[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(f"{url}/generate", json.dumps(body).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
        return json.load(answer)


def _prompt(number: int) -> list[int]:
    return np.random.default_rng(number).integers(2, VOCAB, PROMPT).tolist()


def _log_probs(url: str, count: int) -> np.ndarray:
    """Of all tokens of ``count`` prompts but the first ones."""
    found: list[float] = []
    for number in range(count):
        one_token = {"temperature": 1.0, "max_new_tokens": 1}
        asked = {
            "input_ids": _prompt(number),
            "sampling_params": one_token,
            "return_logprob": True,
            "logprob_start_len": 0,
        }
        tokens = _asked(url, asked)["meta_info"]["input_token_logprobs"]
        found += [float(token[0]) for token in tokens[1:]]
    return np.array(found)


def _generated(url: str, size: Size) -> int:
    """How many tokens came as answers to requests that were sent at once."""

    def ask(number: int) -> int:
        sampling = {"temperature": 1.0, "max_new_tokens": size.new_tokens, "ignore_eos": True, "sampling_seed": number}
        return _asked(url, {"input_ids": _prompt(number), "sampling_params": sampling})["meta_info"][
            "completion_tokens"
        ]

    with ThreadPoolExecutor(size.answers) as pool:
        return sum(pool.map(ask, range(size.answers)))


def _pushed(url: str, device: str, model: Path, root: Path, transport: str, backend: str) -> dict[str, Any]:
    """Seconds of a push to the engine (median), or why there is none."""
    if backend == "nccl" and device == "cpu":
        return {"refused": "there is no CUDA device"}
    try:
        return asyncio.run(_push(url, model, root, transport, backend))
    except Exception as error:
        return {"refused": str(error).partition("\n")[0] or type(error).__name__}


async def _push(url: str, model: Path, root: Path, transport: str, backend: str) -> dict[str, Any]:
    weights = Weights(transport=transport, backend=backend, timeout_s=TIMEOUT_S)  # pyright: ignore[reportArgumentType]
    way = make_transport(RunConfig(model=Model(hf_checkpoint=str(model)), data=Data(), weights=weights), root)
    client = LeanEngineClient(url, name="engine-0")
    tensors = {name: tensor.to(torch.bfloat16) for name, tensor in load_snapshot(model).items()}
    seconds, paused = [], []
    try:
        for version in range(1, PUSHES + 1):
            path = write_snapshot(root / "snapshots", version, 0, tensors, str(model))
            update = await way.prepare(path, (0, version))
            report = await way.push([Receiver("engine-0", client)], update)
            if report.failed:
                return {"refused": report.failed["engine-0"]}
            seconds.append(report.seconds)
            paused.append(report.paused_s["engine-0"])
    finally:
        await way.close()
        client.close()
    took = statistics.median(seconds)
    gigabytes = sum(tensor.nbytes for tensor in tensors.values()) / 1e9
    return {
        "gb": round(gigabytes, 3),
        "seconds": round(took, 3),
        "paused_s": round(statistics.median(paused), 3),
        "gb_per_s": round(gigabytes / took, 2),
    }
