"""The learner on a device: the numbers of one step beside those of a CPU in float32, and its speed.

MFU: model FLOPs of a step over what the card could do in its time (dense bfloat16, by NVIDIA's data sheets). Of a sequence of
t tokens, forward and backward: 6 P t + 6 L H t^2, with P weights of matrices, the output layer's among them, in L layers, and
heads of H numbers together (each token sees half of the sequence on average). What is computed again does not count, nor does
padding.
"""

from __future__ import annotations

import os
import resource
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.lib.gpu.size import Size
from benchmarks.lib.long_tail import long_tailed_groups
from bus.codec import TOKENS, unpack
from bus.messages import Group
from miles_async.config.schema import Data, Learner, Model, RunConfig, Staleness
from miles_async.train.ranks import alone
from miles_async.train.trainer import MegatronTrainer

# of Megatron's own layers where nothing splits them (tests/train/test_recompute.py)
_MEGATRONS = {"recompute_granularity": "selective", "recompute_modules": []}
WAYS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "rows, padded": {**_MEGATRONS, "qkv_format": "bshd"},
    "packed": {**_MEGATRONS, "qkv_format": "thd"},
    "packed, recomputed": {"recompute_granularity": "full", "qkv_format": "thd"},
}
LIMITS = {"log_prob_mean": 0.02, "gradient": 0.1}
PEAKS = {"H100": 989e12, "H200": 989e12, "B200": 2250e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12}


@dataclass(frozen=True)
class Seen:
    """What one step computed: log-probs before it, and by Hugging Face names the gradients."""

    log_probs: np.ndarray
    gradients: dict[str, torch.Tensor]  # float32, on the CPU

    def save(self, file: Path) -> None:
        torch.save({"log_probs": torch.from_numpy(self.log_probs), "gradients": self.gradients}, file)

    @classmethod
    def load(cls, file: Path) -> Seen:
        kept = torch.load(file, weights_only=True)
        return cls(kept["log_probs"].numpy(), kept["gradients"])


def reference(device: str, size: Size, root: Path) -> dict[str, Any]:
    """On a CPU in float32, whatever the device; kept in a file for :func:`compared`."""
    if device != "cpu":
        torch.set_num_threads(os.cpu_count() or 1)
    began = time.perf_counter()
    with _trainer(size.write(root)[0], "cpu", "float32", {}) as trainer:
        _seen(trainer, _groups(size, size.compared)).save(root / "reference.pt")
    return {"seconds": round(time.perf_counter() - began, 2)}


def compared(device: str, size: Size, root: Path) -> dict[str, Any]:
    """Each way in bfloat16 beside the reference. ``ok``: all within LIMITS."""
    expected, found = Seen.load(root / "reference.pt"), {}
    for name, settings in WAYS.items():
        with _trainer(size.write(root)[0], device, "bfloat16", settings) as trainer:
            found[name] = _apart(_seen(trainer, _groups(size, size.compared)), expected)
    ok = all(of[name] <= limit for of in found.values() for name, limit in LIMITS.items())
    return {"to_float32_on_a_cpu": found, "limits": LIMITS, "ok": ok}


def speed(device: str, size: Size, root: Path) -> dict[str, Any]:
    """Tokens per second of whole optimizer steps in bfloat16, and the peak of memory."""
    path, groups = size.write(root)[1], _groups(size, size.groups)
    with _trainer(path, device, "bfloat16", {}) as trainer:
        seconds = []
        for step in range(size.steps + 1):
            began = time.perf_counter()
            trainer.step(groups)  # its metrics are numbers: it waits for the device
            if step:  # the first one warms up
                seconds.append(time.perf_counter() - began)
        flops = _flops(trainer._bridge.hf_config, [len(tokens) for tokens in _sequences(groups)])
    took, tokens = statistics.median(seconds), sum(map(len, _sequences(groups)))
    peak = next((peak for name, peak in PEAKS.items() if device != "cpu" and name in _name(device).split()), None)
    resident = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    memory = resident if device == "cpu" else torch.cuda.max_memory_allocated()
    return {
        "step_s": round(took, 4),
        "tokens_per_s": round(tokens / took),
        "model_flops_per_s": flops / took,
        "mfu": round(flops / took / peak, 4) if peak else None,
        "peak_memory_gb": round(memory / 1e9, 3),
        "ok": True,
    }


def _flops(config: Any, lengths: list[int]) -> float:
    hidden, wide, size = config.hidden_size, config.intermediate_size, config.head_dim
    attention = hidden * size * (2 * config.num_attention_heads + 2 * config.num_key_value_heads)
    weights = config.num_hidden_layers * (attention + 3 * hidden * wide) + config.vocab_size * hidden
    of_heads = config.num_hidden_layers * config.num_attention_heads * size
    return sum(6.0 * weights * t + 6.0 * of_heads * t * t for t in lengths)


def _name(device: str) -> str:
    return torch.cuda.get_device_name(device).replace("-", " ")


def _groups(size: Size, count: int) -> list[Group]:
    return long_tailed_groups(count, 8, 1024, median=size.median, longest=size.longest)


def _sequences(groups: list[Group]) -> list[np.ndarray]:
    return [
        np.concatenate([unpack(group.prompt_tokens, TOKENS), unpack(sample.tokens, TOKENS)])
        for group in groups
        for sample in group.samples
    ]


@contextmanager
def _trainer(path: Path, device: str, dtype: str, settings: dict[str, Any]) -> Iterator[MegatronTrainer]:
    config = RunConfig(
        model=Model(hf_checkpoint=str(path), device=device, dtype=dtype),  # pyright: ignore[reportArgumentType]
        data=Data(),
        learner=Learner(lr=1e-5, **settings),
        staleness=Staleness(max_lag=1_000_000),
    )
    with tempfile.TemporaryDirectory() as meeting:
        trainer = MegatronTrainer(config, str(path), alone(f"file://{meeting}/alone"))
        try:
            yield trainer
        finally:
            trainer.close()


def _seen(trainer: MegatronTrainer, groups: list[Group]) -> Seen:
    log_probs = np.concatenate(trainer.log_probs(_sequences(groups), 1.0))
    model, gradients = trainer._policy.model, dict[str, torch.Tensor]()
    apply = model.apply_gradients

    def keep() -> dict[str, float]:
        gradients.update(_gradients(trainer))
        return apply()

    model.apply_gradients = keep  # pyright: ignore[reportAttributeAccessIssue]
    trainer.step(groups)
    return Seen(log_probs, gradients)


def _gradients(trainer: MegatronTrainer) -> dict[str, torch.Tensor]:
    """They lie in the places of weights for a moment: the bridge knows which are which."""
    modules = trainer._policy.model.modules
    kept = [(parameter, parameter.data) for module in modules for parameter in module.parameters()]
    try:
        for parameter, data in kept:
            parameter.data = parameter.main_grad.to(data.dtype)
        return {name: tensor.float().cpu().clone() for name, tensor in trainer._bridge.all_tensors(modules)}
    finally:
        for parameter, data in kept:
            parameter.data = data


def _apart(ours: Seen, theirs: Seen) -> dict[str, float]:
    """``gradient``: the norm of the difference, of all of the model, over that of the reference."""
    log_probs = np.abs(ours.log_probs - theirs.log_probs)
    difference = sum(float((ours.gradients[name] - grad).square().sum()) for name, grad in theirs.gradients.items())
    whole = sum(float(grad.square().sum()) for grad in theirs.gradients.values())
    return {
        "log_prob_mean": round(float(log_probs.mean()), 5),
        "log_prob_max": round(float(log_probs.max()), 5),
        "gradient": round((difference / whole) ** 0.5, 5),
    }
