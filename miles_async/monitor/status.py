"""What a run directory says of its run: asked of the bus while the run lives, else read from its summary.

Promises: reading changes nothing; a run whose supervisor was killed is told apart from one that lives; every wait has a
deadline.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from redis.exceptions import RedisError

from bus import EngineState, Ledger, NoRedisError, connect
from bus.deadline import within
from bus.errors import RedisLoadsError
from bus.loading import reading, wait_not
from bus.messages import Heartbeat
from bus.password import without_password
from miles_async.config import toml
from miles_async.config.schema import ConfigError
from miles_async.monitor.diagnosis import REDIS_SILENT_S, Redis, Sight, diagnose, redis_waits, waits
from miles_async.monitor.engines import pace
from miles_async.monitor.panel import doing, line
from miles_async.monitor.progress import Progress, progress_of
from miles_async.monitor.record_lines import METRICS_FILE, read_events, read_metrics
from miles_async.monitor.sight import as_json, look, process_of, refusal, shown
from miles_async.monitor.summary import (
    SUMMARY_FILE,
    describe,
    last_summary,
    ledger_counts,
    ledger_line,
    summarize,
)
from miles_async.runs.launches import CONFIG_FILE
from miles_async.runs.state import REDIS_DIR, STATE_FILE, RunState, living

BUS_DEADLINE_S = 5.0
MARKS = (STATE_FILE, METRICS_FILE, SUMMARY_FILE)  # one of them makes a directory a run's


class SilentBusError(NoRedisError):
    """A living run's bus does not answer. ``found``: what is known nevertheless, as :func:`status` would return it."""

    def __init__(self, diagnosis: str, found: dict[str, Any]) -> None:
        super().__init__(diagnosis)
        self.found = found


def status(run_dir: Path, known: Progress | None = None) -> dict[str, Any]:
    """State of the run in ``run_dir``: the summary of one that has ended, else ``status`` "starting", "running" or "dead".

    known: the progress that the record comes to, of whoever has read it already.
    Raises ConfigError if no run has ever started there, RunStateError, SilentBusError if a living run's bus does not answer.
    """
    check_is_run(run_dir)
    supervisor = living(run_dir)
    if supervisor is not None and supervisor.bus_url is None:
        return {"status": "starting", "run_dir": str(run_dir), **_who(supervisor)}
    if supervisor is not None:
        return asyncio.run(_ask(run_dir, supervisor, str(supervisor.bus_url), known))
    if (summary := last_summary(run_dir)) is not None:
        return summary
    # killed before it could write one
    progress = known or _progress(run_dir)
    seen = progress.last_seen[-1] if progress.last_seen else 0.0
    reason = "its supervisor ended without a summary" if progress.starts else "its launch ended before it began to run"
    found = summarize(progress, "dead", {}, seen, reason)
    return {**found, "ledger": None, "balanced": None, "run_dir": str(run_dir)}


def is_run(run_dir: Path) -> bool:
    """Whether a launch has ever left anything there."""
    return any((run_dir / name).exists() for name in MARKS)


def check_is_run(run_dir: Path) -> None:
    """Raises ConfigError: no run has ever started there."""
    if not is_run(run_dir):
        raise ConfigError(f"{run_dir}: no run here (expected {STATE_FILE} or {SUMMARY_FILE})")


def show(found: Mapping[str, Any], now: float) -> str:
    """``found``, as :func:`status` returned it, for a reader."""
    if found["status"] == "starting":
        return f"starting, {_place(found)}"
    if found["status"] != "running":
        return describe(found)
    if "actors" not in found:  # its bus does not answer
        return "\n".join([f"running, {_place(found)}", *_show_waits(found)])
    lines = [f"running, {_place(found)}", found["line"], f"ledger   {ledger_line(found['ledger'])}"]
    if ranks := found["learner"]:
        lines.append(f"learner  {ranks['ranks']} of {ranks['num_ranks']} ranks")
    for name, e in sorted(found["engines"].items()):
        behind = f", {e['lag']} behind" if e["lag"] else ""
        leaving = ", leaving" if e["leaving"] else ""
        figures = pace(e["running"], e["tokens_per_s"])
        does = f", {figures}" if figures else ""
        lines.append(f"engine   {name:<14} v{e['version']} {e['state']}{behind}{leaving}{does}")
    for actor in found["actors"]:
        refused = f", refused {actor['refused']} malformed messages and requests" if actor["refused"] else ""
        lines.append(f"actor    {actor['actor']:<14} {shown(actor):<12} {actor['doing']}{refused}")
    if found["redis_pid"]:
        lines.append(f"bus      {'redis':<14} {_place({**found, 'pid': found['redis_pid']})}")
    lines += _show_waits(found)
    return "\n".join(lines)


def _who(supervisor: RunState) -> dict[str, Any]:
    """The process, and its machine where that is another one."""
    return {"pid": supervisor.pid} | ({"host": supervisor.elsewhere} if supervisor.elsewhere else {})


def _place(found: Mapping[str, Any]) -> str:
    return f"pid {found['pid']}{' on ' + found['host'] if 'host' in found else ''}"


def _redis_here(supervisor: RunState) -> int | None:
    """The process of the run's own Redis, if it is one of this machine's."""
    return None if supervisor.elsewhere else supervisor.redis_pid


async def _ask(run_dir: Path, supervisor: RunState, url: str, known: Progress | None) -> dict[str, Any]:
    began = time.monotonic()
    own = reading(pid, run_dir / REDIS_DIR) if (pid := _redis_here(supervisor)) else None
    if own is not None:  # seen from outside: it may answer nothing for long
        return _without_bus(run_dir, supervisor, str(own), 0.0)
    try:
        seen = await within(BUS_DEADLINE_S + 1, read_bus(supervisor, url), f"the bus at {without_password(url)}")
    except RedisLoadsError as error:
        return _without_bus(run_dir, supervisor, str(error), time.monotonic() - began)
    except (NoRedisError, RedisError, OSError) as error:
        raise _silent(run_dir, supervisor, str(error), time.monotonic() - began) from None
    now = time.time()
    progress = known or _progress(run_dir)
    sight = _sight(supervisor, seen.beats, seen.refused, now)
    return {
        "status": "running",
        "run_dir": str(run_dir),
        **_who(supervisor),
        "redis_pid": supervisor.redis_pid,
        "step": progress.step,
        "num_steps": progress.num_steps,
        "line": line(progress, now),
        "ledger": ledger_counts(seen.counts),
        "learner": _elastic_learner(run_dir, seen.beats),
        "engines": {name: _engine(progress, name, e, name in seen.leaving) for name, e in seen.engines.items()},
        "actors": [
            {
                "actor": beat.actor,
                "role": beat.role,
                **as_json(beat.where),
                "silent_s": round(now - beat.time, 3),
                "waits_for": beat.waits[0].sentence if beat.waits else "",
                "waits_s": round(now - beat.waits[0].since, 3) if beat.waits else 0.0,
                "doing": doing(beat, now),
                "refused": beat.refused,
            }
            for beat in sorted(seen.beats, key=lambda beat: beat.actor)
        ],
        "waits": [wait.as_dict() for wait in waits(sight)],
        "diagnosis": diagnose(sight),
    }


def _elastic_learner(run_dir: Path, beats: list[Heartbeat]) -> dict[str, int]:
    """Of a learner that may have fewer ranks than its configuration, how many there are now; of others nothing."""
    path = run_dir / CONFIG_FILE
    config = toml.read(path) if path.exists() else None
    if config is None or config.placement.elastic_learner.min_ranks is None:
        return {}
    return {"ranks": sum(beat.role == "learner" for beat in beats), "num_ranks": config.learner.num_ranks}


def _engine(progress: Progress, name: str, line: EngineState, leaving: bool) -> dict[str, Any]:
    known = progress.engine_figures.get(name)
    return {
        "version": line.version,
        "state": line.state,
        "lag": max(0, progress.step - line.version),  # versions behind the learner, of the publish lag
        "url": line.url,
        "leaving": leaving,
        "running": _finite(known.running) if known else None,
        "tokens_per_s": _finite(known.tokens_per_s) if known else None,
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


class SeenBus(NamedTuple):
    """What the bus of a run says. ``leaving``: engines that get no new work; ``refused``: why Redis takes nothing new."""

    beats: list[Heartbeat]
    counts: dict[str, int]
    engines: dict[str, EngineState]
    leaving: frozenset[str]
    refused: str


async def read_bus(supervisor: RunState, url: str) -> SeenBus:
    """Ask the bus of a living run, once. Raises NoRedisError, RedisError, OSError, RedisLoadsError."""
    bus = await connect(url, supervisor.run_id, deadline_s=BUS_DEADLINE_S, tell=wait_not)
    bus.read_only = True
    try:
        roster = await bus.roster()
        leaving = roster.leaving if roster is not None else frozenset[str]()
        counts = await Ledger(bus).counts()
        return SeenBus(await bus.heartbeats(), counts, await bus.engines(), leaving, await refusal(bus))
    finally:
        await bus.close()


def _sight(supervisor: RunState, beats: list[Heartbeat], refused: str, now: float) -> Sight:
    redis = process_of(pid) if (pid := _redis_here(supervisor)) else None
    return Sight(
        now=now,
        beats=beats,
        processes={beat.actor: look(beat.where) for beat in beats},
        silent={beat.actor: now - beat.time for beat in beats},
        redis=Redis(pid, redis.state, refusal=refused) if redis else Redis(refusal=refused),
    )


def _silent(run_dir: Path, supervisor: RunState, error: str, seconds: float) -> SilentBusError:
    """What can be said without a bus: whose fault it is, and who waits, as the supervisor last told it."""
    diagnosis = error
    if pid := _redis_here(supervisor):
        seen = Redis(pid, process_of(pid).state, max(seconds, REDIS_SILENT_S))
        diagnosis = diagnose(Sight(time.time(), redis=seen))
    return SilentBusError(diagnosis, _without_bus(run_dir, supervisor, diagnosis, seconds))


def _without_bus(run_dir: Path, supervisor: RunState, diagnosis: str, seconds: float) -> dict[str, Any]:
    told = [event for event in read_events(run_dir) if event.kind in ("stalled", "moving_again")]
    graph: Any = told[-1].data.get("waits") if told and told[-1].kind == "stalled" else None
    return {
        "status": "running",
        "run_dir": str(run_dir),
        **_who(supervisor),
        "redis_pid": supervisor.redis_pid,
        "waits": graph or [wait.as_dict() for wait in redis_waits(["every actor"], time.time(), seconds)],
        "diagnosis": diagnosis,
    }


def _show_waits(found: Mapping[str, Any]) -> list[str]:
    lines = [f"wait     {w['who']:<14} for {w['for_whom']}, {w['seconds']:.1f} s" for w in found["waits"]]
    return lines + ([f"culprit  {found['diagnosis']}"] if found["diagnosis"] else [])


def _progress(run_dir: Path) -> Progress:
    path = run_dir / CONFIG_FILE
    config = toml.read(path) if path.exists() else None
    progress = progress_of(config) if config else Progress(0)
    progress.replay(read_metrics(run_dir), read_events(run_dir))
    return progress
