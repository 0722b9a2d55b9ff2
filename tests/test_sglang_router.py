"""``router.kind = "sglang"``: a run behind the real sglang-router."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import psutil
import pytest
import runs

from miles_async.config import ConfigError
from miles_async.config_load import load

SGLANG = {"router": {"kind": "sglang", "api_key": "a-key-of-the-router"}, "engine": {"api_key": "a-key-of-engines"}}


def test_a_run_trains_through_sglang_router_and_gets_another_one_when_it_dies(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    config = runs.write_config(tmp_path, **SGLANG, run={"num_steps": 60, "restart_backoff_s": 0.2})
    process = runs.begin(config, run_dir)
    try:
        runs.wait_for_step(run_dir, 3, process)
        (router,) = psutil.Process(runs.pid_of(run_dir, "router")).children()
        assert "sglang" in " ".join(router.cmdline())
        assert "a-key" not in " ".join(router.cmdline())
        os.kill(router.pid, signal.SIGKILL)
        output, errors = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 0, output + errors
    assert [
        "sglang-router ended with status -9" in event["data"]["cause"] for event in runs.events(run_dir, "restarted")
    ] == [True]
    summary = runs.summary(run_dir)
    assert summary["status"] == "finished", summary
    assert not runs.left_behind(run_dir)


def test_flags_of_sglang_router_are_refused_for_ours(tmp_path: Path) -> None:
    config = runs.write_config(tmp_path, router={"args": ["--policy", "random"]})
    with pytest.raises(ConfigError, match=r'router.args = .* are flags of router.kind = "sglang"'):
        load(config, [])
