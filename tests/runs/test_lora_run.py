"""A run that trains adapters alone learns, goes on after a kill, and leaves a model and its adapters."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import torch
from launching import TINY, begin, metrics, pid_of, summary, wait_for_step, write_config
from safetensors.torch import load_file


def test_a_run_with_adapters_learns_across_a_kill_and_leaves_both_exports(tmp_path: Path) -> None:
    config = write_config(
        tmp_path,
        run=TINY["run"] | {"num_steps": 40},
        rollout=TINY["rollout"] | {"n_samples_per_prompt": 8},
        reward={"rm_type": "graded_match"},
        learner={"lr": 1e-2, "lora_rank": 16, "lora_alpha": 32.0, "num_ranks": 1},
        checkpoint={"save_interval": 10, "async_save": True, "save_hf": True},
    )
    run_dir = tmp_path / "run"
    process = begin(config, run_dir)
    wait_for_step(run_dir, 15, process)
    os.kill(pid_of(run_dir, "learner-0"), signal.SIGKILL)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    found = summary(run_dir)
    assert found["status"] == "finished" and found["balanced"]
    rewards = {
        line["step"]: line["values"]["raw_reward"] for line in metrics(run_dir) if "raw_reward" in line["values"]
    }
    first, last = (sum(rewards[step] for step in steps) / 8 for steps in (range(1, 9), range(33, 41)))
    assert last > 1.5 * first
    base = load_file(run_dir / "inputs" / "model" / "model.safetensors")
    merged = load_file(run_dir / "hf" / "model.safetensors")
    assert {name for name in base if not torch.equal(base[name], merged[name])} == {n for n in base if "_proj." in n}
    assert (run_dir / "hf_adapters" / "adapter_config.json").is_file()
