"""When a run stands still, and which of its actors is silent. It is told what is seen, and asked every moment.

Promises: nothing moved for ``run.watchdog_s`` is said once, again after twice that time, and so on, with who waits for whom
and the culprit; so is that it moves again; whom an actor waits for is asked of a heartbeat of after the last move, so that
it does not matter whose heartbeat comes first; what takes long while a process starts is no stall, nor is a Redis that loads
its data; nobody is called silent because of a Redis, or a supervisor, that was away meanwhile; a node whose actors fall silent
at once, while others speak, is told once, and that it speaks again; who has no place for ``run.watchdog_s`` is told once, also
while the others get on. No I/O with the bus: a Redis that hangs does not hold it up.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from actors.runtime.spec import ActorId
from bus.messages import Heartbeat, Metrics
from miles_async.config.schema import RunConfig
from miles_async.evaluation import settings as evaluation
from miles_async.monitor.diagnosis import (
    DEAD,
    LONG_S,
    MOVING,
    NO_PLACE,
    REDIS_SILENT_S,
    STOPPED,
    Process,
    Redis,
    Sight,
    diagnose,
    role_of,
    waits,
)
from miles_async.monitor.nodes import Sign, SilentNode, silent_nodes
from miles_async.monitor.sight import process_of

NODE_BEATS = 5  # heartbeats that all actors of a node owe before it is called silent
BEGINS_S = 30.0  # a process that has a place has begun by then, also on a busy machine
LATE_S = 2.0  # how late a heartbeat is on a busy machine
AWAY_S = 3.0  # a supervisor that was not asked for so long was stopped itself: it has seen nothing


@dataclass
class _Life:
    """One life of an actor: when it was seen first, and when it was heard of last."""

    actor: ActorId
    since: float
    heard: float
    last: float = 0.0  # the time in its last heartbeat; 0: it has not sent one
    node: str = ""
    placeless: bool = False  # it was told that it has no place
    spoke: float = 0.0  # as ``heard``, which is also set where nothing could be heard


class Watchdog:
    """``running`` gives the actors that have not ended, ``look`` what is seen of them; ``redis_pid`` a server of our own;
    ``redis_loads``: it reads its data back, and gets on. Times are those of ``clock``, in seconds."""

    def __init__(
        self,
        config: RunConfig,
        running: Callable[[], Iterable[ActorId]],
        look: Callable[[], Mapping[str, Process]],
        redis_pid: Callable[[], int | None],
        *,
        redis_loads: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = time.monotonic,
        process: Callable[[int], Process] = process_of,
    ) -> None:
        self.config, self.clock = config, clock
        self._running, self._look = running, look
        self._redis_pid, self._process, self._redis_loads = redis_pid, process, redis_loads
        self.verdict = ""  # why the run has to end, with run.watchdog_exit
        self._asked_at: float | None = None  # since when Redis owes an answer
        self._beats: Sequence[Heartbeat] = ()
        self._refusal = ""
        self._lives: dict[str, _Life] = {}
        self._silent: dict[str, SilentNode] = {}  # nodes, as they were told
        self._counts: dict[str, int] = {}
        self._waiting: set[tuple[str, ...]] = set()
        self._stepped = False  # this launch has trained
        self._moved_at = self._ticked_at = clock()
        self._rests = False  # nothing has to move any more
        self._stalled_at: float | None = None  # the last move before the stall that was told
        self._tell_after_s = config.run.watchdog_s
        self._long_s = min(LONG_S, config.run.watchdog_s / 2)

    # what is seen

    def asked(self) -> None:
        """Redis was asked."""
        if self._asked_at is None:
            self._asked_at = self.clock()

    def heard(self, beats: Sequence[Heartbeat], counts: Mapping[str, int], refusal: str) -> None:
        """Redis answered. ``refusal``: why it takes nothing new."""
        now, running = self.clock(), {actor.name: actor for actor in self._running()}
        was_away = self.redis_silent_s() >= REDIS_SILENT_S
        self._asked_at, self._refusal, self._beats = None, refusal, beats
        sent = {beat.actor: beat for beat in beats if running.get(beat.actor) == ActorId(beat.actor, beat.incarnation)}
        for name in self._lives.keys() - running.keys():
            del self._lives[name]
        for name, actor in running.items():
            life = self._lives.get(name)
            if life is None or life.actor != actor:
                life = self._lives[name] = _Life(actor, now, now)
            if name in sent and sent[name].time != life.last:
                life.heard = life.spoke = now
                life.last, life.node = sent[name].time, sent[name].node
            if was_away or refusal:
                life.heard = now
        waiting = {
            (beat.actor, *(wait.sentence for wait in beat.waits[:1]))
            for beat in sent.values()
            if beat.role not in ("router", *evaluation.ROLES)
        }
        if counts != self._counts or (not self._stepped and waiting != self._waiting):  # a start has no other news
            self._moved_at = now
        self._counts, self._waiting = dict(counts), waiting

    def metrics(self, metrics: Metrics) -> None:
        """An actor's numbers: some of them mean that something moved."""
        self._stepped = self._stepped or "raw_reward" in metrics.values
        if moves(metrics):
            self._moved_at = self.clock()

    def rest(self) -> None:
        """The training is over."""
        self._rests = True

    # what follows

    def tick(self) -> list[tuple[str, dict[str, Any]]]:
        """Kinds and data of the events that are due."""
        now = self.clock()
        if now - self._ticked_at > AWAY_S or self._redis_loads():
            self._forgive(now)
        self._ticked_at = now
        events = self._nodes_that_change(now) + self._without_a_place(now)
        if self.verdict or self._rests:  # the run is being ended
            return events
        if self._stalled_at is not None and self._moved_at > self._stalled_at:
            events.append(("moving_again", {"seconds": round(self._moved_at - self._stalled_at)}))
            self._stalled_at, self._tell_after_s = None, self.config.run.watchdog_s
        quiet = now - self._moved_at
        if quiet < self._tell_after_s:
            return events
        if self._stalled_at is None and self._starts(now):
            self._moved_at = now
            return events
        if quiet < self._tell_after_s + self._long_s and self._last_words_are_old():
            return events
        sight = self.sight()
        seconds = round(quiet)
        culprit = diagnose(sight) or "no culprit is known"
        found = {"seconds": seconds, "diagnosis": culprit, "waits": [wait.as_dict() for wait in waits(sight)]}
        events.append(("stalled", found))
        self._stalled_at, self._tell_after_s = self._moved_at, 2 * self._tell_after_s
        if self.config.run.watchdog_exit:
            self.verdict = f"nothing moved for {seconds} s: {culprit}"
        return events

    def silent_nodes(self) -> list[SilentNode]:
        """The nodes that are suspected to be dead, or cut off; none while Redis owes an answer."""
        if self.redis_silent_s() >= 1.0 or self._refusal:
            return []
        signs = [Sign(name, life.node, life.heard) for name, life in self._lives.items()]
        beat_s = self.config.monitor.heartbeat_s
        return silent_nodes(signs, self.clock(), silent_s=NODE_BEATS * beat_s + LATE_S, together_s=beat_s + LATE_S)

    def _nodes_that_change(self, now: float) -> list[tuple[str, dict[str, Any]]]:
        events: list[tuple[str, dict[str, Any]]] = []
        for silent in self.silent_nodes():
            if silent.node not in self._silent:
                self._silent[silent.node] = silent
                about = {"seconds": round(now - silent.since, 1), "actors": silent.actors, "lone": silent.lone}
                events.append(("node_silent", {"node": silent.node, **about}))
        for life in self._lives.values():
            if life.node in self._silent and life.spoke > self._silent[life.node].since:
                del self._silent[life.node]
                events.append(("node_speaks", {"node": life.node}))
        return events

    def _without_a_place(self, now: float) -> list[tuple[str, dict[str, Any]]]:
        limit = max(self.config.run.watchdog_s, BEGINS_S)
        unheard = [life for life in self._lives.values() if not life.last and now - life.since >= limit]
        new = [life for life in unheard if not life.placeless]
        seen = self._look() if new else {}
        events: list[tuple[str, dict[str, Any]]] = []
        for life in new:
            process = seen.get(life.actor.name, Process())
            if process.state == NO_PLACE:
                life.placeless = True
                about = {"seconds": round(now - life.since), "why": process.where}
                events.append(("no_place", {"actor": life.actor.name, **about}))
        return events

    def overdue(self) -> dict[ActorId, float]:
        """Actors silent for ``run.heartbeat_timeout_s``, and for how long: to be killed. Told once."""
        now = self.clock()
        if self.redis_silent_s() >= 1.0 or self._refusal:
            return {}
        limit, start_s = self.config.run.heartbeat_timeout_s, self.config.engine.start_timeout_s
        found: dict[ActorId, float] = {}
        for name, life in self._lives.items():
            silent = now - life.heard
            # a process that loads a model in its event loop cannot answer, unless it is stopped
            if silent >= limit and (now - life.since > start_s or self._is(name, *STOPPED)):
                found[life.actor] = silent
                life.heard = now
        return found

    def redis_silent_s(self) -> float:
        return self.clock() - self._asked_at if self._asked_at is not None else 0.0

    def sight(self) -> Sight:
        """What the diagnosis looks at, now."""
        now, redis_pid = self.clock(), self._redis_pid()
        redis = self._process(redis_pid) if redis_pid else Process()
        return Sight(
            now=time.time(),
            beats=self._beats,
            processes=self._look(),
            silent={name: now - life.heard for name, life in self._lives.items()},
            redis=Redis(redis_pid, redis.state, self.redis_silent_s(), self._refusal),
            long_s=self._long_s,
        )

    def _starts(self, now: float) -> bool:
        """Somebody has not been heard of yet, or builds a model, within ``engine.start_timeout_s``; is not stopped, and has a
        place, or may have one in a moment."""
        limit = self.config.engine.start_timeout_s
        beats = {beat.actor: beat for beat in self._beats}
        for name in [actor.name for actor in self._running()]:
            if role_of(name) in evaluation.ROLES:
                continue
            life = self._lives.get(name)
            if life is None or not life.last:
                starts = life is None or now - life.since < limit
            else:
                named = beats[name].waits if name in beats else ()
                builds = any(wait.kind.is_start and time.time() - wait.since < limit for wait in named)
                starts = builds and now - life.heard < LONG_S
            if self._is(name, NO_PLACE):
                starts = life is None or now - life.since < BEGINS_S
            if starts and not self._is(name, *STOPPED) and self.redis_silent_s() < REDIS_SILENT_S:
                return True
        return False

    def _last_words_are_old(self) -> bool:
        """Whether an actor that is not stopped has said nothing since it has to know whom it waits for."""
        if self.redis_silent_s() >= REDIS_SILENT_S:
            return False
        settled_at = self._moved_at + self._long_s
        old = [name for name, life in self._lives.items() if life.heard < settled_at]
        awaited = [name for name in old if role_of(name) not in evaluation.ROLES]
        seen = self._look() if awaited else {}
        return any(name in seen and seen[name].state not in (*STOPPED, *DEAD, NO_PLACE) for name in awaited)

    def _is(self, name: str, *states: str) -> bool:
        return self._look().get(name, Process()).state in states

    def _forgive(self, now: float) -> None:
        """We were away, or Redis was: what happened meanwhile is not known."""
        self._moved_at = max(self._moved_at, now) if self._stalled_at is None else self._moved_at
        for life in self._lives.values():
            life.heard = now
        if self._asked_at is not None:
            self._asked_at = now


def moves(metrics: Metrics) -> bool:
    """Whether they tell of a step, of weights that arrived in an engine, or of an answer or token of one."""
    values = metrics.values
    return "raw_reward" in values or values.get("weights/bytes", 0) > 0 or values.get(MOVING, 0) > 0
