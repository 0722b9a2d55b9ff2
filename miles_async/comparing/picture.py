"""Runs beside each other as a picture: reward by steps, by tokens and by time, and lag; where none has a reward
(simulations), how busy the learner was, throughput, and progress in the place of it.

Promises: needs no display; a run has one colour in all of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from miles_async.comparing.curves import Curve
from miles_async.config.schema import ConfigError

SUFFIXES = (".png", ".svg", ".pdf")
COLORS = ("#2563eb", "#ea580c", "#059669", "#be185d", "#7c3aed", "#b45309", "#0f766e", "#6b7280")


def draw(curves: Sequence[Curve], path: Path) -> None:
    """Write the picture to ``path``, as its suffix says. Raises ConfigError: it is not among SUFFIXES, or cannot be written."""
    if path.suffix not in SUFFIXES:
        raise ConfigError(f"--picture {path}: a picture is one of *{', *'.join(SUFFIXES)}")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 7), dpi=130, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    (by_step, by_tokens), (by_time, lag) = figure.subplots(2, 2)
    rewarded = any(math.isfinite(point.reward) for curve in curves for point in curve.points)
    for number, curve in enumerate(curves):
        points, color = curve.points, COLORS[number % len(COLORS)]
        steps, seconds, tokens = ([getattr(p, name) for p in points] for name in ("step", "seconds", "tokens"))
        reward = [point.reward for point in points]
        by_step.plot(steps, reward if rewarded else [p.samples_per_s for p in points], color=color, label=curve.name)
        by_tokens.plot(tokens, reward if rewarded else [point.busy for point in points], color=color)
        by_time.plot(seconds, reward if rewarded else tokens, color=color)
        lag.plot(steps, [point.mean_lag for point in points], color=color)
        lag.plot(steps, [point.max_lag for point in points], color=color, alpha=0.35, linewidth=0.8)
    beside = ("reward", "reward", "reward") if rewarded else ("samples/s", "learner busy, share", "tokens trained on")
    below = ("step", "tokens trained on", "seconds of the learner")
    panels = zip((by_step, by_tokens, by_time), below, beside, strict=True)
    for axes, x, y in (*panels, (lag, "step", "lag, versions (thin: oldest token)")):
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        axes.grid(color="#e5e7eb", linewidth=0.6)
        axes.tick_params(labelsize=8)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    lag.set_ylim(bottom=0)
    figure.legend(loc="outside upper left", ncols=min(4, len(curves)), frameon=False, fontsize=9)
    try:
        figure.savefig(path)
    except OSError as error:
        raise ConfigError(f"--picture {path}: {error.strerror or error}") from None
