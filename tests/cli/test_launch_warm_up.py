"""What a launch begins first, since it takes longest."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from actors.runtime.placement import fork_server
from miles_async.cli import load
from miles_async.cli.app import app
from miles_async.config.schema import ConfigError


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    found: list[str] = []

    def refuse(*_: object) -> None:
        found.append("load")
        raise ConfigError("not like this")

    monkeypatch.setattr(fork_server, "begin", lambda: found.append("begin"))
    monkeypatch.setattr(load, "load", refuse)
    return found


def test_a_launch_begins_to_import_before_it_reads_its_configuration(begun: list[str], tmp_path: Path) -> None:
    (tmp_path / "run.toml").touch()
    assert CliRunner().invoke(app, ["launch", str(tmp_path / "run.toml")]).exit_code == 2
    assert begun == ["begin", "load"]


def test_what_starts_nothing_begins_nothing(begun: list[str], tmp_path: Path) -> None:
    (tmp_path / "run.toml").touch()
    for arguments in ([str(tmp_path / "run.toml"), "--dry-run"], [str(tmp_path / "absent.toml")]):
        assert CliRunner().invoke(app, ["launch", *arguments]).exit_code == 2
    assert begun == ["load", "load"]
