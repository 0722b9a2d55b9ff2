"""``miles-async scale``: asks the supervisor of a run that is alive for another number of engines or rollout workers.

Promises: what is asked is checked before anybody is asked; the supervisor's answer, or why there is none, comes within
``ANSWER_S``. The supervisor carries it out (``actors/runtime/scaler.py``): its answer says what it began.
"""

from __future__ import annotations

import asyncio
import difflib
import os
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from redis.exceptions import RedisError

from bus import Bus, NoRedisError, connect
from bus.deadline import within
from bus.fields import MAX_MEMBERS
from bus.loading import wait_not
from bus.messages import Scale, Scaled
from bus.password import without_password
from miles_async.config.schema import ConfigError
from miles_async.monitor.status import BUS_DEADLINE_S
from miles_async.runs.state import RunState, living

KEYS = ("engines", "workers")
_NUMBER = re.compile("[0-9]{1,9}")
ANSWER_S = 20.0  # a supervisor looks every half a second
AFTERWARDS = "a launch that resumes the run begins with the configuration's numbers again"


class ScaleError(ConfigError):
    """The request cannot be carried out."""


class NoAnswerError(TimeoutError):
    """The supervisor did not answer in time."""


def scale(run_dir: Path, changes: Sequence[str]) -> dict[str, Any]:
    """Ask for ``changes`` (``engines=K``, ``workers=N``); returns what the supervisor answered.

    Raises RunStateError, ScaleError (a bad request, or one that this run cannot carry out, or no run that lives), NoRedisError,
    NoAnswerError.
    """
    wanted = parse(changes)
    supervisor = living(run_dir)
    if supervisor is None:
        raise ScaleError(
            f"{run_dir}: no run is alive there; `miles-async launch` starts one with as many as it is told"
        )
    if supervisor.bus_url is None:
        raise ScaleError(f"{run_dir}: the run is only starting; ask again in a moment")
    answer = asyncio.run(_ask(supervisor, supervisor.bus_url, wanted))
    if answer.refusal:
        raise ScaleError(answer.refusal)
    return {
        "run_dir": str(run_dir),
        "engines": {"before": answer.engines[0], "now": answer.engines[1]},
        "workers": {"before": answer.workers[0], "now": answer.workers[1]},
        "starts": list(answer.starts),
        "leaves": list(answer.leaves),
        "note": AFTERWARDS,
    }


def parse(changes: Sequence[str]) -> dict[str, int]:
    """``["engines=3"]`` to ``{"engines": 3}``. Raises ScaleError naming the key, the value and what is allowed."""
    wanted: dict[str, int] = {}
    for change in changes:
        key, equals, value = change.partition("=")
        if key not in KEYS:
            near = difflib.get_close_matches(key, KEYS, 1)
            hint = f'; did you mean "{near[0]}"?' if near else ""
            raise ScaleError(f'no "{key}" can be scaled{hint} (engines=K, workers=N)')
        if not equals or not _NUMBER.fullmatch(value) or not 1 <= int(value) <= MAX_MEMBERS:
            raise ScaleError(f'{key} = "{value}": expected a whole number from 1 to {MAX_MEMBERS}, as in {key}=2')
        if key in wanted:
            raise ScaleError(f"{key} is given twice")
        wanted[key] = int(value)
    if not wanted:
        raise ScaleError("nothing to scale: expected engines=K, workers=N or both")
    return wanted


def show(found: Mapping[str, Any]) -> str:
    """``found``, as :func:`scale` returned it, for a reader."""
    lines = [f"{key:<8} {found[key]['before']} -> {found[key]['now']}" for key in KEYS]
    lines += [f"{what:<8} {', '.join(found[what])}" for what in ("starts", "leaves") if found[what]]
    return "\n".join([*lines, f"note     {found['note']}"])


async def _ask(supervisor: RunState, url: str, wanted: dict[str, int]) -> Scaled:
    bus = await connect(url, supervisor.run_id, deadline_s=BUS_DEADLINE_S, tell=wait_not)
    bus.read_only = True  # what lies on the bus is not ours to clear away
    try:
        return await within(ANSWER_S + BUS_DEADLINE_S, _answer(bus, wanted), "Redis")
    except NoAnswerError:
        raise
    except (RedisError, OSError) as error:
        raise NoRedisError(f"the bus at {without_password(url)}: {error}") from None
    finally:
        await bus.close()


async def _answer(bus: Bus, wanted: dict[str, int]) -> Scaled:
    cursor, end = await bus.last_id("control"), time.monotonic() + ANSWER_S
    request = f"scale-{os.getpid()}-{time.time_ns()}"
    await bus.publish("control", Scale(request=request, **wanted))
    while time.monotonic() < end:
        answers, cursor = await bus.read("control", Scaled, cursor, block_ms=500)
        for answer in answers:
            if answer.request == request:
                return answer
    raise NoAnswerError(
        f"the run's supervisor did not answer within {ANSWER_S:g} s: it is stopped, or the run ends (miles-async status)"
    )
