"""What a sweep has found: a table of its cells, and a picture of them with the spread over seeds.

    sweep.csv   a row for each cell: its values, its figures, its reward at equal steps, tokens and time
    sweep.png   reward by tokens and by time; throughput by the first key that is a number; reward against throughput

Promises: cells that differ in ``run.seed`` alone are one curve, their mean with a band from the least to the greatest; a cell
that has trained nothing is left out and named.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from miles_async.comparing.compare import compare
from miles_async.comparing.curves import Curve, Point, read_curve
from miles_async.comparing.picture import COLORS
from miles_async.monitor.record_lines import RecordError
from miles_async.sweeping.grid import SEED, Cell, Sweep, group_of
from miles_async.sweeping.runs import run_dir

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TABLE, PICTURE = "sweep.csv", "sweep.png"
PLACES = 200  # at which a mean curve is drawn


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
    with (directory / TABLE).open("w", newline="") as out:
        writer = csv.DictWriter(out, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    _draw(there, curves, figures, directory / PICTURE)
    return {"rows": rows, "missing": missing}


def _draw(
    cells: Sequence[Cell], curves: Mapping[str, Curve], figures: Mapping[str, Mapping[str, Any]], path: Path
) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    groups: dict[str, list[Cell]] = defaultdict(list)
    for cell in cells:
        groups[group_of(cell)].append(cell)
    figure = Figure(figsize=(12, 8), dpi=130, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    (by_tokens, by_time), (by_key, front) = figure.subplots(2, 2)
    number = next((k for k, v in cells[0].values.items() if k != SEED and _is_number(v)), None)
    for index, (name, members) in enumerate(groups.items()):
        color, mine = COLORS[index % len(COLORS)], [curves[cell.name] for cell in members]
        _band(by_tokens, mine, lambda point: point.tokens, color, name)
        _band(by_time, mine, lambda point: point.seconds, color)
        rates = [figures[cell.name]["samples_per_s"] or 0.0 for cell in members]
        rewards = [figures[cell.name]["reward_at_seconds"] for cell in members]
        if number is not None:
            by_key.plot([cell.values[number] for cell in members], rates, "o", color=color, markersize=4)
        pairs = [(rate, reward) for rate, reward in zip(rates, rewards, strict=True) if reward is not None]
        front.plot([rate for rate, _ in pairs], [reward for _, reward in pairs], "o", color=color, markersize=5)
    labels = (
        (by_tokens, "tokens trained on", "reward"),
        (by_time, "seconds of the learner", "reward"),
        (by_key, number or "", "samples/s"),
        (front, "samples/s", "reward at equal time"),
    )
    for axes, below, beside in labels:
        axes.set_xlabel(below)
        axes.set_ylabel(beside)
        axes.grid(color="#e5e7eb", linewidth=0.6)
        axes.tick_params(labelsize=8)
    figure.legend(loc="outside upper left", ncols=min(3, len(groups)), frameon=False, fontsize=8)
    figure.savefig(path)


def _band(
    axes: Axes, curves: Sequence[Curve], of: Callable[[Point], float], color: str, label: str | None = None
) -> None:
    """The mean over the curves, as far as the shortest goes, and from the least to the greatest of them."""
    end = min(of(curve.points[-1]) for curve in curves)
    begin = max(of(curve.points[0]) for curve in curves)
    xs = np.linspace(begin, max(begin, end), PLACES)
    ys = np.array([np.interp(xs, [of(p) for p in c.points], [p.reward for p in c.points]) for c in curves])
    axes.plot(xs, ys.mean(axis=0), color=color, linewidth=1.6, label=label)
    if len(curves) > 1:
        axes.fill_between(xs, ys.min(axis=0), ys.max(axis=0), color=color, alpha=0.15, linewidth=0)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
