"""The live view of a run: a panel on a terminal, one plain line now and then elsewhere.

Promises: drawing is a pure function of the progress and the time; the terminal is redrawn at most twice a second; a
line is printed every 10 steps or 5 seconds, also when no step is made, and then says who waits for whom.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, TextIO

from miles_async.monitor.engines import pace
from miles_async.monitor.length_bias import NAMES, PREFIX
from miles_async.monitor.progress import ENGINE_BUSY, Progress
from miles_async.monitor.summary import REWARD_WINDOW, ledger_line, lengths_line, mean

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.live import Live

    from bus.messages import Heartbeat

REDRAW_S = 0.5
LINE_S = 5.0
LINE_STEPS = 10
_BARS = "▁▂▃▄▅▆▇█"
_SPARK_WIDTH = 48


class LiveView:
    """Shows one progress on one stream, from :meth:`start` to :meth:`stop`."""

    def __init__(self, progress: Progress, title: str, mode: Literal["auto", "on", "off"], stream: TextIO) -> None:
        self._progress = progress
        self._title = title
        self._stream = stream
        self._panel = mode == "on" or (mode == "auto" and stream.isatty())
        self._live: Live | None = None
        self._last_shown = time.monotonic()
        self._last_step = progress.step

    def start(self) -> None:
        """Open the panel, or print where the run's files are."""
        if not self._panel:
            print(self._title, file=self._stream, flush=True)
            return
        from rich.console import Console
        from rich.live import Live

        console = Console(file=self._stream, force_terminal=True)
        self._live = Live(render(self._progress, self._title, time.time()), console=console, auto_refresh=False)
        self._live.start()

    def turn_to(self, progress: Progress) -> None:
        """Show this one from now on: the record that it is made of was written anew."""
        self._progress = progress
        self._last_step = min(self._last_step, progress.step)

    def update(self) -> None:
        """Show the progress if its turn has come. Cheap to call for every message."""
        now = time.monotonic()
        if self._live is not None:
            if now - self._last_shown >= REDRAW_S:
                self._last_shown = now
                self._live.update(render(self._progress, self._title, time.time()), refresh=True)
            return
        steps = self._progress.step - self._last_step
        if not self._panel and (steps >= LINE_STEPS or now - self._last_shown >= LINE_S):
            self._last_shown, self._last_step = now, self._progress.step
            print(line(self._progress, time.time(), stalled=steps == 0), file=self._stream, flush=True)

    def say(self, text: str) -> None:
        """A line of its own, above the panel where there is one."""
        if self._live is not None:
            self._live.console.print(text, markup=False, highlight=False)
        else:
            print(text, file=self._stream, flush=True)

    def stop(self) -> None:
        """Draw once more and let go of the terminal. Safe to call twice."""
        if self._live is not None:
            self._live.update(render(self._progress, self._title, time.time()), refresh=True)
            self._live.stop()
            self._live = None


def line(progress: Progress, now: float, *, stalled: bool = False) -> str:
    """The run in one line; with ``stalled`` also who waits for whom."""
    if not progress.steps:
        since = now - progress.starts[-1] if progress.starts else 0.0
        return f"step 0/{progress.num_steps}  starting, {since:.0f} s{_waits(progress, now)}"
    last, recent = progress.steps[-1], progress.recent()
    parts = [
        f"step {last.step}/{progress.num_steps}",
        f"{progress.curve} {getattr(last, progress.curve):.3f} (last {REWARD_WINDOW}: {_recently(progress):.3f})",
        f"lag max {_number(last.max_lag, '.0f')} mean {_number(last.mean_lag, '.2f')}",
        f"{_number(recent.samples_per_s, ',.0f')} samples/s",
        f"{_number(recent.tokens_per_s, ',.0f')} tokens/s",
        f"eta {duration(progress.eta_s())}",
    ]
    return "  ".join(parts) + (_waits(progress, now) if stalled else "")


def render(progress: Progress, title: str, now: float) -> RenderableType:
    """The panel: reward curve, lag, throughput, engines, ledger, actors."""
    from rich.panel import Panel
    from rich.table import Table

    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold cyan", no_wrap=True)
    grid.add_column(overflow="fold")
    grid.add_row("step", f"{progress.step}/{progress.num_steps}   eta {duration(progress.eta_s())}")
    for name, text in _figures(progress):
        grid.add_row(name, text)
    grid.add_row("ledger", ledger_line(progress.ledger))
    for number, beat in enumerate(sorted(progress.heartbeats.values(), key=lambda beat: beat.actor)):
        grid.add_row("" if number else "actors", f"{beat.actor:<14} {doing(beat, now)}")
    for number, event in enumerate(progress.recent_events):
        clock = time.strftime("%H:%M:%S", time.localtime(event.time))
        grid.add_row("" if number else "events", f"{clock} {event.actor}: {event.kind}")
    return Panel(grid, title=title, title_align="left", border_style="cyan")


def _figures(progress: Progress) -> list[tuple[str, str]]:
    if not progress.steps:
        return []
    last, recent = progress.steps[-1], progress.recent()
    target = "" if progress.target_reward is None else f"   target {progress.target_reward:g}"
    values = progress.values()
    busy = [f"{key.removeprefix(ENGINE_BUSY)} {v:.0%}" for key, v in progress.latest.items() if ENGINE_BUSY in key]
    publish = _number(progress.latest.get("weights/publish_lag", math.nan), ".0f")
    rows = [
        (progress.curve, f"{values[-1]:.3f}   last {REWARD_WINDOW}: {_recently(progress):.3f}{target}"),
        ("", sparkline(values)),
        (
            "lag",
            f"max {_number(last.max_lag, '.0f')}   mean {_number(last.mean_lag, '.2f')}   publish {publish} versions",
        ),
        (
            "rate",
            f"{_number(recent.samples_per_s, ',.0f')} samples/s   {_number(recent.tokens_per_s, ',.0f')} tokens/s",
        ),
        ("busy", "   ".join([f"learner {_number(recent.learner_busy, '.0%')}", *busy])),
    ]
    if any(progress.evals.values()):
        last = {name: max(points.items()) for name, points in progress.evals.items() if points}
        rows.append(("eval", "   ".join(f"{name} {value:.3f} (v{version})" for name, (version, value) in last.items())))
    bias = {name: progress.latest[PREFIX + name] for name in NAMES if PREFIX + name in progress.latest}
    if bias:
        rows.append(("lengths", lengths_line(bias)))
    if progress.engine_versions:
        rows.append(("engines", "   ".join(_engine(progress, *of) for of in sorted(progress.engine_versions.items()))))
    return rows


def _engine(progress: Progress, name: str, version: int) -> str:
    known = progress.engine_figures.get(name)
    return f"{name} v{version}" + (f" {told}" if known and (told := pace(known.running, known.tokens_per_s)) else "")


def sparkline(values: Sequence[float], width: int = _SPARK_WIDTH) -> str:
    """The values as ``width`` bars at most, each the mean of its share of them, from the least to the greatest."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return ""
    count = min(width, len(finite))
    edges = [len(finite) * bar // count for bar in range(count + 1)]
    means = [sum(finite[a:b]) / (b - a) for a, b in itertools.pairwise(edges)]
    low, high = min(means), max(means)
    scale = (len(_BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BARS[round((value - low) * scale)] for value in means)


def doing(beat: Heartbeat, now: float) -> str:
    """``busy``, or whom the actor waits for and how long; an old heartbeat says so."""
    silent = now - beat.time
    longest = next(iter(beat.waits), None)
    state = f"waits for {longest.sentence}, {max(0.0, now - longest.since):.1f} s" if longest else "busy"
    return f"silent for {silent:.0f} s, then: {state}" if silent > 5 else state


def duration(seconds: float) -> str:
    """``12 s``, ``3 min 20 s``, ``2 h 05 min``; ``-`` if not known."""
    if not math.isfinite(seconds):
        return "-"
    total = round(seconds)
    if total < 60:
        return f"{total} s"
    if total < 3600:
        return f"{total // 60} min {total % 60:02d} s"
    return f"{total // 3600} h {total % 3600 // 60:02d} min"


def _waits(progress: Progress, now: float) -> str:
    waiting = [f"{b.actor} {doing(b, now)}" for b in progress.heartbeats.values() if b.waits]
    return f"  [{'; '.join(sorted(waiting))}]" if waiting else ""


def _recently(progress: Progress) -> float:
    value = mean(progress.values()[-REWARD_WINDOW:])
    return math.nan if value is None else value


def _number(value: float, form: str) -> str:
    return format(value, form) if math.isfinite(value) else "-"
