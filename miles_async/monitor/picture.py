"""The picture of a run: reward (or loss, of a run that is taught), lag and throughput, as ``run.png``.

Promises: needs no display; draws what there is, down to a run of no steps.
"""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import TYPE_CHECKING

from miles_async.monitor.progress import RATE_STEPS, Progress, Step, rate
from miles_async.monitor.summary import REWARD_WINDOW

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

PICTURE_FILE = "run.png"

_BLUE, _ORANGE, _GREEN, _GREY = "#2563eb", "#ea580c", "#059669", "#6b7280"
_EVALS = ("#be185d", "#7c3aed", "#b45309", "#0f766e")


def draw(progress: Progress, path: Path, title: str) -> None:
    """Write the picture. matplotlib is imported here (about 0.3 s) and draws without a display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 7.5), dpi=130, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    figure.suptitle(title, x=0.02, ha="left", fontsize=12, fontweight="bold", color="#111827")
    curve, lag, throughput = figure.subplots(3, 1, height_ratios=[3, 1.5, 2])
    steps = progress.steps
    _curve(curve, progress)
    _evals(curve, progress)
    _lag(lag, steps)
    _throughput(throughput, steps)
    for axes in (curve, lag):
        _whole_numbers(axes.xaxis)
    for axes in (curve, lag, throughput):
        _style(axes)
    figure.savefig(path)


def _curve(axes: Axes, progress: Progress) -> None:
    steps, target, values = progress.steps, progress.target_reward, progress.values()
    xs = [step.step for step in steps]
    axes.plot(xs, values, color=_BLUE, alpha=0.3, linewidth=1, label="each step")
    means = [sum(part) / len(part) for part in (values[max(0, i - REWARD_WINDOW + 1) : i + 1] for i in range(len(xs)))]
    axes.plot(xs, means, color=_BLUE, linewidth=2, label=f"mean of {REWARD_WINDOW} steps")
    if target is not None:
        axes.axhline(target, color=_GREY, linewidth=1, linestyle="--", label=f"target {target:g}")
    axes.set_ylabel(progress.curve)
    axes.set_xlabel("step")
    for before, after in itertools.pairwise(steps):
        if before.start != after.start:
            axes.axvline(after.step, color=_GREY, linewidth=1, linestyle=":", label="resumed")


def _evals(axes: Axes, progress: Progress) -> None:
    for number, (name, points) in enumerate(sorted(progress.evals.items())):
        if points:
            color, (versions, values) = _EVALS[number % len(_EVALS)], zip(*sorted(points.items()), strict=True)
            axes.plot(versions, values, color=color, marker="o", markersize=4, linewidth=1.2, label=f"eval {name}")


def _lag(axes: Axes, steps: list[Step]) -> None:
    xs, most = [step.step for step in steps], [step.max_lag for step in steps]
    axes.fill_between(xs, most, step="mid", color=_ORANGE, alpha=0.2, linewidth=0, label="oldest token")
    axes.plot(xs, [step.mean_lag for step in steps], color=_ORANGE, linewidth=1.8, label="mean over tokens")
    axes.set_ylabel("lag, versions")
    axes.set_xlabel("step")
    axes.set_ylim(bottom=0, top=max([1.0, *(lag for lag in most if math.isfinite(lag))]) * 1.15)
    _whole_numbers(axes.yaxis)


def _throughput(axes: Axes, steps: list[Step]) -> None:
    """Rate over the last steps before each point, against the time that the run was training."""
    seconds, xs, samples = 0.0, [], []
    for index, (before, step) in enumerate(itertools.pairwise(steps), 1):
        if before.start != step.start:
            continue
        seconds += step.time - before.time
        window = [s for s in steps[max(0, index - RATE_STEPS) : index + 1] if s.start == step.start]
        xs.append(seconds)
        samples.append(rate(window).samples_per_s)
    overall = rate(steps)
    label = f"over {RATE_STEPS} steps"
    if math.isfinite(overall.samples_per_s):
        label += f"; whole run {overall.samples_per_s:,.0f} samples/s, {overall.tokens_per_s:,.0f} tokens/s"
    axes.plot(xs, samples, color=_GREEN, linewidth=1.8, label=label)
    axes.set_ylabel("samples/s")
    axes.set_xlabel("seconds of training")
    axes.set_ylim(bottom=0, top=max(samples, default=1.0) * 1.15)
    axes.yaxis.set_major_formatter("{x:,.0f}")


def _whole_numbers(axis: Axis) -> None:
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(integer=True))


def _style(axes: Axes) -> None:
    axes.grid(color="#e5e7eb", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8, colors="#374151")
    axes.margins(x=0.01)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    handles, labels = axes.get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    # above the axes, where no curve can be under it
    place = {"loc": "lower right", "bbox_to_anchor": (1.0, 0.99), "ncols": len(unique), "borderaxespad": 0.0}
    axes.legend(unique.values(), unique.keys(), frameon=False, fontsize=8, **place)
