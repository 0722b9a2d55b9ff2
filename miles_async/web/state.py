"""How a run does now, as one document for the page: what ``status`` says, its newest figures and events.

Promises: it shows nothing that ``status`` and ``inspect`` do not; what is not known is null, never 0; a run whose files are
damaged, or whose bus is silent, has a document, too, which says so in ``troubles``.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from bus.errors import NoRedisError
from miles_async.config.schema import ConfigError
from miles_async.monitor.engines import EngineFigures
from miles_async.monitor.progress import ENGINE_BUSY, Progress
from miles_async.monitor.record_lines import EventLine, RecordError
from miles_async.monitor.status import SilentBusError, status
from miles_async.monitor.summary import REWARD_WINDOW, balanced, mean
from miles_async.runs.state import RunStateError
from miles_async.web.followed import FollowedRun

DAMAGED = "damaged"  # what is said of a run whose state cannot be read
SILENT_S = 5.0  # an actor that was not heard of for longer is silent
TEXT = 300  # characters of what an event tells
_HIDDEN = frozenset({"waits", "traceback"})


def document(run: FollowedRun) -> dict[str, Any]:
    """The state of ``run``, as far as its files were read."""
    found, troubles = _status(run)
    progress, generation = run.progress, run.generation
    ledger = found.get("ledger")
    return {
        "name": run.run_dir.name,
        "generation": generation,
        "state": found["status"],
        "reason": found.get("reason") or "",
        "step": progress.step or found.get("steps") or 0,
        "num_steps": progress.num_steps,
        "curve": progress.curve,
        "target": progress.target_reward,
        "figures": figures(progress, found),
        "ledger": ledger,
        "balanced": None if ledger is None else balanced(ledger),
        "actors": [_actor(actor) for actor in found.get("actors", ())],
        "waits": [_wait(wait) for wait in found.get("waits", ())],
        "diagnosis": found.get("diagnosis", ""),
        "engines": _engines(run, found.get("engines") or {}),
        "evals": {name: sorted(points.items()) for name, points in progress.evals.items() if points},
        "events": [event(line) for line in run.events],
        "troubles": [*troubles, *run.troubles],
    }


def _status(run: FollowedRun) -> tuple[dict[str, Any], list[str]]:
    """What ``status`` says, and why it does not say more."""
    try:
        return status(run.run_dir, run.progress if run.progress.starts else None), []
    except SilentBusError as error:
        return error.found, [str(error)]
    except (ConfigError, RunStateError, RecordError, NoRedisError, OSError) as error:
        return {"status": DAMAGED}, [str(error)]


def figures(progress: Progress, found: Mapping[str, Any]) -> dict[str, float | None]:
    """Of the last steps while it runs; of the whole run where that is over."""
    over = found.get("samples_per_s") is not None or "wall_s" in found
    recent, steps = progress.recent(), progress.steps
    last = steps[-1] if steps else None
    return {
        "reward": mean(progress.values()[-REWARD_WINDOW:]) if steps else found.get("reward_last"),
        "mean_lag": found.get("mean_token_lag") if over else last and last.mean_lag,
        "max_lag": found.get("max_token_lag") if over else last and last.max_lag,
        "publish_lag": progress.latest.get("weights/publish_lag"),
        "samples_per_s": found.get("samples_per_s") if over else recent.samples_per_s,
        "tokens_per_s": found.get("tokens_per_s") if over else recent.tokens_per_s,
        "learner_busy": found.get("learner_busy") if over else recent.learner_busy,
        "engine_busy": found.get("engine_busy") if over else _mean_busy(progress),
        "eta_s": None if over else progress.eta_s(),
        "wall_s": found.get("wall_s") if over else progress.wall_s(time.time()) if progress.starts else None,
    }


def _mean_busy(progress: Progress) -> float | None:
    return progress.engine_samples[-1][1] if progress.engine_samples else None


def _actor(actor: Mapping[str, Any]) -> dict[str, Any]:
    silent = actor["silent_s"] > SILENT_S
    state = "silent" if silent else "waits" if actor["waits_for"] else "busy"
    return {
        "actor": actor["actor"],
        "role": actor["role"],
        "state": state,
        "for": actor["waits_for"],
        "seconds": actor["silent_s"] if silent else actor["waits_s"],
        "refused": actor["refused"],
    }


def _wait(wait: Mapping[str, Any]) -> dict[str, Any]:
    return {"who": wait["who"], "for": wait["for_whom"], "seconds": wait["seconds"], "targets": wait.get("targets", [])}


def _engines(run: FollowedRun, known: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Those that the bus knows; of a run that is over, those that its router reported of."""
    latest, figures_of = run.progress.latest, run.progress.engine_figures
    names = set(known) or {name.removeprefix(ENGINE_BUSY) for name in latest if name.startswith(ENGINE_BUSY)}
    return [
        {
            "name": name,
            "version": known.get(name, {}).get("version"),
            "state": ("leaving, " if known.get(name, {}).get("leaving") else "") + known.get(name, {}).get("state", ""),
            "behind": known.get(name, {}).get("lag"),
            **{field: getattr(figures_of.get(name), field, None) for field in EngineFigures.__struct_fields__},
            "why": event(run.engine_events[name]) if name in run.engine_events else None,
        }
        for name in sorted(names)
    ]


def event(line: EventLine) -> dict[str, Any]:
    """An event as a line for a reader."""
    text = " ".join(f"{key}={value}" for key, value in line.data.items() if key not in _HIDDEN)
    text = " ".join(text.split())
    return {
        "time": line.time,
        "actor": line.actor,
        "kind": line.kind,
        "text": text if len(text) <= TEXT else text[: TEXT - 1] + "…",
    }
