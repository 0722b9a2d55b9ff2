"""What a run directory says of its run: asked of the bus while the run lives, else read from its summary.

Promises: reading changes nothing; a run whose supervisor was killed is told apart from one that lives; every wait has a
deadline.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import psutil

from miles_async.config import ConfigError
from miles_async.monitor.live import doing, line
from miles_async.monitor.monitor import CONFIG_FILE, SUMMARY_FILE
from miles_async.monitor.progress import Progress
from miles_async.monitor.record import METRICS_FILE, read_events, read_metrics
from miles_async.monitor.summary import describe, ledger_counts, ledger_line, summarize

SUPERVISOR_FILE = "supervisor.json"
BUS_DEADLINE_S = 5.0


class SupervisorFile(msgspec.Struct):
    """What the supervisor writes beside the run's record: who it is and where its bus is."""

    run_id: str
    pid: int | None = None  # none: the launch has ended
    process_started: float = 0.0  # seconds since the epoch; tells it from a later process of the same number
    bus_url: str | None = None  # none: the bus is not up yet
    redis_pid: int | None = None  # none: the server is not ours


def status(run_dir: Path) -> dict[str, Any]:
    """State of the run in ``run_dir``: the summary of one that has ended, else ``status`` "starting", "running" or "dead".

    Raises ConfigError if no run has ever started there, NoRedisError if a living run's bus does not answer.
    """
    if not any((run_dir / name).exists() for name in (SUPERVISOR_FILE, METRICS_FILE, SUMMARY_FILE)):
        raise ConfigError(f"{run_dir}: no run here (expected {SUPERVISOR_FILE} or {SUMMARY_FILE})")
    supervisor = living_supervisor(run_dir)
    if supervisor is not None and supervisor.bus_url is None:
        return {"status": "starting", "run_dir": str(run_dir), "pid": supervisor.pid}
    if supervisor is not None:
        return asyncio.run(_ask(run_dir, supervisor, str(supervisor.bus_url)))
    summary_file = run_dir / SUMMARY_FILE
    record_file = run_dir / METRICS_FILE
    if summary_file.exists() and (not record_file.exists() or _newer(summary_file, record_file)):
        return msgspec.json.decode(summary_file.read_bytes())
    # killed before it could write one
    progress = _progress(run_dir)
    seen = progress.last_seen[-1] if progress.last_seen else 0.0
    reason = "its supervisor ended without a summary" if progress.starts else "its launch ended before it began to run"
    found = summarize(progress, "dead", {}, seen, reason)
    return {**found, "ledger": None, "balanced": None, "run_dir": str(run_dir)}


def living_supervisor(run_dir: Path) -> SupervisorFile | None:
    """The supervisor of ``run_dir`` if its process lives."""
    path = run_dir / SUPERVISOR_FILE
    try:
        found = msgspec.json.decode(path.read_bytes(), type=SupervisorFile)
        lives = found.pid is not None and psutil.Process(found.pid).create_time() == found.process_started
    except (FileNotFoundError, psutil.NoSuchProcess):
        return None
    except msgspec.DecodeError as error:
        raise ConfigError(f"{path}: {error}") from None
    return found if lives else None


def show(found: Mapping[str, Any], now: float) -> str:
    """``found``, as :func:`status` returned it, for a reader."""
    if found["status"] == "starting":
        return f"starting, pid {found['pid']}"
    if found["status"] != "running":
        return describe(found)
    lines = [f"running, pid {found['pid']}", found["line"], f"ledger   {ledger_line(found['ledger'])}"]
    lines += [f"engine   {name:<14} v{e['version']} {e['state']}" for name, e in sorted(found["engines"].items())]
    lines += [f"actor    {actor['actor']:<14} pid {actor['pid']:<8} {actor['doing']}" for actor in found["actors"]]
    if found["redis_pid"]:
        lines.append(f"bus      {'redis':<14} pid {found['redis_pid']}")
    return "\n".join(lines)


async def _ask(run_dir: Path, supervisor: SupervisorFile, url: str) -> dict[str, Any]:
    from bus.client import connect
    from bus.ledger import Ledger

    bus = await connect(url, supervisor.run_id, deadline_s=BUS_DEADLINE_S)
    try:
        async with asyncio.timeout(BUS_DEADLINE_S):
            beats = await bus.heartbeats()
            counts = await Ledger(bus).counts()
            engines = await bus.engines()
    except TimeoutError:
        raise TimeoutError(f"the bus at {url} did not answer in {BUS_DEADLINE_S:g} s") from None
    finally:
        await bus.close()
    now = time.time()
    progress = _progress(run_dir)
    return {
        "status": "running",
        "run_dir": str(run_dir),
        "pid": supervisor.pid,
        "redis_pid": supervisor.redis_pid,
        "step": progress.step,
        "num_steps": progress.num_steps,
        "line": line(progress, now),
        "ledger": ledger_counts(counts),
        "engines": {name: {"version": e.version, "state": e.state, "url": e.url} for name, e in engines.items()},
        "actors": [
            {
                "actor": beat.actor,
                "role": beat.role,
                "pid": beat.pid,
                "silent_s": round(now - beat.time, 3),
                "waits_for": beat.waits_for,
                "waits_s": round(now - beat.waits_since, 3) if beat.waits_for else 0.0,
                "doing": doing(beat, now),
            }
            for beat in sorted(beats, key=lambda beat: beat.actor)
        ],
    }


def _progress(run_dir: Path) -> Progress:
    from miles_async.config_load import load

    path = run_dir / CONFIG_FILE
    num_steps = load(path, check=False).run.num_steps if path.exists() else 0
    progress = Progress(num_steps)
    progress.replay(read_metrics(run_dir), read_events(run_dir))
    return progress


def _newer(path: Path, than: Path) -> bool:
    return path.stat().st_mtime_ns >= than.stat().st_mtime_ns
