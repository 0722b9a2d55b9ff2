"""A run that is trained by a backend from outside of the package, named in the configuration."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

from frozen_backend import FrozenBackend
from launching import TINY, begin, events, launch, metrics, pid_of, summary, wait_until, write_config

from miles_async.train.backend import LearnerBackend

OURS: Callable[..., LearnerBackend] = FrozenBackend  # for the type checker: it has all that the protocol asks


def test_a_backend_of_the_users_trains_a_run_and_goes_on_from_its_own_checkpoints(tmp_path: Path) -> None:
    config = write_config(
        tmp_path,
        run=TINY["run"] | {"num_steps": 6},
        learner={"train_backend": "frozen_backend.FrozenBackend"},
        checkpoint={"save_interval": 2, "save_hf": True},
    )
    run_dir = tmp_path / "run"
    process = begin(config, run_dir)
    wait_until(lambda: any((run_dir / "checkpoints").glob("*.json")), "a checkpoint", process)
    os.kill(pid_of(run_dir, "learner-0"), signal.SIGKILL)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    found = summary(run_dir)
    assert found["balanced"] and found["status"] == "finished"
    [resumed] = events(run_dir, "resumed")
    assert resumed["data"]["version"] >= 2
    steps = [line["step"] for line in metrics(run_dir) if "frozen" in line["values"]]
    assert set(steps) == set(range(1, 7))
    assert (run_dir / "hf" / "model.safetensors").is_file()


def test_a_backend_that_lacks_a_method_ends_the_launch_with_one_line(tmp_path: Path) -> None:
    (tmp_path / "half.py").write_text(
        "class Half:\n    def __init__(self, config, model_path, ranks): self.version = 0\n"
    )
    config = write_config(tmp_path, learner={"train_backend": "half.Half"})
    result = launch(config, tmp_path / "run")
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    assert "learner.train_backend, half.py:Half: it gave" in last and "it has no step and no export" in last, last
