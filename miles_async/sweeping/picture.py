"""A sweep as a picture of four: how its cells went, throughput against lag, and the Pareto front.

    runs, replays    reward by tokens, reward by time, throughput against lag, reward against throughput
    simulations      throughput by a key, waste by that key, throughput against lag, throughput against waste

Promises: cells that differ in their seed alone have one colour and mark; the front is drawn through the means over seeds, of
those that no other one is better than on both axes; needs no display.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from miles_async.comparing.curves import Curve, Point
from miles_async.comparing.picture import COLORS
from miles_async.sweeping.grid import SEEDS, Cell, group_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PLACES = 200  # at which a mean curve is drawn
MARKS = "os^Dv*PX"
LEGEND = 24  # names that there is room for

Figures = Mapping[str, Mapping[str, Any]]


class Group(NamedTuple):
    """Cells that are repeats of one another. Its colour is of all values but that of the key that is a number, its mark of
    that."""

    name: str
    cells: list[Cell]
    color: str
    mark: str


def draw(cells: Sequence[Cell], curves: Mapping[str, Curve], figures: Figures, path: Path) -> None:
    """Write the picture."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    key = _number(cells)
    groups = _groups(cells, key)
    figure = Figure(figsize=(12, 8.5), dpi=130, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    (first, second), (lag, front) = figure.subplots(2, 2)
    if any(math.isfinite(curve.points[-1].reward) for curve in curves.values()):
        _rewards(first, second, groups, curves)
        _front(front, groups, figures, ("samples_per_s", "reward_at_seconds"), ("samples/s", "reward at equal time"))
    else:
        _by_key(first, groups, figures, key, "samples_per_s", "samples/s")
        _by_key(second, groups, figures, key, "wasted_share", "tokens wasted, share")
        _front(
            front, groups, figures, ("wasted_share", "samples_per_s"), ("tokens wasted, share", "samples/s"), sign=-1
        )
    _front(lag, groups, figures, ("mean_token_lag", "samples_per_s"), ("mean lag, versions", "samples/s"), sign=-1)
    for axes in (first, second, lag, front):
        axes.grid(color="#e5e7eb", linewidth=0.6)
        axes.tick_params(labelsize=8)
    figure.legend(*_names(groups), loc="outside upper left", ncols=min(4, len(groups)), frameon=False, fontsize=7)
    figure.savefig(path)


def _groups(cells: Sequence[Cell], key: str) -> list[Group]:
    by_group: dict[str, list[Cell]] = defaultdict(list)
    for cell in cells:
        by_group[group_of(cell)].append(cell)
    colors, marks = dict[str, str](), dict[str, str]()
    groups = []
    for name, mine in by_group.items():
        others = str([value for other, value in mine[0].values.items() if other not in (key, *SEEDS)])
        color = colors.setdefault(others, COLORS[len(colors) % len(COLORS)])
        mark = marks.setdefault(str(mine[0].values[key]), MARKS[len(marks) % len(MARKS)])
        groups.append(Group(name, mine, color, mark))
    return groups


def _names(groups: Sequence[Group]) -> tuple[list[Any], list[str]]:
    from matplotlib.lines import Line2D

    shown = groups[:LEGEND]
    more = [f"and {len(groups) - LEGEND} more"] if len(groups) > LEGEND else []
    marks = [Line2D([], [], color=group.color, marker=group.mark, markersize=4) for group in shown]
    return marks + [Line2D([], [], linewidth=0) for _ in more], [group.name for group in shown] + more


def _number(cells: Sequence[Cell]) -> str:
    """The first key whose values are numbers; else the first there is."""
    keys = [key for key in cells[0].values if key not in SEEDS] or list(cells[0].values)
    numbers = (key for key in keys if all(_is_number(cell.values[key]) for cell in cells))
    return next(numbers, keys[0])


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _rewards(by_tokens: Axes, by_time: Axes, groups: Sequence[Group], curves: Mapping[str, Curve]) -> None:
    for group in groups:
        mine = [curves[cell.name] for cell in group.cells]
        _band(by_tokens, mine, lambda point: point.tokens, group.color)
        _band(by_time, mine, lambda point: point.seconds, group.color)
    for axes, below in ((by_tokens, "tokens trained on"), (by_time, "seconds of the learner")):
        axes.set_xlabel(below)
        axes.set_ylabel("reward")


def _band(axes: Axes, curves: Sequence[Curve], of: Callable[[Point], float], color: str) -> None:
    """The mean over the curves, as far as the shortest goes, and from the least to the greatest of them."""
    end = min(of(curve.points[-1]) for curve in curves)
    begin = max(of(curve.points[0]) for curve in curves)
    xs = np.linspace(begin, max(begin, end), PLACES)
    ys = np.array([np.interp(xs, [of(p) for p in c.points], [p.reward for p in c.points]) for c in curves])
    axes.plot(xs, ys.mean(axis=0), color=color, linewidth=1.6)
    if len(curves) > 1:
        axes.fill_between(xs, ys.min(axis=0), ys.max(axis=0), color=color, alpha=0.15, linewidth=0)


def _by_key(axes: Axes, groups: Sequence[Group], figures: Figures, key: str, figure: str, label: str) -> None:
    """A line for each colour through the means of its groups."""
    lines: dict[str, list[tuple[Any, float]]] = defaultdict(list)
    for group in groups:
        known = [(cell.values[key], value) for cell in group.cells if (value := figures[cell.name][figure]) is not None]
        xs = [x if _is_number(x) else str(x) for x, _ in known]
        axes.plot(xs, [y for _, y in known], group.mark, color=group.color, markersize=4)
        if known:
            lines[group.color].append((xs[0], sum(y for _, y in known) / len(known)))
    for color, means in lines.items():
        axes.plot([x for x, _ in means], [y for _, y in means], color=color, linewidth=1.0)
    axes.set_xlabel(key)
    axes.set_ylabel(label)


def _front(
    axes: Axes,
    groups: Sequence[Group],
    figures: Figures,
    names: tuple[str, str],
    labels: tuple[str, str],
    sign: int = 1,
) -> None:
    """Cells as points, and the line through the groups that are on the front. sign: -1 where less of the first is better."""
    means: list[tuple[float, float]] = []
    for group in groups:
        pairs = [tuple(figures[cell.name][name] for name in names) for cell in group.cells]
        known = [(x, y) for x, y in pairs if x is not None and y is not None]
        axes.plot([x for x, _ in known], [y for _, y in known], group.mark, color=group.color, markersize=5)
        if known:
            x, y = (sum(values) / len(known) for values in zip(*known, strict=True))
            means.append((x, y))
    line = pareto(means, sign)
    axes.plot([x for x, _ in line], [y for _, y in line], color="#9ca3af", linewidth=1.0, zorder=0)
    axes.set_xlabel(labels[0])
    axes.set_ylabel(labels[1])


def pareto(points: Sequence[tuple[float, float]], sign: int = 1) -> list[tuple[float, float]]:
    """Those that no other is better than on both axes, by the first. sign: -1 where less of the first one is better."""
    best: list[tuple[float, float]] = []
    for x, y in sorted(set(points), key=lambda point: (-sign * point[0], -point[1])):
        if not best or y > best[-1][1]:
            best.append((x, y))
    return sorted(best)
