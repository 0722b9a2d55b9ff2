"""Who waits for whom in a run, and whose fault it is. Pure: what was seen of the run comes in as a ``Sight``.

Promises: the culprit is one sentence that names an actor, or Redis, or the reward function, and for how long; the nearest
cause wins (a Redis that is silent before a process that is stopped, that before an actor without a place, that before one
that is silent, that before what somebody waits for); a run in which nobody waits for long has no culprit. Who waits for whom is
read from the types of the waits (``bus/waits.py``), and nothing from their sentences.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from bus.messages import Heartbeat, Wait
from bus.waits import WaitKind
from miles_async.evaluation import settings as evaluation

LONG_S = 5.0
REDIS_SILENT_S = 3.0

MOVING = "router/moving"  # the metric: how many engines gave an answer or a token since the report before
STOPPED = {"stopped": "stopped (SIGSTOP)", "tracing-stop": "stopped by a debugger"}
DEAD = {"zombie": "a zombie: it has ended", "dead": "dead", "gone": "gone: no such process"}
NO_PLACE = "no place"  # of an actor that has none yet: its ``where`` says what it asks for

# those that are at work whenever nobody says otherwise: the router tells which engine gives nothing
SELDOM_WAIT = ("engine", "router")


@dataclass(frozen=True)
class Process:
    """What is seen of an actor. ``where``: the place that it runs in, for people ("pid 123"). ``state``: as psutil has that of
    a process ("running", "stopped", ...), "gone", or "no place"."""

    where: str = ""
    state: str = "running"


@dataclass(frozen=True)
class Redis:
    """``pid``: of a server of our own. ``silent_s``: since its last answer. ``refusal``: why it takes nothing new."""

    pid: int | None = None
    state: str = "running"
    silent_s: float = 0.0
    refusal: str = ""


@dataclass(frozen=True)
class Sight:
    """What is known of a run at ``now`` (seconds since the epoch). ``silent``: actors, and for how long they are."""

    now: float
    beats: Sequence[Heartbeat] = ()
    processes: Mapping[str, Process] = field(default_factory=dict[str, Process])
    silent: Mapping[str, float] = field(default_factory=dict[str, float])
    redis: Redis = Redis()
    long_s: float = LONG_S  # a shorter wait, or silence, is nobody's fault

    @property
    def redis_is_silent(self) -> bool:
        return self.redis.silent_s >= min(REDIS_SILENT_S, self.long_s)


@dataclass(frozen=True)
class SeenWait:
    """``who`` has waited for ``seconds``. ``targets``: the other actors that it waits for; none: something outside of them."""

    who: str
    wait: Wait
    seconds: float
    targets: frozenset[str] = frozenset()

    @property
    def kind(self) -> WaitKind:
        return self.wait.kind

    @property
    def for_whom(self) -> str:
        return self.wait.sentence

    def as_dict(self) -> dict[str, Any]:
        found: dict[str, Any] = {"who": self.who, "for_whom": self.for_whom, "seconds": self.seconds}
        return found | {"kind": str(self.kind), "targets": sorted(self.targets)}


def redis_waits(names: Iterable[str], now: float, seconds: float) -> list[SeenWait]:
    """Everybody's, when it does not answer."""
    wait = Wait(kind=WaitKind.REDIS, since=now - seconds)
    return [SeenWait(name, wait, round(seconds, 1)) for name in names]


def waits(sight: Sight) -> list[SeenWait]:
    """Everybody's waits, longest first. Of an actor that does not run any more its last words do not count."""
    if sight.redis_is_silent:
        names = sorted({beat.actor for beat in sight.beats} | set(sight.processes))
        return redis_waits(names, sight.now, sight.redis.silent_s)
    found = [
        SeenWait(beat.actor, wait, round(max(0.0, sight.now - wait.since), 1), _targets(sight, beat.actor, wait))
        for beat in sight.beats
        if not _stands(sight, beat.actor)
        for wait in beat.waits
    ]
    return sorted(found, key=lambda wait: (-wait.seconds, wait.who, wait.for_whom))


def diagnose(sight: Sight) -> str:
    """The culprit in one sentence; empty if nobody has waited for long."""
    sight = _of_training(sight)
    redis = sight.redis
    if sight.redis_is_silent:
        state = STOPPED.get(redis.state) or DEAD.get(redis.state)
        return f"{_redis(redis)} has not answered for {redis.silent_s:.0f} s" + (f"; it is {state}" if state else "")
    if redis.refusal:
        return f"{_redis(redis)} refuses writes: {redis.refusal}"
    all_waits = waits(sight)
    if standing := [name for name in sorted(sight.processes) if sight.processes[name].state in STOPPED | DEAD]:
        said = [f"{_named(sight, name)} is {(STOPPED | DEAD)[sight.processes[name].state]}" for name in standing]
        return " and ".join(said) + _followers(all_waits, set(standing))
    if homeless := [name for name in sorted(sight.processes) if sight.processes[name].state == NO_PLACE]:
        said = [f"{name} has {sight.processes[name].where}" for name in homeless]
        return " and ".join(said) + _followers(all_waits, set(homeless))
    if silent := [name for name in sorted(sight.silent) if sight.silent[name] >= sight.long_s]:
        said = [f"{_named(sight, name)} has been silent for {sight.silent[name]:.0f} s" for name in silent]
        return " and ".join(said) + _followers(all_waits, set(silent))
    long = [wait for wait in all_waits if wait.seconds >= sight.long_s]
    return _leaf(long) or _busy(sight, long) or _circle(long)


def _of_training(sight: Sight) -> Sight:
    """``sight`` without the evaluation: nobody waits for it."""
    return replace(
        sight,
        beats=[beat for beat in sight.beats if beat.role not in evaluation.ROLES],
        processes={name: process for name, process in sight.processes.items() if role_of(name) not in evaluation.ROLES},
        silent={name: seconds for name, seconds in sight.silent.items() if role_of(name) not in evaluation.ROLES},
    )


def _leaf(long: Sequence[SeenWait]) -> str:
    """What is waited for and does not wait itself, as far as an actor knows: an engine, the reward function, a disk."""
    for wait in long:
        if wait.kind is WaitKind.TOKEN and wait.wait.targets:
            engine, requests = ", ".join(wait.wait.targets), wait.wait.about["requests"]
            return f"{engine}: {requests} requests in flight, no token for {wait.seconds:.0f} s"
        if wait.kind is WaitKind.REWARD:
            return f"{wait.who}: the reward function has not answered for {wait.seconds:.0f} s"
    for wait in long:
        if not wait.targets:
            followers = _followers(long, {wait.who})
            return f"{wait.who} has waited for {wait.for_whom} for {wait.seconds:.0f} s{followers}"
    return ""


def _busy(sight: Sight, long: Sequence[SeenWait]) -> str:
    """An actor that is at work, as far as it knows, while others wait for it."""
    waiting = {wait.who for wait in long}
    idle = {beat.actor for beat in sight.beats if beat.waits}
    awaited = {target for wait in long for target in wait.targets}
    busy = [n for n in awaited - waiting - idle if _role(sight, n) not in SELDOM_WAIT]
    if not busy:
        return ""
    culprit = max(sorted(busy), key=lambda name: len(_who_follows(long, {name})))
    seconds = max(w.seconds for w in long if culprit in w.targets)
    said = f"{_named(sight, culprit)} is busy and has given nothing for {seconds:.0f} s"
    return said + _followers(long, {culprit})


def _circle(long: Sequence[SeenWait]) -> str:
    """Actors that wait for each other: no one of them can go on."""
    by_actor: dict[str, SeenWait] = {}
    for wait in long:
        by_actor.setdefault(wait.who, wait)
    path: list[str] = []
    name = long[0].who if long else ""
    while name in by_actor and name not in path:
        path.append(name)
        name = min(by_actor[name].targets, key=lambda n: (n not in by_actor, n), default="")
    if name not in path:
        wait = next(iter(long), None)
        return f"{wait.who} has waited for {wait.for_whom} for {wait.seconds:.0f} s" if wait else ""
    ring = path[path.index(name) :]
    said = ", ".join(f"{n} for {by_actor[n].for_whom}" for n in ring)
    return f"{' and '.join(sorted(ring))} wait for each other ({said})"


def _targets(sight: Sight, who: str, wait: Wait) -> frozenset[str]:
    """The other actors that ``wait`` is for: those that it names, else all of its kind's roles."""
    names = {beat.actor for beat in sight.beats} | set(sight.processes)
    if wait.targets:
        return frozenset(names & set(wait.targets) - {who})
    return frozenset(name for name in names - {who} if _role(sight, name) in wait.kind.roles)


def _role(sight: Sight, name: str) -> str:
    return next((beat.role for beat in sight.beats if beat.actor == name), role_of(name))


def role_of(name: str) -> str:
    """The role of an actor of that name, unless it says otherwise itself."""
    return re.sub(r"-\d+$", "", name)


def _stands(sight: Sight, name: str) -> bool:
    process = sight.processes.get(name)
    return process is not None and process.state in STOPPED | DEAD


def _who_follows(found: Sequence[SeenWait], culprits: set[str]) -> list[str]:
    """Who waits for one of ``culprits``, or for somebody who does."""
    reached = set(culprits)
    while more := {w.who for w in found if w.who not in reached and w.targets & reached}:
        reached |= more
    return sorted(reached - culprits)


def _followers(found: Sequence[SeenWait], culprits: set[str]) -> str:
    names = _who_follows(found, culprits)
    whom = "it" if len(culprits) == 1 else "them"
    return f"; {', '.join(names)} {'wait' if len(names) > 1 else 'waits'} for {whom}" if names else ""


def _named(sight: Sight, name: str) -> str:
    process = sight.processes.get(name)
    return f"{name} ({process.where})" if process and process.where else name


def _redis(redis: Redis) -> str:
    return f"redis (pid {redis.pid})" if redis.pid else "redis"
