"""A run's directory, or a simulation's, read for when everything happened (observations.py).

Promises: nothing is changed; of a step or a group that was made twice the last time counts; what is missing is one line.
Times are in seconds, of the transitions by the clock of the bus, of generation by that of the worker.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bus.codec import TOKENS, CodecError, decode
from bus.messages import Group
from miles_async.monitor.record_lines import (
    TRANSITIONS_FILE,
    RecordError,
    TransitionLine,
    is_step,
    read_metrics,
    read_transitions,
)
from miles_async.recording.recorder import DIRECTORY, PUBLISHED
from miles_async.recording.segments import SUFFIX, Payloads, SegmentError, scan
from miles_async.runs.launches import is_simulation
from miles_async.simulation.observations import Observed, ObservedGroup, ObservedStep, ObservedUpdate

MOST = 20_000  # groups that are unpacked: of more, every so manieth
PAUSED = "weights/paused_s/"


def observe(run_dir: Path) -> Observed:
    """Raises RecordError: there is no record, it holds no trained step, or a file of it is damaged."""
    if not (run_dir / TRANSITIONS_FILE).is_file():
        raise RecordError(f"{run_dir}: no run here that has a record (expected {TRANSITIONS_FILE})")
    found = Observed()
    for line in read_transitions(run_dir):
        _fold(found, line)
    for line in read_metrics(run_dir):
        values: dict[str, Any] = line.values
        if (is_step(line) or "perf/train_time" in values) and line.step in found.steps:
            step = found.steps[line.step]
            step.ended, step.train_s = line.time, values.get("perf/train_time") or 0.0
            step.save_s = values.get("perf/save_model_time") or 0.0
        paused = {name.removeprefix(PAUSED): s for name, s in values.items() if name.startswith(PAUSED) and s}
        if paused:
            found.updates.append(ObservedUpdate(line.step, line.time, paused))
    if not any(step.ended is not None for step in found.steps.values()):
        raise RecordError(f"{run_dir}: no step of this run is on record: there is nothing to calibrate a simulation on")
    if not is_simulation(run_dir):
        _unpack(found, run_dir)
    return found


def _fold(found: Observed, line: TransitionLine) -> None:
    groups = [found.groups.setdefault(group_id, ObservedGroup()) for group_id in line.groups]
    if line.kind == "admitted":
        found.admissions.append((line.time, line.groups))
        for group in groups:
            group.admitted = line.time
    elif line.kind == "claimed":
        for group in groups:
            group.began = line.time
    elif line.kind == "published":
        groups[0].published, groups[0].lengths = line.time, line.lengths
        groups[0].generated = groups[0].graded = line.time
    elif line.kind in ("batched", "extended"):
        found.batches.append(line.time)
        if line.kind == "batched":
            found.steps[line.step] = ObservedStep(batched=line.time)
        if (step := found.steps.get(line.step)) is not None:
            step.groups += line.groups
            step.batches += 1
    elif line.kind == "dropped":
        found.batches.append(line.time)
        for group in groups:
            group.gone, group.reason = line.time, line.reason
            group.lengths = line.lengths or group.lengths


def _unpack(found: Observed, run_dir: Path) -> None:
    """Prompts, and the worker's own times. Raises RecordError."""
    directory = run_dir / DIRECTORY
    files = sorted(directory.glob(f"*{SUFFIX}"))
    if not files:
        raise RecordError(
            f'{directory}: no groups are kept there: the run had record.level = "off", or they were removed; a simulation is '
            "calibrated on them"
        )
    payloads = Payloads()
    try:
        places = [(entry, place) for file in files for entry, place in scan(file) if entry.outcome == PUBLISHED]
        for entry, place in places[:: max(1, -(-len(places) // MOST))]:
            if (group := found.groups.get(entry.group_id)) is not None and group.published is not None:
                _take_times(group, decode(payloads.read(place), Group))
    except (SegmentError, CodecError, OSError) as error:
        raise RecordError(str(error)) from None


def _take_times(group: ObservedGroup, recorded: Group) -> None:
    if recorded.finished - 1.0 > (group.published or 0.0):
        return  # another attempt than the one that counts
    group.began, group.graded = recorded.started, recorded.finished
    group.generated = recorded.generated or recorded.finished
    group.prompt = len(recorded.prompt_tokens) // TOKENS.itemsize
