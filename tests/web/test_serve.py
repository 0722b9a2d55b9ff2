"""``miles-async web`` by the command line: it says where it is, answers, and ends when it is told to."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import httpx
from typer.testing import CliRunner
from web_runs import made_run

from miles_async.cli import app as cli

DEADLINE_S = 120.0


def test_the_command_serves_a_run_until_it_is_interrupted_also_while_somebody_looks_on(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run")
    command = [sys.executable, "-m", "miles_async", "web", str(run), "--port", "0", "--key", "env:WEB_KEY"]
    environment = os.environ | {"WEB_KEY": "correct horse"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as server:
        try:
            assert server.stdout is not None
            said = server.stdout.readline()
            address = re.search(r"http://127\.0\.0\.1:\d+", said)
            assert address, said
            with httpx.Client(base_url=address[0], headers={"authorization": "Bearer correct horse"}) as web:
                assert [row["run"] for row in web.get("/api/runs").json()["runs"]] == ["run"]
                with web.stream("GET", "/api/runs/run/live") as live:
                    assert any(line == "event: state" for line in live.iter_lines())
                    server.send_signal(signal.SIGINT)
                    output, errors = server.communicate(timeout=DEADLINE_S)
        finally:
            server.kill()
    assert (server.returncode, errors) == (0, ""), output


def test_what_cannot_be_served_is_one_line(tmp_path: Path) -> None:
    for arguments, words in (
        ([str(tmp_path / "nowhere")], "no such directory"),
        ([str(tmp_path), "--host", "0.0.0.0"], "give --key"),
        ([str(tmp_path), "--key", "env:NOT_SET_HERE"], "NOT_SET_HERE"),
        ([str(tmp_path), "--host", "192.0.2.1", "--key", "k", "--port", "0"], "cannot listen on 192.0.2.1"),
    ):
        result = CliRunner().invoke(cli.app, ["web", *arguments])
        assert (result.exit_code, result.stderr.count("\n")) == (2, 1), result.stderr
        assert words in result.stderr
