"""The directory of a simulation, which ``compare`` and ``sweep`` take as they take a run's.

    sim.toml            its settings, to be edited and simulated again
    metrics.jsonl       its timeline: each step, and each wave of updates, under the names of a run's metrics
    transitions.jsonl   with simulation.transitions, every moment of every group, as a run has them
    summary.json        its figures, written last: a simulation that was interrupted has none

Promises: a directory with a run or a sweep in it is refused; what is written of the same settings is the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from miles_async.config.words import NONE, toml
from miles_async.disk.durable import write_whole
from miles_async.monitor.record_lines import METRICS_FILE, TRANSITIONS_FILE
from miles_async.monitor.summary import SUMMARY_FILE
from miles_async.runs import kinds
from miles_async.runs.launches import SIMULATION_FILE
from miles_async.simulation.result import simulated
from miles_async.simulation.settings import LOOKED_AT, SimulationConfig

SIMULATED = "simulated"  # the status of its summary


def simulate_into(config: SimulationConfig, run_dir: Path, about: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Simulate, and leave everything in ``run_dir``; the figures, with ``calibration`` where it is ``about`` one.

    Raises ConfigError: something else lies there; StuckError, HookFailed; OSError.
    """
    kinds.refuse_another(run_dir, kinds.SIMULATION)
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / SUMMARY_FILE).unlink(missing_ok=True)
    head = f"# Calibrated on {about['from']}.\n" if about else ""
    write_whole(run_dir / SIMULATION_FILE, (head + text_of(config)).encode())
    timed = msgspec.structs.replace(config, simulation=msgspec.structs.replace(config.simulation, timeline=True))
    found, loop = simulated(timed)
    found.pop("timeline")
    lines: list[dict[str, Any]] = [*loop.record.lines, *(loop.moments.updates or [])]
    lines.sort(key=lambda line: line["time"])
    write_whole(run_dir / METRICS_FILE, _lines(lines))
    if (transitions := loop.moments.transitions) is not None:
        write_whole(run_dir / TRANSITIONS_FILE, _lines(transitions))
    else:
        (run_dir / TRANSITIONS_FILE).unlink(missing_ok=True)  # an earlier simulation's
    if about:
        found["calibration"] = dict(about)
    write_whole(run_dir / SUMMARY_FILE, json.dumps(found, indent=2).encode() + b"\n")
    return found


def text_of(config: SimulationConfig) -> str:
    """TOML that read back is ``config``: every key, but of the sections of a run only what a simulation looks at, and what is
    not at its default."""
    lines = list[str]()
    for section in msgspec.structs.fields(SimulationConfig):
        values, looked_at = getattr(config, section.name), LOOKED_AT.get(section.name)
        usual = type(values)()
        lines += ["", f"[{section.encode_name}]"]
        for key in msgspec.structs.fields(type(values)):
            value = getattr(values, key.name)
            if looked_at is None or key.name in looked_at or value != getattr(usual, key.name):
                lines.append(f"{key.encode_name} = {_value(value)}")
    return "\n".join(lines[1:]) + "\n"


def _value(value: Any) -> str:
    return toml(NONE if value is None else value)


def _lines(lines: Iterable[Mapping[str, Any]]) -> bytes:
    return b"".join(msgspec.json.encode(line) + b"\n" for line in lines)
