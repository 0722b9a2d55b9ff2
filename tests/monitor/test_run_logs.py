"""``miles-async logs``: the logs of a run that has ended, of one actor, of a role; a run that lives is in
``tests/runs/test_watching_runs.py``."""

from __future__ import annotations

from pathlib import Path

import pytest
from monitored import started
from typer.testing import CliRunner, Result

from miles_async.cli.app import app


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    started(tmp_path).finish("finished", {})
    (tmp_path / "logs").mkdir()
    for name, text in (("engine-0", "up\nserves\n"), ("engine-1", "up\ntorn"), ("learner-0", "steps\n")):
        (tmp_path / "logs" / f"{name}.log").write_text(text)
    return tmp_path


def logs(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["logs", *map(str, arguments)])


def test_all_lines_come_behind_their_actors_names(run_dir: Path) -> None:
    lines = [tuple(part.strip() for part in line.split("|")) for line in logs(run_dir).stdout.splitlines()]
    assert lines == [
        ("engine-0", "up"),
        ("engine-0", "serves"),
        ("engine-1", "up"),
        ("learner-0", "steps"),
        ("engine-1", "torn"),
    ]


def test_one_actors_lines_are_as_they_were_written_and_a_role_is_all_that_have_it(run_dir: Path) -> None:
    assert logs(run_dir, "engine-0").stdout == "up\nserves\n"
    assert logs(run_dir, "engine-1", "-f").stdout == "up\ntorn\n"  # nothing comes of a run that has ended
    assert {line.split()[0] for line in logs(run_dir, "engine").stdout.splitlines()} == {"engine-0", "engine-1"}


def test_an_actor_that_is_not_there_is_one_line_with_the_nearest_name(run_dir: Path, tmp_path: Path) -> None:
    result = logs(run_dir, "lerner-0")
    assert result.exit_code == 2 and result.stdout == "" and result.stderr.count("\n") == 1
    assert 'no actor "lerner-0" has a log; did you mean "learner-0"? (one of: engine-0, ' in result.stderr
    nothing = logs(tmp_path / "none")
    assert nothing.exit_code == 2 and "no run here" in nothing.stderr
