"""What a run shows of its learning: a beginning and an end that are not the same steps, in numbers that exist."""

from __future__ import annotations

from pathlib import Path

import pytest

from miles_async.cli.load import parse
from miles_async.monitor.panel import line, render
from miles_async.monitor.picture import draw
from miles_async.monitor.progress import Progress, progress_of
from miles_async.monitor.record_lines import MetricsLine
from miles_async.monitor.summary import describe, summarize

BASE = '[model]\nhf_checkpoint = "builtin:digits"\n[data]\nprompt_data = "builtin:repeat"\n'


def trained(progress: Progress, steps: int) -> Progress:
    progress.begin(0.0)
    for step in range(1, steps + 1):
        values: dict[str, float | None] = {"raw_reward": step / 100, "loss": 10.0 / step, "n_samples": 8.0}
        values |= {"max_token_lag": 1.0, "mean_token_lag": 0.5}
        progress.add_metrics(MetricsLine("learner-0", step, float(step), values))
    return progress


@pytest.mark.parametrize(("steps", "first", "last"), [(2, 0.01, 0.02), (5, 0.015, 0.045), (10, 0.03, 0.08)])
def test_the_first_and_the_last_reward_are_of_different_steps(steps: int, first: float, last: float) -> None:
    summary = summarize(trained(Progress(steps), steps), "finished", {}, 9.0)
    assert (summary["reward_first"], summary["reward_last"]) == (pytest.approx(first), pytest.approx(last))


def test_a_run_of_one_step_has_one_reward() -> None:
    text = describe(summarize(trained(Progress(1), 1), "finished", {}, 9.0))
    assert "\nreward   0.010\n" in text


def test_what_is_taught_shows_its_loss_and_no_reward() -> None:
    config = parse(BASE + '[algorithm]\nloss_type = "sft_loss"\n[rollout]\nrollout_function = "sft"\n')
    progress = trained(progress_of(config), 10)
    summary = summarize(progress, "finished", {}, 9.0)
    assert summary["reward_first"] is None and summary["reward_last"] is None
    assert summary["loss_first"] > summary["loss_last"] > 0
    shown = describe(summary) + line(progress, 9.0)
    assert "loss     4.567 -> 1.291" in shown and "reward" not in shown
    assert render(progress, "", 9.0) is not None


def test_steps_and_lags_have_whole_numbers_on_their_axes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.figure import Figure

    ticks: list[float] = []

    def note(figure: Figure, path: Path) -> None:
        figure.canvas.draw()
        for axes in figure.axes[:2]:
            ticks.extend(axes.get_xticks())
        ticks.extend(figure.axes[1].get_yticks())

    monkeypatch.setattr(Figure, "savefig", note)
    draw(trained(Progress(3), 3), tmp_path / "run.png", "three steps")
    assert ticks and all(tick == int(tick) for tick in ticks)
