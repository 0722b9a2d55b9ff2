"""Runs beside each other for the page: what ``miles-async compare`` says, and the curves as a picture has room for them.

Promises: what is a secret in a configuration is masked, whatever the file holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from miles_async.comparing.compare import ROWS, compare, read_all, shown
from miles_async.comparing.curves import Curve, Point
from miles_async.config.secrets import mask

MOST = 400  # points of a curve


def beside(run_dirs: Sequence[Path]) -> dict[str, Any]:
    """The runs in ``run_dirs``, at least two. Raises RecordError: one of them has trained nothing, or is damaged."""
    curves = read_all(run_dirs)
    found = compare(curves)
    names = [curve.name for curve in curves]
    differences = {
        key: {name: _masked(key, value) for name, value in values.items()}
        for key, values in found["differences"].items()
    }
    rows = []
    for row in ROWS:
        values = [found["figures"][name].get(row.key) for name in names]
        if any(value is not None for value in values):
            rows.append([row.label.format(**found["common"]), *(shown(value, row.form) for value in values)])
    return {
        "names": names,
        "rows": rows,
        "differences": [[key, *(values[name] for name in names)] for key, values in differences.items()],
        "replays": found["replays"],
        "simulations": found["simulations"],
        "curves": [{"name": curve.name, "points": [_point(point) for point in thinned(curve)]} for curve in curves],
    }


def thinned(curve: Curve) -> list[Point]:
    """At most ``MOST`` points of a curve, evenly chosen, the last one among them; a reward is a mean of several steps."""
    points = curve.points
    if len(points) <= MOST:
        return list(points)
    return [points[(len(points) * (n + 1) - 1) // MOST] for n in range(MOST)]


def _point(point: Point) -> list[float]:
    """Step, tokens, seconds, reward, mean lag, greatest lag."""
    return [point.step, point.tokens, point.seconds, point.reward, point.mean_lag, point.max_lag]


def _masked(key: str, value: Any) -> str:
    return str(mask(key, value) if isinstance(value, str) else value)
