"""What every actor is given, and all that it knows of the run: the bus, the configuration, when to stop.

An actor is a class with ``role``, ``__init__(self, ctx)`` and ``async def run(self)``, which returns when its work is done
or soon after ``ctx.stop`` is set. Promises: the actor's heartbeat tells whom it waits for and since when; a stop asked
for over the bus or by SIGTERM sets ``ctx.stop``; one that is replaced, or has lost the bus for longer than its lease, ends
itself (``lease.py``); nothing here knows the supervisor.
"""

from __future__ import annotations

import asyncio
import logging
import re
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec

from actors.runtime.lease import ANSWER_S, Lease
from actors.runtime.plan import engine_names
from actors.runtime.spec import ActorSpec
from actors.runtime.tasks import end
from bus import Bus, EngineState, Roster, connect
from bus.fence import LIVES, Life, Lookout
from bus.lives import begin_life
from bus.messages import Control, Event, Heartbeat, Metrics, Wait
from bus.waits import WaitKind
from miles_async.config.schema import ConfigError
from miles_async.disk.fence import clear_fence, set_fence
from miles_async.http.refusals import Refusals

COMMANDS = ("stop", "finish")
OF_THE_LEARNER = ("learner_stop", "snapshot_again")  # which its ranks read themselves
# what a restart would not change: a wrong key, file or path
FATAL = (ValueError, ImportError)

CONNECT_S = 60.0  # one that reads a large value back answers nothing meanwhile
MAX_WAITS = 20  # that a heartbeat names
MAX_NODE = 100  # characters


def cause_of(error: BaseException) -> tuple[str, bool]:
    """What an actor died of, in a line, and whether a restart would only meet it again. A task group's name says nothing: it is
    the error in it that counts, and of several the one that a restart would not change."""
    leaves = [error]
    while isinstance(group := leaves[0], BaseExceptionGroup):
        leaves[:1] = group.exceptions
        leaves.sort(key=lambda one: not isinstance(one, ConfigError | BaseExceptionGroup))
    cause = f"{type(leaves[0]).__name__}: {leaves[0]}".split("\n")[0]
    return cause, isinstance(error, FATAL) or isinstance(leaves[0], ConfigError)


class Actor(Protocol):
    """One long-running role."""

    role: str

    def __init__(self, ctx: ActorContext) -> None: ...

    async def run(self) -> None: ...


@dataclass(eq=False)
class Waiting:
    """One wait under way."""

    wait: Wait

    def begin_again(self) -> None:
        """Whom it is for shows signs of life: it has lasted no longer than since now."""
        self.wait = msgspec.structs.replace(self.wait, since=time.time())


def wait_for(kind: WaitKind, targets: Iterable[str] = (), *, since: float | None = None, **about: int | str) -> Wait:
    """A wait that began at ``since``, or begins now. ``targets``: the actors that it is for, where they are known;
    ``about``: what the sentence of its kind has places for."""
    return Wait(kind=kind, since=time.time() if since is None else since, targets=tuple(targets), about=about)


class ActorContext:
    """The surroundings of one actor. Make it with :func:`open_context`."""

    def __init__(self, spec: ActorSpec, bus: Bus, where: str = "", node: str = "") -> None:
        """``where``: the place it runs in, as its placement names it; ``node``: the machine that this is on."""
        self.spec, self.where, self.node = spec, where, node
        self.bus = bus
        self.name, self.role, self.index = spec.name, spec.role, spec.index
        self.config, self.run_dir, self.model_path = spec.config, spec.run_dir, spec.model_path
        self.incarnation = spec.incarnation
        self.roster = Roster(engine_names(spec.config))  # as it was read last
        self.refusals = Refusals()  # of an actor that answers HTTP, by status
        self.stop = asyncio.Event()
        self.finish = asyncio.Event()  # nothing more is coming: to do what is left, and end
        self.log = logging.getLogger(spec.name)
        self._waits: set[Waiting] = set()

    async def event(self, kind: str, **data: Any) -> None:
        """Record something that happened once."""
        self.log.info("%s %s", kind, data)
        await self.bus.publish("events", Event(actor=self.name, kind=kind, time=time.time(), data=data))

    async def read_roster(self) -> Roster:
        """The engines that the run has now."""
        self.roster = await self.bus.roster() or self.roster
        return self.roster

    async def has_engine(self, name: str) -> bool:
        """Whether the run has it: what is said of another one is refused. Before it says no, it asks whether one was added."""
        return name in self.roster.engines or name in (await self.read_roster()).engines

    async def engine_leaves(self, name: str) -> bool:
        """Whether it gets no new work. Before it says yes, it asks whether one of that name was added again."""
        return name in self.roster.leaving and name in (await self.read_roster()).leaving

    async def engine_states(self) -> dict[str, EngineState]:
        """The ledger of versions, of the engines that the run has now."""
        self.roster, lines = await self.bus.fleet(self.roster)
        return lines

    async def metrics(self, step: int, values: dict[str, float]) -> None:
        """Publish numbers at ``step`` (the learner's version)."""
        await self.bus.publish("metrics", Metrics(actor=self.name, step=step, time=time.time(), values=values))

    def waiting(
        self, kind: WaitKind, targets: Iterable[str] = (), **about: int | str
    ) -> AbstractContextManager[Waiting]:
        """While inside, the heartbeat says that this actor waits, as of :func:`wait_for`."""
        return self.saying(wait_for(kind, targets, since=None, **about))

    @contextmanager
    def saying(self, wait: Wait) -> Iterator[Waiting]:
        """While inside, the heartbeat says ``wait``."""
        waiting = Waiting(wait)
        self._waits.add(waiting)
        try:
            yield waiting
        finally:
            self._waits.discard(waiting)

    def heartbeat(self) -> Heartbeat:
        """Whom this actor waits for longest, and everybody else that it waits for."""
        full = [Wait(kind=WaitKind.ROOM, since=trouble.since) for trouble in self.bus.redis.troubles.values()]
        waits: dict[str, Wait] = {}  # of several for the same thing the one that began first
        for wait in sorted([waiting.wait for waiting in self._waits] + full, key=lambda wait: wait.since):
            waits.setdefault(wait.sentence, wait)
        return Heartbeat(
            actor=self.name,
            role=self.role,
            incarnation=self.incarnation,
            where=self.where,
            node=self.node,
            time=time.time(),
            waits=tuple(waits.values())[:MAX_WAITS],
            refused=self.bus.refused.total() + self.refusals.total(),
        )

    async def beat(self, reached: Callable[[], None] = lambda: None) -> None:
        """Send heartbeats until cancelled, and how much was refused whenever that has changed. ``reached`` hears of each."""
        reported: dict[str, float] = {}
        while True:
            await self.bus.beat(self.heartbeat())
            reached()
            counts = {**self.bus.refused, **{f"http {status}": count for status, count in self.refusals.items()}}
            refused = {f"refused/{self.name}/{what}": float(count) for what, count in counts.items()}
            if refused != reported:
                reported = refused
                await self.metrics(0, refused)
            await asyncio.sleep(self.config.monitor.heartbeat_s)

    async def obey(self) -> None:
        """Set ``stop`` when the bus says so; until cancelled."""
        async for control in self.bus.follow("control", Control, stop=self.stop):
            if control.command in OF_THE_LEARNER:
                continue
            if control.command not in COMMANDS:
                self.bus.refuse("control", control.command[:100], ValueError("no such command"))
            elif self._is_meant(control):
                self.log.info("asked to %s: %s", control.command, control.reason)
                (self.stop if control.command == "stop" else self.finish).set()

    def _is_meant(self, control: Control) -> bool:
        if control.process is not None:
            return control.process == (self.name, self.incarnation)
        return not control.roles or self.role in control.roles


async def run_actor(
    spec: ActorSpec, make: Callable[[ActorContext], Actor], where: str = "", node: str | None = None
) -> None:
    """Connect, make the actor, and run it to its end beside its heartbeat, which says ``where`` that is, and on which ``node``
    (None: the name of this machine). What it writes, on the bus or a disk, is fenced by its life.

    Raises what the actor or its bus raises.
    """
    bus = await connect(spec.bus_url, spec.run_id, deadline_s=CONNECT_S)
    ctx = ActorContext(spec, bus, where, node_name() if node is None else node)
    lease = _lease(ctx)
    asyncio.get_running_loop().add_signal_handler(15, ctx.stop.set)

    async def live() -> None:
        await begin_life(bus)
        async with spec.site.entered(spec.name, spec.config, spec.run_dir, bus) as ctx.config:
            await make(ctx).run()

    work = asyncio.create_task(live(), name=spec.name)
    helpers = [asyncio.create_task(ctx.beat(lease.reached)), asyncio.create_task(ctx.obey())]
    try:
        # "obey" ends by itself once it has set the stop; a helper that fails takes the actor with it
        pending: set[asyncio.Task[None]] = {work, *helpers}
        while work in pending:
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
    except BaseException as error:
        if not isinstance(error, asyncio.CancelledError):
            cause, fatal = cause_of(error)
            await asyncio.wait_for(ctx.event("died", cause=cause, fatal=fatal), 2.0)
        raise
    finally:
        ctx.stop.set()
        await end([work, *helpers])
        clear_fence()
        lease.close()
        await bus.close()


def _lease(ctx: ActorContext) -> Lease:
    """The lease of the actor, begun; from now on its process and its bus are of its life."""
    run, bus = ctx.config.run, ctx.bus
    bus.life = Life(ctx.name, ctx.incarnation)
    lookout = Lookout(ctx.spec.bus_url, bus.key(LIVES), bus.life, min(ANSWER_S, run.bus_lease_s / 4))
    lease = Lease(lookout, run.bus_lease_s, ctx.config.monitor.heartbeat_s)
    bus.replaced = lease.replaced
    set_fence(lease.hold, ctx.incarnation)
    lease.begin()
    return lease


def node_name() -> str:
    """Of this machine, as a heartbeat can say it."""
    return re.sub(r"[^A-Za-z0-9_.:-]", "-", socket.gethostname())[:MAX_NODE]
