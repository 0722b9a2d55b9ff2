"""``miles-async sweep``: the file is read, every cell's configuration is looked at, then they are run.

Promises: a key that does not exist, or a cell that a launch would refuse, is one line before anything starts.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

from miles_async.cli.load import load
from miles_async.cli.replay import replayed
from miles_async.config.schema import ConfigError
from miles_async.config.toml import text_of
from miles_async.simulation import reading
from miles_async.sweeping.grid import Cell, Sweep, cells, parse
from miles_async.sweeping.report import PICTURE, TABLE, report
from miles_async.sweeping.runs import claim, run_cells


def planned(file: Path) -> tuple[Sweep, list[Cell], str]:
    """The sweep, its cells, and the text of its file. Raises ConfigError, RecordError: one line."""
    text = text_of(file)
    sweep = parse(text, str(file), file.resolve().parent)
    found = cells(sweep)
    for number, cell in enumerate(found):
        try:
            if sweep.config:
                load(sweep.config, cell.overrides)
            elif sweep.replay:
                replayed(Path(sweep.replay), cell.overrides, 0, read=number == 0)  # each does so itself
            else:
                reading.parse(text_of(Path(sweep.simulation)), cell.overrides, source=sweep.simulation)
        except ConfigError as error:
            raise ConfigError(f"cell {cell.name}: {error}") from None
    return sweep, found, text


def sweep(file: Path) -> dict[str, Any]:
    """Run what is not finished and report. Raises what :func:`planned` does, KeyboardInterrupt once all is stopped."""
    plan, found, text = planned(file)
    claim(plan, text)
    codes = asyncio.run(run_cells(plan, found, lambda line: print(line, file=sys.stderr, flush=True)))
    failed = {name: code for name, code in codes.items() if code != 0}
    return {"directory": plan.directory, "failed": failed, **report(plan, found)}


def show(found: dict[str, Any]) -> str:
    """``found``, as :func:`sweep` returned it, for a reader."""
    lines = [f"{len(found['rows'])} cells are in {Path(found['directory']) / TABLE} and {PICTURE}"]
    lines += [f"{name}: exit code {code}" for name, code in found["failed"].items()]
    lines += [f"{name}: it has trained nothing" for name in found["missing"] if name not in found["failed"]]
    return "\n".join(lines)
