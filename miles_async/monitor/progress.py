"""How far a run is: a fold over its messages, in memory, without a clock or I/O.

Promises: the steps are those the model contains: a step that is trained again after a resume replaces the one it had
and all behind it. The same fold over ``metrics.jsonl`` and ``events.jsonl`` gives the same steps, so a resumed run goes
on where it was, and a message that is delivered twice counts once.
"""

from __future__ import annotations

import bisect
import math
from collections import Counter, deque
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import msgspec

from bus.messages import Heartbeat
from miles_async.config.schema import RunConfig
from miles_async.monitor.engines import EngineFigures, figures
from miles_async.monitor.record_lines import EventLine, MetricsLine, is_step

MONITOR = "monitor"
LEDGER = "ledger"  # speaks through the monitor; its numbers are of a batch, and make no step
START = "start"  # the monitor's own value: which start of this run begins here, 0 for the first

FREQUENT = frozenset({"dropped", "late_publication_refused", "sample_lost"})  # events that are counted only

RATE_STEPS = 20  # steps that "now" means in a rate
ENGINE_BUSY = "engine_busy/"  # then the engine
ROUTER_SAYS = "router/inflight"  # is in every report of a router
EVAL = "eval/"  # then the dataset: the mean reward of a point
PAUSED = "weights/paused_s"  # then, where each engine is reported, a slash and the engine


# a run that is taught has no rewards of its own
Curve = Literal["reward", "loss"]


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """One step as its learner reported it: a batch."""

    step: int  # 1-based; the weight version it made
    start: int  # which start of the run trained it, 0-based
    time: float  # seconds since the epoch, at its end
    reward: float  # mean raw reward
    loss: float
    max_lag: float  # versions, over the tokens trained on
    mean_lag: float
    n_samples: int
    n_tokens: int  # response tokens
    train_s: float  # the learner's compute


class Rate(msgspec.Struct, frozen=True):
    """What a stretch of steps did. ``nan`` where there are fewer than two steps."""

    samples_per_s: float
    tokens_per_s: float
    learner_busy: float  # share of the wall time that the learner computed
    steps_per_s: float


class Progress:
    """State of one run, fed message by message. All times are seconds since the epoch."""

    def __init__(
        self,
        num_steps: int,
        target_reward: float | None = None,
        datasets: Iterable[str] = (),
        curve: Curve = "reward",
    ) -> None:
        """``datasets``: the names of those that the run is evaluated on. ``curve``: what shows whether it learns."""
        self.num_steps = num_steps
        self.curve: Curve = curve
        self.target_reward = target_reward
        self.steps: list[Step] = []
        self.starts: list[float] = []
        self.last_seen: list[float] = []  # for each start
        self.first_step_at: list[float | None] = []  # for each start
        self.engine_samples: list[tuple[float, float]] = []  # (time, mean busy share of the engines)
        self.engine_versions: dict[str, int] = {}
        self.engine_figures: dict[str, EngineFigures] = {}
        self.latest: dict[str, float] = {}  # last value of every metric
        self.updates: list[tuple[float, float]] = []  # seconds of an update, mean seconds that its engines paused
        self.evals: dict[str, dict[int, float]] = {name: {} for name in datasets}  # mean reward, by dataset and version
        self.skipped: dict[int, str] = {}  # versions without their point of the evaluation, and why
        self.events: Counter[str] = Counter()
        self.recent_events: deque[EventLine] = deque(maxlen=4)
        self.heartbeats: dict[str, Heartbeat] = {}
        self.ledger: dict[str, Any] = {}

    def replay(self, metrics: Iterable[MetricsLine], events: Iterable[EventLine]) -> None:
        """Fold in what earlier starts left on disk, in the order of the files: clocks of several machines may differ."""
        for line in metrics:
            self.add_metrics(line)
        for event in events:
            self.add_event(event)

    def add_event(self, event: EventLine) -> None:
        self.events[event.kind] += 1
        if event.kind in ("eval_skipped", "evaluated") and isinstance(version := event.data.get("version"), int):
            self.skipped.pop(version, None)
            if event.kind == "eval_skipped":
                self.skipped[version] = str(event.data.get("reason", ""))
        if event.kind not in FREQUENT:
            self.recent_events.append(event)

    def begin(self, time: float) -> None:
        """A start of the run, at ``time``."""
        self.starts.append(time)
        self.last_seen.append(time)
        self.first_step_at.append(None)

    def add_metrics(self, line: MetricsLine) -> None:
        values = {key: math.nan if value is None else value for key, value in line.values.items()}
        if not self.starts or (line.actor == MONITOR and START in values):
            self.begin(line.time)
        self.latest.update(values)
        start = self._start_of(line.time)
        self.last_seen[start] = max(self.last_seen[start], line.time)
        if is_step(line):
            self._add_step(line, start, values)
        for name, points in self.evals.items():
            if EVAL + name in values:
                points[line.step] = values[EVAL + name]
        busy = [value for key, value in values.items() if key.startswith(ENGINE_BUSY)]
        if ROUTER_SAYS in values:
            self.engine_figures = figures(self.engine_figures, values)
        if busy:
            self.engine_samples.append((line.time, sum(busy) / len(busy)))
        if "weights/update_s" in values:
            paused = [value for key, value in values.items() if key.startswith(PAUSED)]
            self.updates.append((values["weights/update_s"], sum(paused) / len(paused) if paused else math.nan))

    def _start_of(self, time: float) -> int:
        """The start that a message of ``time`` belongs to: what a killed supervisor left on the bus arrives in the next."""
        return max(0, bisect.bisect_right(self.starts, time) - 1)

    def _add_step(self, line: MetricsLine, start: int, values: Mapping[str, float]) -> None:
        if self.steps and (self.steps[-1].step, self.steps[-1].time) == (line.step, line.time):
            return  # delivered twice
        while self.steps and self.steps[-1].step >= line.step:
            self.steps.pop()
        if self.first_step_at[start] is None:
            self.first_step_at[start] = line.time
        self.steps.append(
            Step(
                step=line.step,
                start=start,
                time=line.time,
                reward=values["raw_reward"],
                loss=values.get("loss", math.nan),
                max_lag=values.get("max_token_lag", math.nan),
                mean_lag=values.get("mean_token_lag", math.nan),
                n_samples=int(values.get("n_samples", 0)),
                n_tokens=int(values.get("n_tokens", 0)),
                train_s=values.get("perf/train_time", 0.0),
            )
        )

    def values(self) -> list[float]:
        """The curve's value of each step."""
        return [getattr(step, self.curve) for step in self.steps]

    @property
    def step(self) -> int:
        """The last step, 0 before the first."""
        return self.steps[-1].step if self.steps else 0

    def recent(self) -> Rate:
        """Rate of the last steps of this start."""
        current = len(self.starts) - 1
        return rate([step for step in self.steps[-RATE_STEPS:] if step.start == current])

    def eta_s(self) -> float:
        """Seconds to ``num_steps`` at the recent rate; nan if unknown."""
        per_s = self.recent().steps_per_s
        return (self.num_steps - self.step) / per_s if per_s > 0 else math.nan

    def wall_s(self, now: float) -> float:
        """Seconds that the run was running, over all its starts."""
        past = sum(seen - start for start, seen in zip(self.starts[:-1], self.last_seen[:-1], strict=True))
        return past + (now - self.starts[-1] if self.starts else 0.0)


def progress_of(config: RunConfig) -> Progress:
    """The progress of a run that has not begun."""
    curve: Curve = "loss" if config.algorithm.loss_type == "sft_loss" else "reward"
    return Progress(config.run.num_steps, config.run.target_reward, config.eval.datasets, curve)


def spans(steps: list[Step]) -> list[tuple[Step, Step]]:
    """First and last step of each start that trained at least two of them."""
    by_start: dict[int, list[Step]] = {}
    for step in steps:
        by_start.setdefault(step.start, []).append(step)
    return [(group[0], group[-1]) for group in by_start.values() if len(group) > 1]


def rate(steps: list[Step]) -> Rate:
    """Rate between the first and the last step of each start: the pauses between two starts do not count, nor does what
    was done before the first step of a start was over.
    """
    ends = spans(steps)
    wall = sum(last.time - first.time for first, last in ends)
    if wall <= 0:
        return Rate(math.nan, math.nan, math.nan, math.nan)
    firsts = {first.step for first, _ in ends}
    kept = {first.start for first, _ in ends}
    done = [step for step in steps if step.start in kept and step.step not in firsts]
    return Rate(
        samples_per_s=sum(step.n_samples for step in done) / wall,
        tokens_per_s=sum(step.n_tokens for step in done) / wall,
        learner_busy=sum(step.train_s for step in done) / wall,
        steps_per_s=len(done) / wall,
    )
