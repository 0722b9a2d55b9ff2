"""The monitor: the record on disk is complete and survives crashes, the summary speaks of the whole run."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from pathlib import Path

import pytest
from monitored import close, learner_steps, started, step_metrics, train

from bus.messages import Event, Heartbeat, Metrics, Wait
from bus.waits import WaitKind
from miles_async.monitor.record import RecordWriter
from miles_async.monitor.record_lines import RecordError, read_events, read_metrics


def test_every_metrics_message_is_one_line_in_order(tmp_path: Path) -> None:
    monitor = started(tmp_path)
    sent = [
        Metrics(actor=f"engine-{i % 3}", step=i, time=1000.0 + i, values={"a": float(i), "b/c": 0.5})
        for i in range(500)
    ]
    for message in sent:
        monitor.on_metrics(message)
    monitor.finish("finished", {})
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    start, *rest = lines  # the monitor's own
    assert (start["actor"], start["values"]) == ("monitor", {"start": 0.0})
    assert rest == [{"actor": m.actor, "step": m.step, "time": m.time, "values": m.values} for m in sent]


def test_events_are_recorded_with_their_data(tmp_path: Path) -> None:
    monitor = started(tmp_path)
    monitor.on_event(Event(actor="learner-0", kind="checkpoint", time=5.0, data={"version": 3}))
    summary = monitor.finish("finished", {})
    last = list(read_events(tmp_path))[-1]
    assert (last.actor, last.kind, last.data) == ("learner-0", "checkpoint", {"version": 3})
    assert summary["events"] == {"checkpoint": 1}


def test_tensorboard_reads_the_same_numbers(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monitor = started(tmp_path, tensorboard=True)
    train(monitor, 1, 20, begin=100.0)
    monitor.on_metrics(Metrics(actor="router", step=3, time=101.0, values={"engine_busy/engine-0": 0.25}))
    monitor.finish("finished", {})
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    rewards = [(event.step, pytest.approx(event.value)) for event in board.Scalars("train/raw_reward")]
    assert rewards == [(step, step / 100) for step in range(1, 21)]
    assert [event.value for event in board.Scalars("engine_busy/engine-0")] == [0.25]


def test_the_record_needs_no_torch() -> None:
    code = "import sys, miles_async.monitor.record as r; from pathlib import Path; import tempfile\n"
    code += "w = r.RecordWriter(Path(tempfile.mkdtemp()), tensorboard=True, keep=False); w.close()\n"
    code += "print(w.error, 'torch' in sys.modules, 'tensorboard' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == ["False", "True"]


def test_a_line_torn_by_a_crash_is_cut_off_and_the_next_one_is_whole(tmp_path: Path) -> None:
    first = started(tmp_path)
    train(first, 1, 3, begin=100.0)
    close(first)
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes() + b'{"actor":"learner-0","st')
    assert learner_steps(tmp_path) == [1, 2, 3]

    second = started(tmp_path, resumed=True)
    train(second, 4, 4, begin=200.0)
    second.finish("finished", {})
    assert learner_steps(tmp_path) == [1, 2, 3, 4]


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"actor":"a","step":1,"time":1.0,"values":{}}\nrubbish\n')
    with pytest.raises(RecordError, match=r"metrics\.jsonl line 2"):
        list(read_metrics(tmp_path))


def test_a_run_that_is_not_resumed_does_not_mix_with_what_was_there(tmp_path: Path) -> None:
    first = started(tmp_path)
    train(first, 1, 5, begin=100.0)
    first.finish("failed", {})
    second = started(tmp_path)
    train(second, 1, 1, begin=200.0)
    assert second.finish("finished", {})["steps"] == 1
    assert learner_steps(tmp_path) == [1]
    assert (tmp_path / "metrics.jsonl.old").exists()


def test_a_number_that_is_not_finite_is_null_and_spoils_no_mean(tmp_path: Path) -> None:
    monitor = started(tmp_path)
    train(monitor, 1, 4, begin=100.0)
    monitor.on_metrics(step_metrics(5, 105.0, math.nan, grad_norm=math.inf))
    summary = monitor.finish("finished", {})
    assert list(read_metrics(tmp_path))[-1].values["grad_norm"] is None
    assert summary["reward_last"] == pytest.approx(0.04)  # of the last two, without the one that is no number
    assert json.loads((tmp_path / "summary.json").read_text()) == summary


def test_the_summary_of_a_resumed_run_is_of_the_whole_run(tmp_path: Path) -> None:
    now = time.time()
    first = started(tmp_path)
    train(first, 1, 20, begin=now, max_token_lag=2.0)
    close(first)
    second = started(tmp_path, resumed=True)
    train(second, 21, 30, begin=now + 1000, max_token_lag=1.0)
    summary = second.finish("finished", {})
    assert summary["steps"] == 30
    assert summary["starts"] == 2
    assert summary["reward_first"] == pytest.approx(0.03)
    assert summary["reward_last"] == pytest.approx(0.28)
    assert summary["max_token_lag"] == 2
    assert summary["n_samples"] == 300


def test_steps_trained_again_after_a_resume_replace_the_ones_that_were_lost(tmp_path: Path) -> None:
    now = time.time()
    first = started(tmp_path)
    train(first, 1, 20, begin=now, max_token_lag=9.0)
    close(first)
    second = started(tmp_path, resumed=True)
    train(second, 11, 12, begin=now + 100, max_token_lag=1.0)
    summary = second.finish("stopped", {})
    assert summary["steps"] == 12
    assert summary["n_samples"] == 120
    assert summary["reward_last"] == pytest.approx(0.10)


def test_rates_leave_out_the_pause_between_two_starts(tmp_path: Path) -> None:
    now = time.time()
    values = {"perf/train_time": 0.25}
    first = started(tmp_path)
    train(first, 1, 11, begin=now, seconds=0.5, **values)  # 10 steps in 5 s
    close(first)
    second = started(tmp_path, resumed=True)
    train(second, 12, 22, begin=now + 3600, seconds=0.5, **values)
    summary = second.finish("finished", {})
    assert summary["samples_per_s"] == pytest.approx(20.0)
    assert summary["tokens_per_s"] == pytest.approx(200.0)
    assert summary["learner_busy"] == pytest.approx(0.5)


def test_a_report_that_comes_late_or_twice_counts_once_and_in_its_own_start(tmp_path: Path) -> None:
    begin = time.time() - 100
    first = started(tmp_path)
    train(first, 1, 11, begin=begin)
    close(first)
    second = started(tmp_path, resumed=True)
    train(second, 11, 12, begin=begin + 10)  # step 11 again, and 12, which the first start had not read
    summary = second.finish("stopped", {})
    assert summary["n_samples"] == 120
    assert summary["startup_s"] is None  # the second start made no step
    assert summary["samples_per_s"] == pytest.approx(10.0)


def test_engines_are_busy_by_what_the_router_saw_while_steps_were_made(tmp_path: Path) -> None:
    monitor = started(tmp_path)
    busy = {90.0: 0.0, 103.0: 0.5, 104.0: 0.7, 200.0: 0.0}  # before, between and after the steps
    for when in (90.0, 100.0, 103.0, 104.0, 110.0, 200.0):
        if when in busy:
            values = {"engine_busy/engine-0": busy[when], "engine_busy/engine-1": busy[when] + 0.2}
            monitor.on_metrics(Metrics(actor="router", step=0, time=when, values=values))
        else:
            monitor.on_metrics(step_metrics(1 if when == 100.0 else 2, when))
    assert monitor.finish("finished", {})["engine_busy"] == pytest.approx(0.7)


def test_a_ledger_that_does_not_add_up_is_called_unbalanced(tmp_path: Path) -> None:
    whole = {"dealt": 10, "trained": 6, "ready": 2, "dropped": 2, "dropped:stale": 1, "dropped:reward_timeout": 1}
    balanced = started(tmp_path / "a").finish("finished", whole)
    assert balanced["balanced"]
    assert balanced["ledger"]["dropped"] == {"stale": 1, "reward_timeout": 1}
    assert not started(tmp_path / "b").finish("finished", whole | {"dealt": 11})["balanced"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_ends_the_record_and_not_the_run(tmp_path: Path) -> None:
    monitor = started(tmp_path)
    close(monitor)
    (tmp_path / "metrics.jsonl").unlink()
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    monitor._record = RecordWriter(tmp_path, tensorboard=False, keep=True)
    train(monitor, 1, 5, begin=100.0)
    summary = monitor.finish("finished", {})
    assert summary["steps"] == 5
    assert "No space left" in " ".join(summary["troubles"])


def test_a_picture_is_drawn_of_many_steps_and_of_none(tmp_path: Path) -> None:
    for name, steps in (("none", 0), ("one", 1), ("many", 60)):
        monitor = started(tmp_path / name)
        train(monitor, 1, steps, begin=100.0)
        assert monitor.finish("finished", {})["troubles"] == []
        assert (tmp_path / name / "run.png").read_bytes().startswith(b"\x89PNG")


def test_a_second_finish_changes_nothing(tmp_path: Path) -> None:
    monitor = started(tmp_path)
    first = monitor.finish("failed", {}, "learner-0 died")
    assert monitor.finish("finished", {"dealt": 1}) is first
    assert json.loads((tmp_path / "summary.json").read_text())["reason"] == "learner-0 died"


def test_waits_are_told_apart_from_work(tmp_path: Path) -> None:
    from miles_async.monitor.panel import line

    monitor = started(tmp_path)
    train(monitor, 1, 2, begin=100.0)
    wait = Wait(kind=WaitKind.GROUPS, since=103.0, about={"step": 3})
    monitor.on_heartbeats(
        [
            Heartbeat(actor="learner-0", role="learner", incarnation=1, time=110.0, waits=(wait,)),
            Heartbeat(actor="dealer", role="dealer", incarnation=1, time=110.0),
        ]
    )
    text = line(monitor.progress, 110.0, stalled=True)
    assert "learner-0 waits for groups for step 3, 7.0 s" in text
    assert "dealer" not in text
    monitor.finish("stopped", {})
