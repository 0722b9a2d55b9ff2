"""A run that is trained by a backend from outside of the package, named in the configuration."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from launching import TINY, begin, events, launch, metrics, pid_of, summary, wait_until, write_config

from miles_async.cli.load import load
from miles_async.config.schema import ConfigError


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


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("megatrom", 'expected one of "megatron"'),
        ("half.Half", "it must be a class below miles_async.train.backend.LearnerBackend"),
    ],
)
def test_what_is_no_backend_is_refused_before_the_start(tmp_path: Path, name: str, said: str) -> None:
    (tmp_path / "half.py").write_text(
        "class Half:\n    def __init__(self, config, model_path, ranks): self.version = 0\n"
    )
    with pytest.raises(ConfigError, match=f'learner.train_backend = ".*{name[-4:]}".*{said}'):
        load(write_config(tmp_path, learner={"train_backend": name}))


def test_a_backend_that_cannot_be_made_ends_the_run_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from miles_async.train.backend import METHODS, LearnerBackend\n\n\n"
        "class Mine(LearnerBackend):\n    def __init__(self, config, model_path, ranks): raise KeyError(ranks.dp_rank)\n"
        "    for name in METHODS: locals()[name] = lambda self: None\n"
    )
    result = launch(write_config(tmp_path, learner={"train_backend": "mine.Mine"}), tmp_path / "run")
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    assert "learner.train_backend, mine.py:Mine: KeyError: 0" in last, last
