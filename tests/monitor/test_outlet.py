"""Who reads what a command says may go away, or have no room: nothing else is lost."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = [sys.executable, "-m", "miles_async"]
SAYS_MUCH = """
import sys
from miles_async.monitor import outlet
outlet.install()
for number in range(20_000):
    print("a line that nobody reads", number)
    print("nor this one", number, file=sys.stderr)
open(sys.argv[1], "w").write("went on")
raise SystemExit(7)
"""


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_program_whose_reader_goes_away_goes_on_to_its_end_and_its_exit_code(tmp_path: Path, stream: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)  # as `head` does when it has seen enough
    others = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL} | {stream: writer}
    done = subprocess.run([sys.executable, "-c", SAYS_MUCH, tmp_path / "end"], check=False, **others)
    os.close(writer)
    assert done.returncode == 7 and (tmp_path / "end").read_text() == "went on"


def test_a_program_goes_on_where_there_is_no_room_for_what_it_says(tmp_path: Path) -> None:
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-c", SAYS_MUCH, tmp_path / "end"]
        done = subprocess.run(command, check=False, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 7 and (tmp_path / "end").read_text() == "went on"
    assert "Traceback" not in done.stderr and "Exception" not in done.stderr


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_a_letter_that_a_terminal_does_not_have_costs_no_line(encoding: str) -> None:
    says = (
        r"from miles_async.monitor import outlet; outlet.install(); print('ValueError: \u4e2d \ud83d in rewards.py:3')"
    )
    done = subprocess.run(
        [sys.executable, "-c", says], check=False, capture_output=True, env=os.environ | {"PYTHONIOENCODING": encoding}
    )
    letter = r"\u4e2d" if encoding == "ascii" else "\u4e2d"
    assert (done.stdout.decode(encoding), done.returncode) == (
        rf"ValueError: {letter} \ud83d in rewards.py:3" + "\n",
        0,
    )


def test_a_command_whose_reader_goes_away_ends_without_a_traceback() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([*PROGRAM, "bench"], check=False, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")


def test_json_that_could_not_be_written_is_no_success() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*PROGRAM, "bench", "--json"], check=False, stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1 and "No space left" in done.stderr


def test_the_version_is_said() -> None:
    done = subprocess.run([*PROGRAM, "--version"], check=False, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("miles-async ") and done.stdout.count("\n") == 1


def test_bench_without_a_name_lists_the_benchmarks() -> None:
    done = subprocess.run([*PROGRAM, "bench"], check=False, capture_output=True, text=True)
    assert done.returncode == 0 and {"bus", "faults", "trl"} <= set(done.stdout.split())
