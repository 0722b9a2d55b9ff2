"""``router.kind = "sglang"``: a run behind the real sglang-router."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import launching
import psutil
import pytest

from miles_async.cli.load import load
from miles_async.config.schema import ConfigError

SGLANG = {"router": {"kind": "sglang", "api_key": "a-key-of-the-router"}, "engine": {"api_key": "a-key-of-engines"}}


@pytest.fixture
def another_router() -> Iterator[None]:
    """One that has the port where sglang-router publishes its metrics unless it is told another one."""
    with socket.socket() as taken:
        with contextlib.suppress(OSError):  # then it is taken already
            taken.bind(("", 29000))
            taken.listen()
        yield


@pytest.mark.usefixtures("another_router")
def test_a_run_trains_through_sglang_router_and_gets_another_one_when_it_dies(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    config = launching.write_config(tmp_path, **SGLANG, run={"num_steps": 60, "restart_backoff_s": 0.2})
    process = launching.begin(config, run_dir)
    try:
        launching.wait_for_step(run_dir, 3, process)
        (router,) = psutil.Process(launching.pid_of(run_dir, "router")).children()
        assert "sglang" in " ".join(router.cmdline())
        assert "a-key" not in " ".join(router.cmdline())
        os.kill(router.pid, signal.SIGKILL)
        output, errors = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 0, output + errors
    assert [
        "sglang-router ended with status -9" in event["data"]["cause"]
        for event in launching.events(run_dir, "restarted")
    ] == [True]
    summary = launching.summary(run_dir)
    assert summary["status"] == "finished", summary
    assert not launching.left_behind(run_dir)


def test_flags_of_sglang_router_are_refused_for_ours(tmp_path: Path) -> None:
    config = launching.write_config(tmp_path, router={"args": ["--policy", "random"]})
    with pytest.raises(ConfigError, match=r'router.args = .* are flags of router.kind = "sglang"'):
        load(config, [])
