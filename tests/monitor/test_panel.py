"""The live view: a panel on a terminal, plain lines elsewhere."""

from __future__ import annotations

import io
import time

import pytest

from bus.messages import Heartbeat
from miles_async.monitor.panel import LiveView, doing, duration, line, sparkline
from miles_async.monitor.progress import Progress
from miles_async.monitor.record_lines import MetricsLine


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def progress() -> Progress:
    made = Progress(num_steps=100, target_reward=0.9)
    made.begin(time.time())
    return made


def step(progress: Progress, number: int) -> None:
    values: dict[str, float | None] = {"raw_reward": number / 100, "n_samples": 32.0, "n_tokens": 320.0}
    progress.add_metrics(MetricsLine("learner-0", number, time.time(), values))


def test_without_a_terminal_ten_steps_are_one_plain_line(progress: Progress) -> None:
    stream = io.StringIO()
    view = LiveView(progress, "runs/x", "auto", stream)
    view.start()
    for number in range(1, 36):
        step(progress, number)
        view.update()
    view.stop()
    title, *lines = stream.getvalue().splitlines()
    assert title == "runs/x"
    assert [text.split("  ")[0] for text in lines] == ["step 10/100", "step 20/100", "step 30/100"]
    assert "\x1b" not in stream.getvalue()


def test_on_a_terminal_the_panel_shows_the_run(progress: Progress) -> None:
    for number in range(1, 6):
        step(progress, number)
    progress.engine_versions = {"engine-0": 5, "engine-1": 4}
    says: dict[str, float | None] = {"engine_busy/engine-1": 0.5, "engine_tokens_per_s/engine-1": 1234.0}
    progress.add_metrics(MetricsLine("router", 5, time.time(), says | {"router/inflight": 2.0}))
    progress.ledger = {"dealt": 9, "trained": 9}
    now = time.time()
    progress.heartbeats = {"dealer": Heartbeat(actor="dealer", role="dealer", incarnation=1, time=now)}
    stream = Terminal()
    view = LiveView(progress, "runs/x", "auto", stream)
    view.start()
    view.stop()
    shown = stream.getvalue()
    curve = sparkline([step.reward for step in progress.steps])
    for expected in ("5/100", "target 0.9", curve, "engine-1 v4 1,234 tokens/s", "dealt 9 = ", "dealer", "busy"):
        assert expected in shown


def test_what_is_said_stands_above_the_panel(progress: Progress) -> None:
    stream = Terminal()
    view = LiveView(progress, "runs/x", "on", stream)
    view.start()
    view.say("supervisor: restarted [engine-0]")
    view.stop()
    assert "supervisor: restarted [engine-0]" in stream.getvalue()


def test_a_run_without_a_step_says_that_it_starts(progress: Progress) -> None:
    assert line(progress, progress.starts[0] + 3).startswith("step 0/100  starting, 3 s")


def test_a_silent_actor_is_not_called_busy() -> None:
    beat = Heartbeat(actor="rollout-0", role="rollout", incarnation=1, time=100.0)
    assert doing(beat, 101.0) == "busy"
    assert doing(beat, 130.0).startswith("silent for 30 s")


def test_the_sparkline_keeps_its_width_and_its_shape() -> None:
    assert sparkline([]) == ""
    assert sparkline([0.5] * 3) == "▁▁▁"
    assert sparkline([float(i) for i in range(8)]) == "▁▂▃▄▅▆▇█"
    assert len(sparkline([float(i) for i in range(1000)], width=40)) == 40


@pytest.mark.parametrize(
    ("seconds", "text"), [(12.2, "12 s"), (200, "3 min 20 s"), (7500, "2 h 05 min"), (float("nan"), "-")]
)
def test_durations_read_well(seconds: float, text: str) -> None:
    assert duration(seconds) == text
