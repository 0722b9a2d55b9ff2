"""A whole run that is trained by the fsdp backend, over two ranks, one of which is killed on the way."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import torch
from launching import TINY, begin, events, metrics, pid_of, summary, wait_until, write_config
from safetensors.torch import load_file
from typer.testing import CliRunner

from miles_async.cli.app import app


def test_a_run_with_sharded_learners_goes_on_after_a_kill_and_is_converted(tmp_path: Path) -> None:
    config = write_config(
        tmp_path,
        run=TINY["run"] | {"num_steps": 6},
        learner=TINY["learner"] | {"train_backend": "fsdp", "num_ranks": 2},
        checkpoint={"save_interval": 2, "async_save": True, "save_hf": True},
    )
    run_dir = tmp_path / "run"
    process = begin(config, run_dir)
    wait_until((run_dir / "checkpoints" / "latest").exists, "a checkpoint", process)
    os.kill(pid_of(run_dir, "learner-1"), signal.SIGKILL)
    _, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    found = summary(run_dir)
    assert found["balanced"] and found["status"] == "finished"
    assert events(run_dir, "resumed")[0]["data"]["version"] >= 2
    assert {line["step"] for line in metrics(run_dir) if "raw_reward" in line["values"]} == set(range(1, 7))
    result = CliRunner().invoke(app, ["convert", str(run_dir), str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    ours, theirs = (load_file(path / "model.safetensors") for path in (tmp_path / "out", run_dir / "hf"))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
