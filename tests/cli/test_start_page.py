"""docs/start.md, carried out from an empty directory: what a reader writes is trained on, what he asks is answered."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from launching import environment, launch, summary
from pages import ROOT, commands, write_files
from typer.testing import CliRunner

from miles_async.cli.app import app
from miles_async.models.builtin import make_model

PAGE = ROOT / "docs" / "start.md"
SMALL = ("run.num_steps=2", "model.parity_check=false", "checkpoint.save_hf=false", "monitor.live=off")


def test_a_reader_gets_from_three_files_to_a_run_and_its_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_files(PAGE, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"prompts.jsonl", "reward.py", "run.toml"}
    make_model("builtin:words", tmp_path / "my-model", 1)

    asked = [shlex.split(command) for command in commands(PAGE)]
    small = [part for key in SMALL for part in ("--set", key)]
    (look,) = [words for words in asked if "--dry-run" in words and "run.toml" in words]
    assert_answers([*look, *small[2:4]])
    done = launch(tmp_path / "run.toml", tmp_path / "runs" / "first", *small, env=environment())
    assert done.returncode == 0, done.stderr
    assert summary(tmp_path / "runs" / "first")["steps"] == 2

    for words in asked:
        if words[0] in ("runs", "top", "inspect"):
            assert_answers(words)
    for words in asked:  # those that go on from it: what a dry run says of them is what a launch would do
        if words[0] == "launch" and ({"--set", "--from"} & {*words}):
            assert_answers([*words, *small[2:4], "--dry-run"])


def assert_answers(words: list[str]) -> None:
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0 and done.stdout, (words, done.output, done.exception)
