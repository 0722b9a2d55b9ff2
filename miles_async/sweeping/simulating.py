"""A process that simulates the cells of a sweep, one after the other, as it is asked for them: JSON lines on its standard
input.

    python -m miles_async.sweeping.simulating sim.toml        {"run_dir": ..., "overrides": [...]}  ─►  {"code": 0, "words": ""}

Promises: each cell is answered with its exit code (errors.py) and, if it failed, one line; it ends with its input.
"""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec

OK, FAILED, BAD_INPUT = 0, 1, 2  # as miles_async/cli/errors.py has them


class Asked(msgspec.Struct, frozen=True):
    """One cell."""

    run_dir: str
    overrides: list[str]

    def line(self) -> bytes:
        return msgspec.json.encode(self) + b"\n"


class Answer(msgspec.Struct, frozen=True):
    code: int
    words: str = ""


def ask(simulation: str) -> list[str]:
    """The command of the process for the simulation's file."""
    return [sys.executable, "-m", "miles_async.sweeping.simulating", simulation]


def answer_of(line: bytes) -> tuple[int, str]:
    """What the process said: exit code, and why."""
    answer = msgspec.json.decode(line, type=Answer)
    return answer.code, answer.words


def simulate_cell(text: str, source: str, asked: Asked) -> Answer:
    """``text``: of the simulation's file."""
    from miles_async.hooks.faults import words
    from miles_async.simulation.directory import simulate_into
    from miles_async.simulation.loop import StuckError
    from miles_async.simulation.reading import parse

    try:
        simulate_into(parse(text, asked.overrides, source=source), Path(asked.run_dir))
    except ValueError as error:
        return Answer(BAD_INPUT, f"{error}\n")
    except StuckError as error:
        return Answer(FAILED, f"{error}\n")
    except Exception as error:  # also of a policy of the user's: it costs this cell
        return Answer(FAILED, f"{words(error)}\n")
    return Answer(OK)


def main() -> None:
    from miles_async.config.toml import text_of

    source, answers = sys.argv[1], sys.stdout.buffer
    sys.stdout = sys.stderr  # what a policy of the user's prints is no answer
    text = text_of(Path(source))
    for line in sys.stdin.buffer:
        answer = simulate_cell(text, source, msgspec.json.decode(line, type=Asked))
        answers.write(msgspec.json.encode(answer) + b"\n")
        answers.flush()


if __name__ == "__main__":
    main()
