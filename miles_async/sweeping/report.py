"""What a sweep has found: a table of its cells, and a picture of them with the spread over seeds.

    sweep.csv       a row for each cell: its values, its figures, its reward at equal steps, tokens and time
    sweep.parquet   the same, where pyarrow is there
    sweep.png       reward by tokens and by time (of simulations throughput and waste by a key), throughput against lag, and the
                    Pareto front

Promises: cells that differ in their seed alone are one curve, their mean with a band from the least to the greatest; a cell
that has trained nothing is left out and named.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from miles_async.comparing.compare import compare
from miles_async.comparing.curves import Curve, read_curve
from miles_async.monitor.record_lines import RecordError
from miles_async.sweeping.grid import Cell, Sweep
from miles_async.sweeping.picture import draw
from miles_async.sweeping.runs import run_dir

TABLE, COLUMNS, PICTURE = "sweep.csv", "sweep.parquet", "sweep.png"


def report(sweep: Sweep, cells: Sequence[Cell]) -> dict[str, Any]:
    """Write table and picture; the rows, and ``missing``: the cells without a step."""
    curves: dict[str, Curve] = {}
    missing = []
    for cell in cells:
        try:
            curves[cell.name] = read_curve(run_dir(sweep, cell))
        except RecordError:
            missing.append(cell.name)
    there = [cell for cell in cells if cell.name in curves]
    if not there:
        return {"rows": [], "missing": missing}
    figures = compare([curves[cell.name] for cell in there])["figures"]
    rows = [{"cell": cell.name, **cell.values, **figures[cell.name]} for cell in there]
    directory = Path(sweep.directory)
    _write([{name: _plain(value) for name, value in row.items()} for row in rows], directory)
    draw(there, curves, figures, directory / PICTURE)
    return {"rows": rows, "missing": missing}


def _write(rows: Sequence[Mapping[str, Any]], directory: Path) -> None:
    with (directory / TABLE).open("w", newline="") as out:
        writer = csv.DictWriter(out, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        return
    columns = {name: _column([row[name] for row in rows]) for name in rows[0]}
    parquet.write_table(pyarrow.table(columns), directory / COLUMNS)


def _plain(value: Any) -> Any:
    """What a cell of a table can hold: tables and lists as JSON."""
    return json.dumps(value) if isinstance(value, Mapping | list) else value


def _column(values: list[Any]) -> list[Any]:
    """Of one type; a key that takes several ("none" or a number) is text."""
    kinds = {type(value) for value in values if value is not None}
    if kinds <= {int, float} or len(kinds) < 2:
        return values
    return [None if value is None else str(value) for value in values]
