"""Rewriting a file of a run's record: what cannot be read is set aside, steps that are trained again leave it.

Promises: every other line stays, in its order; a file is replaced whole or not at all, so that a kill or a full disk at
any moment leaves it as it was.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from miles_async.monitor.record_lines import KINDS, METRICS_FILE, MetricsLine, decode_line, is_step

DAMAGED = ".damaged"  # behind the file's name: its lines that could not be read


def set_aside(run_dir: Path) -> list[str]:
    """Take the lines that cannot be read out of the files of ``run_dir``; one text for each file that had some."""
    return [text for name in KINDS if (text := _set_aside(run_dir / name))]


def _set_aside(path: Path) -> str:
    if not path.exists():
        return ""
    kind, bad, first = KINDS[path.name], dict[int, bytes](), ""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                if line.endswith(b"\n"):  # else torn by a crash: it is cut off when the file is opened
                    decode_line(line, kind)
            except ValueError as error:
                first = first or f"line {number}: {error}"
                bad[number] = line
    if not bad:
        return ""
    aside = path.with_name(path.name + DAMAGED)
    with aside.open("ab") as file:
        file.writelines(bad.values())
    _rewrite(path, lambda number, _: number not in bad)
    more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
    return f"{path} {first}{more}; set aside in {aside.name}"


def forget_steps(run_dir: Path, first: int) -> list[MetricsLine]:
    """Take the steps from ``first`` on out of the metrics; returns what else was reported at such a step, and stays."""
    kept: list[MetricsLine] = []

    def keeps(_: int, raw: bytes) -> bool:
        line = decode_line(raw, MetricsLine)
        if line.step >= first and is_step(line):
            return False
        if line.step >= first:
            kept.append(line)
        return True

    _rewrite(run_dir / METRICS_FILE, keeps)
    return kept


def _rewrite(path: Path, keeps: Callable[[int, bytes], bool]) -> None:
    """Replace ``path`` by those of its lines that ``keeps`` (number from 1, line) wants."""
    partial = path.with_name(path.name + ".partial")
    try:
        with path.open("rb") as file, partial.open("wb") as out:
            out.writelines(line for number, line in enumerate(file, 1) if keeps(number, line))
            out.flush()
            os.fsync(out.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
