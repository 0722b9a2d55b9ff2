"""Output that pages show, as the commands beside it gave it: ``python -m docs.outputs [PAGE...] [--check]``.

Promises: a block of ``text`` under ``<!-- output of: COMMAND -->`` is what COMMAND printed, both streams, in a scratch
directory with the repository's ``examples`` where the page's earlier marked commands were run. ``--check`` writes nothing and
says where lines are others, numbers, times and paths apart. A command that does not end, or is not ``miles-async``, is a line.
"""

from __future__ import annotations

import argparse
import itertools
import os
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
DEADLINE_S = 300.0  # of one command
WIDTH = "100"  # columns, as of a terminal
MARKED = re.compile(r"^<!-- output of: (?P<command>.+) -->\n+```text\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
VARIES = (
    (re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d)?(\.\d+)?Z?"), "TIME"),
    (re.compile(r"(?<![\w.])/[\w./-]+"), "PATH"),
    (re.compile(r"\d[\d,]*(\.\d+)?(e[+-]?\d+)?"), "N"),
    (re.compile(r"[─━]+"), "─"),
    (re.compile(r"[ \t]+"), " "),
)


class Output(NamedTuple):
    """``line``: of the block's first line of output, from 1; ``start`` and ``end``: of ``text`` in the page."""

    line: int
    command: str
    text: str
    start: int
    end: int


def outputs(markdown: str) -> list[Output]:
    """The marked blocks of a page, in order."""
    return [
        Output(markdown.count("\n", 0, m.start("text")) + 1, m["command"], m["text"], m.start("text"), m.end("text"))
        for m in MARKED.finditer(markdown)
    ]


def shape(line: str) -> str:
    """``line`` without what varies between machines and runs: numbers, times, absolute paths, the width of columns."""
    for pattern, word in VARIES:
        line = pattern.sub(word, line)
    return line.strip()


def difference(written: str, came: str) -> tuple[int, str, str] | None:
    """The first line whose shape is another, from 0, as it is written and as it came; None: there is none."""
    lines = itertools.zip_longest(written.splitlines(), came.splitlines(), fillvalue="")
    return next(((i, old, new) for i, (old, new) in enumerate(lines) if shape(old) != shape(new)), None)


def settled(text: str, scratch: str) -> str:
    """What a page shows of ``text``: ``scratch`` is called DIR, and no line ends in spaces."""
    lines = [line.rstrip() for line in text.replace(scratch, "DIR").strip("\n").splitlines()]
    return "".join(f"{line}\n" for line in lines)


def run(command: str, scratch: Path) -> str:
    """What ``command`` prints. Raises ValueError: it is not ours, or it did not end."""
    program, *words = shlex.split(command)
    if program != "miles-async":
        raise ValueError(f"output of {command!r}: only miles-async is run")
    ours = [sys.executable, "-m", "miles_async", *words]
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    env = {**os.environ, "COLUMNS": WIDTH, "NO_COLOR": "1", "PYTHONPATH": path}
    streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    try:
        done = subprocess.run(ours, check=False, cwd=scratch, env=env, text=True, timeout=DEADLINE_S, **streams)
    except subprocess.TimeoutExpired:
        raise ValueError(f"output of {command!r}: it did not end within {DEADLINE_S:.0f} s") from None
    return settled(done.stdout, str(scratch))


def renewed(markdown: str) -> list[tuple[Output, str]]:
    """Each marked block, with what its command prints now."""
    found = outputs(markdown)
    with tempfile.TemporaryDirectory(prefix="outputs-") as name:
        (Path(name) / "examples").symlink_to(ROOT / "examples")
        return [(output, run(output.command, Path(name))) for output in found]


def main() -> None:
    """Exits with 1 when a page shows what no longer comes."""
    parser = argparse.ArgumentParser(prog="python -m docs.outputs", description="Writes the output that pages show.")
    parser.add_argument("pages", nargs="*", type=Path, help="default: README.md and docs/*.md")
    parser.add_argument("--check", action="store_true", help="write nothing, say what is stale")
    asked = parser.parse_args()
    stale = False
    for page in asked.pages or [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        try:
            markdown = page.read_text()
            new = renewed(markdown)
        except (OSError, ValueError) as error:
            sys.exit(f"{page}: {error}")
        if asked.check:
            for output, came in new:
                if found := difference(output.text, came):
                    stale = True
                    print(f"{page}:{output.line + found[0]}: {output.command}\n- {found[1]}\n+ {found[2]}")
            continue
        for output, came in reversed(new):
            markdown = markdown[: output.start] + came + markdown[output.end :]
        if new:
            page.write_text(markdown)
    sys.exit(1 if stale else 0)


if __name__ == "__main__":
    main()
