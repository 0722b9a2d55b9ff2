"""The monitor of a run: what the supervisor feeds, in its own event loop, and what writes and shows it.

Promises: no call blocks on a disk or costs more than a redraw of the terminal; the record, the summary and the picture
cover the whole run, also across resumes; whatever goes wrong while reporting is reported and never ends a run.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TextIO

import msgspec

from bus.messages import Event, Heartbeat, Metrics, Transition
from miles_async.config.schema import RunConfig
from miles_async.config.toml import dump
from miles_async.disk.durable import write_whole
from miles_async.monitor.announce import Announcer
from miles_async.monitor.length_bias import LengthBias
from miles_async.monitor.losses import Losses, idle_batches, skipped_points
from miles_async.monitor.panel import LiveView
from miles_async.monitor.picture import PICTURE_FILE, draw
from miles_async.monitor.progress import LEDGER, MONITOR, START, Progress, progress_of
from miles_async.monitor.record import RecordWriter
from miles_async.monitor.record_lines import (
    EventLine,
    MetricsLine,
    TransitionLine,
    read_events,
    read_metrics,
    transition_line,
)
from miles_async.monitor.record_mend import set_aside
from miles_async.monitor.summary import SUMMARY_FILE, last_summary, summarize
from miles_async.monitor.trackers import Tracker, trackers_of
from miles_async.runs.launches import CONFIG_FILE


class Monitor:
    """One start of one run: :meth:`start`, then any of the ``on_`` methods, then :meth:`finish`."""

    def __init__(self, stream: TextIO | None = None) -> None:
        """``stream``: where the live view goes, standard output if not given."""
        self._stream = stream or sys.stdout
        self._progress = Progress(num_steps=0)
        self._record: RecordWriter | None = None
        self._view: LiveView | None = None
        self._trackers: list[Tracker] = []
        self._run_dir = Path()
        self._told_trouble = False
        self._length_bias = LengthBias()
        self._announcer, self._losses = Announcer(), Losses()
        self.summary: dict[str, Any] | None = None  # what finish returned
        self.note = ""  # for the user, below the summary

    def start(self, config: RunConfig, run_dir: Path, resumed: bool) -> None:
        """Open the record and the live view. ``resumed``: go on behind what the run directory holds.

        Lines of the record that cannot be read are set aside, which is an event. Raises OSError if the directory cannot
        be written.
        """
        self._run_dir = run_dir
        self._progress = progress_of(config)
        damaged = set_aside(run_dir) if resumed else []
        if resumed:
            self._progress.replay(read_metrics(run_dir), read_events(run_dir))
            self._losses.go_on(self._progress.latest)
        self._record = RecordWriter(
            run_dir, tensorboard=config.monitor.tensorboard, keep=resumed, last_step=self._progress.step
        )
        write_whole(run_dir / CONFIG_FILE, dump(config).encode())
        self._view = LiveView(self._progress, f"{run_dir}", config.monitor.live, self._stream)
        self._view.start()
        number = float(len(self._progress.starts))
        self.on_metrics(Metrics(actor=MONITOR, step=self._progress.step, time=time.time(), values={START: number}))
        self._trackers = trackers_of(config, run_dir, self._progress)
        for kind, data in [tracker.began for tracker in self._trackers]:
            self.on_event(Event(actor="supervisor", kind=kind, time=time.time(), data=data))
        for text in damaged:
            event = Event(actor="supervisor", kind="record_damaged", time=time.time(), data={"cause": text})
            self.on_event(event)

    def recall(self, run_dir: Path, note: str) -> None:
        """Show the record in the place of a start: the run is over already. ``note`` says so to the user."""
        self._run_dir, self.note = run_dir, note
        self.summary = last_summary(run_dir)

    def on_metrics(self, metrics: Metrics) -> None:
        """One line of ``metrics.jsonl``, one point in TensorBoard."""
        line = MetricsLine(metrics.actor, metrics.step, metrics.time, dict(metrics.values))
        self._progress.add_metrics(line)
        for tracker in self._trackers:
            tracker.add(line)
        self._keep(metrics)

    @property
    def written_entry(self) -> str:
        """The last entry of the bus's ``events`` that is on disk: what lies behind it has to be handed over (again)."""
        return self._record.written_entry if self._record else "0"

    @property
    def record_waits(self) -> bool:
        """The disk takes nothing: what is handed over now may never be on it, if this process is killed."""
        return bool(self._record and self._record.trouble)

    @property
    def behind(self) -> int:
        """How many messages are not on disk yet."""
        return self._record.behind if self._record else 0

    def on_transition(self, transition: Transition, entry_id: str) -> None:
        """One line of ``transitions.jsonl``; with each batch also the length bias, as metrics of the ledger."""
        line = transition_line(entry_id, transition)
        self._keep(line)
        self._length_bias.add(line)
        self._losses.add(line)
        if line.kind == "batched":
            self._report_length_bias(line.step, line.time)
            self._report_losses(line.step, line.time)

    def on_event(self, event: Event, entry_id: str = "") -> None:
        """One line of ``events.jsonl``; what the supervisor says is shown at once. ``entry_id``: on the bus."""
        line = EventLine(event.actor, event.kind, event.time, event.data, entry_id)
        self._progress.add_event(line)
        self._losses.add_event(event)
        if self._view and (text := self._announcer.text(event)):
            self._view.say(text)
        self._keep(line)

    def on_heartbeats(self, heartbeats: Iterable[Heartbeat]) -> None:
        """The last sign of life of every actor; an actor not among them is gone."""
        self._progress.heartbeats = {beat.actor: beat for beat in heartbeats}
        self._show()

    def on_ledger(self, counts: Mapping[str, Any]) -> None:
        """The ledger's counts."""
        self._progress.ledger = dict(counts)
        self._show()

    def on_engines(self, versions: Mapping[str, int]) -> None:
        """The weight version that each engine serves."""
        self._progress.engine_versions = dict(versions)
        self._show()

    def say(self, text: str) -> None:
        """A line on the terminal that is no event, also before the start."""
        if self._view:
            self._view.say(text)
        else:
            print(text, file=self._stream, flush=True)

    def finish(self, status: str, ledger: Mapping[str, Any], reason: str = "") -> dict[str, Any]:
        """Close the record, write ``summary.json`` and the picture, let go of the terminal; returns the summary.

        ``status``: "finished", "stopped" or "failed"; ``reason``: why, in one line. Safe to call twice: the first
        call counts.
        """
        if self.summary is not None:
            return self.summary
        self._progress.ledger = dict(ledger)
        self._report_length_bias(self._progress.step, time.time())
        self._report_losses(self._progress.step, time.time())
        if self._view:
            self._view.stop()
        troubles = []
        if self._record:
            self._record.close()
            troubles = [self._record.error] if self._record.error else []
        for tracker in self._trackers:
            tracker.close()
        troubles += [tracker.error for tracker in self._trackers if tracker.error]
        self.summary = summarize(self._progress, status, ledger, time.time(), reason)
        lines = self._losses.trouble(), skipped_points(self._progress.skipped), idle_batches(self.summary["events"])
        troubles += filter(None, lines)
        self.summary["samples_lost"] = self._losses.reasons()
        self.summary["run_dir"] = str(self._run_dir)
        self.summary["troubles"] = troubles
        if self._record:  # else it never began, and there is no directory that is its own
            self._leave(self.summary, status, troubles)
        return self.summary

    def _leave(self, summary: dict[str, Any], status: str, troubles: list[str]) -> None:
        """Write the picture and the summary, which holds ``troubles``; what does not work is added there."""
        try:
            draw(self._progress, self._run_dir / PICTURE_FILE, self._title(status))
        except (ImportError, OSError, ValueError, RuntimeError) as error:
            troubles.append(f"no picture: {error}")
        try:
            write_whole(self._run_dir / SUMMARY_FILE, msgspec.json.format(msgspec.json.encode(summary)) + b"\n")
        except OSError as error:
            troubles.append(f"no {SUMMARY_FILE}: {error}")

    @property
    def progress(self) -> Progress:
        """What is known of the run."""
        return self._progress

    def _report_length_bias(self, step: int, when: float) -> None:
        if self._length_bias.unreported:
            self.on_metrics(Metrics(actor=LEDGER, step=step, time=when, values=self._length_bias.values()))

    def _report_losses(self, step: int, when: float) -> None:
        if self._losses.unreported:
            self.on_metrics(Metrics(actor=LEDGER, step=step, time=when, values=self._losses.values()))
        if (news := self._losses.news()) is not None:
            self.on_event(Event(actor="supervisor", kind="samples_lost", time=when, data=news))

    def _keep(self, message: Metrics | EventLine | TransitionLine) -> None:
        if self._record:
            self._record.add(message)
            self._tell_of_the_disk(self._record.trouble)
        self._show()

    def _tell_of_the_disk(self, trouble: str) -> None:
        if bool(trouble) != self._told_trouble:
            self._told_trouble = bool(trouble)
            kind, data = ("record_waits", {"cause": trouble}) if trouble else ("record_goes_on", {})
            self.on_event(Event(actor="supervisor", kind=kind, time=time.time(), data=data))

    def _show(self) -> None:
        if self._view:
            self._view.update()

    def _title(self, status: str) -> str:
        return f"{self._run_dir.name}: {status} after {self._progress.step} steps"
