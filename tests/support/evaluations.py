"""A configuration that evaluates, snapshots to be evaluated, and samples as an evaluation grades them."""

from __future__ import annotations

import os
from pathlib import Path

from miles_async.cli.load import parse
from miles_async.config.schema import RunConfig
from miles_async.evaluation.metrics import EvalSample
from miles_async.weights.snapshot import WEIGHTS_FILE

MINIMAL = """
[model]
hf_checkpoint = "builtin:digits"
[data]
prompt_data = "builtin:repeat"
[algorithm]
correction = "behaviour"
"""
EVAL = """
[eval]
eval_interval = 4
[eval.datasets.seen]
prompt_data = "builtin:repeat"
"""


def eval_config(*overrides: str, text: str = EVAL) -> RunConfig:
    return parse(MINIMAL + text, overrides)


def snapshot(root: Path, version: int) -> Path:
    path = root / f"i0001-v{version:08d}"
    path.mkdir(parents=True)
    (path / WEIGHTS_FILE).write_bytes(bytes([version]) * 10)
    (path / "config.json").write_text("{}")
    os.utime(path, (version, version))
    return path


def graded(reward: float | None, *, rollout: int = 0, length: int = 3, finish: str = "stop") -> EvalSample:
    return EvalSample(
        prompt_index=0,
        sample_index=rollout,
        rollout_index=rollout,
        prompt="",
        response="",
        label=None,
        reward=reward,
        finish_reason=finish,
        response_len=length,
    )
