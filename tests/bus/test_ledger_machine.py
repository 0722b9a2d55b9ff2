"""The ledger as a state machine: no interleaving of its operations and no death between two commands loses a group.

Promises: clients make every operation of the ledger, advance one Redis command at a time in any order, get an answer late,
twice or never, try again or die and come back under a new lease; Redis goes back to what it held before (a power cut), and a
learner with a checkpoint from then or later comes back to it. After every command that may write, what Redis holds is whole
(``ledger_view.check``), what the script answered and recorded is what the model expects (``ledger_story``), and at the end
all that is open can be generated, trained and forgotten. On every version of Redis that this machine has.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import redis.exceptions
from gated_bus import GatedServer, Operation, servers
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, precondition, rule, run_state_machine_as_test
from ledger_clients import LedgerClients
from ledger_story import OPEN, Story, prompt_of
from ledger_view import View, check, ticket, ticket_of

from bus.codec import decode
from bus.ledger_leases import next_attempt
from bus.messages import Batch, Group
from bus.quarantine import Quarantine
from bus.server import RedisServer

EXAMPLES = 600  # of all servers together
LIMIT = 6  # open groups
ATTEMPTS = 3
WORKERS = st.sampled_from("abc")
INDEX = st.integers(0, 7)
# how many commands at once: mostly the whole operation, so that groups come far
COMMANDS = st.sampled_from([99, 99, 99, 0, 1, 1, 2])
LOST = redis.exceptions.ConnectionError("the connection is lost")


def group(gid: str) -> Group:
    return Group(group_id=gid, prompt_tokens=b"", samples=(), worker="w", started=0.0, finished=0.0)


class LedgerMachine(LedgerClients):
    def __init__(self, server: GatedServer) -> None:
        super().__init__(server)
        self.saved: tuple[Any, Story] | None = None  # what Redis may go back to
        self.learnt: dict[int, tuple[str, ...]] = {}  # by step, what a checkpoint would name

    @initialize(
        dealt=st.integers(1, 4),
        claimed=st.integers(0, 3),
        taken_over=st.booleans(),
        published=st.integers(0, 2),
        batched=st.integers(0, 1),
    )
    def start(self, dealt: int, claimed: int, taken_over: bool, published: int, batched: int) -> None:
        """Something to work on, also where Hypothesis leaves some of the rules out."""
        self.admit(dealt, 99)
        if claimed:
            self.next_tickets("a", claimed, 60_000, 99)
        if taken_over:
            self.restart("a", False, 99)
        published = min(published, claimed, dealt)
        for _ in range(published):
            self.publish(0, 99)
        if batched and published:
            self.batch(batched, 99)

    # operations

    few = precondition(lambda self: len(self.running) < 4)

    @few
    @rule(n=st.integers(1, 3), commands=COMMANDS, fenced=st.booleans())
    def admit(self, n: int, commands: int, fenced: bool = False) -> None:
        start, step = self.story.position, self.story.last_step if fenced else None
        tickets = [ticket(start + i) for i in range(n)]
        self.begin(lambda: self.ledger.admit(tickets, limit=LIMIT, position=start, step=step), commands)

    @few
    @precondition(lambda self: self.story.again)
    @rule(n=st.integers(1, 3), limit=st.sampled_from([LIMIT, LIMIT, 1]), commands=COMMANDS)
    def admit_again(self, n: int, limit: int, commands: int) -> None:
        tickets, step = [ticket_of(gid) for gid in self.story.again[:n]], self.story.last_step
        self.begin(lambda: self.ledger.admit_again(tickets, limit=limit, step=step), commands)

    @few
    @rule(worker=WORKERS, count=st.integers(1, 3), lease_ms=st.sampled_from([60_000, 60_000, 0]), commands=COMMANDS)
    def next_tickets(self, worker: str, count: int, lease_ms: int, commands: int) -> None:
        lease = self.lease(worker)
        self.begin(lambda: self.ledger.next_tickets(worker, lease, count, lease_ms, ATTEMPTS), commands, lease)

    @few
    @rule(worker=WORKERS, dead=st.booleans(), commands=COMMANDS)
    def restart(self, worker: str, dead: bool, commands: int) -> None:
        """The worker's next life; its former one is dead, or only thought to be."""
        if dead:
            for operation in [o for o in self.running if o.owner == self.lease(worker)]:
                operation.die()
                self.running.remove(operation)
        self.life[worker] += 1
        lease = self.lease(worker)
        self.begin(lambda: self.ledger.own_tickets(worker, lease, ATTEMPTS), commands, lease)

    @few
    @precondition(lambda self: self.held)
    @rule(which=INDEX, commands=COMMANDS)
    def publish(self, which: int, commands: int) -> None:
        gid, lease = self.holder(which)
        self.begin(lambda: self.ledger.publish(group(gid), lease, 0.0), commands, lease)

    @few
    @precondition(lambda self: self.held)
    @rule(which=INDEX, commands=COMMANDS)
    def fail(self, which: int, commands: int) -> None:
        gid, lease = self.holder(which)
        self.begin(
            lambda: self.ledger.fail(gid, lease, "reward_error", "no", attempts=ATTEMPTS, lengths=[1]), commands, lease
        )

    @few
    @precondition(lambda self: self.held)
    @rule(which=INDEX, again=st.booleans(), commands=COMMANDS)
    def discard(self, which: int, again: bool, commands: int) -> None:
        gid, lease = self.holder(which)
        discard = self.ledger.discard
        self.begin(lambda: discard(gid, lease, "zero_std", "no", lengths=[1], again=again), commands, lease)

    @few
    @precondition(lambda self: self.held)
    @rule(which=INDEX, commands=COMMANDS)
    def begin_last(self, which: int, commands: int) -> None:
        gid, lease = self.holder(which)
        self.begin(lambda: self.ledger.begin_last(gid, lease), commands, lease)

    @few
    @precondition(lambda self: self.story.lease)
    @rule(worker=WORKERS, ago=st.integers(0, 1), why=st.sampled_from(["", "the worker died"]), commands=COMMANDS)
    def release(self, worker: str, ago: int, why: str, commands: int) -> None:
        lease = f"{worker}/{max(1, self.life[worker] - ago)}"
        self.begin(lambda: self.ledger.release(lease, why), commands)

    @few
    @precondition(lambda self: self.story.lease)
    @rule(commands=COMMANDS)
    def release_all(self, commands: int) -> None:
        self.begin(self.ledger.release, commands)

    @few
    @precondition(lambda self: self.story.place)
    @rule(which=INDEX, again=st.booleans(), commands=COMMANDS)
    def drop(self, which: int, again: bool, commands: int) -> None:
        choice = [*self.story.in_place("wfrb"), next(reversed(self.story.place))]
        gid = choice[which % len(choice)]
        self.begin(lambda: self.ledger.drop(gid, "stale", again=again), commands)

    async def _select(self, n: int, surplus: int = 0, ticks: bool = True, more: bool = False) -> Batch | None:
        """As the learner does it: look, choose, record. ``more``: rather for the last step, where its weights are held."""
        last = (await self.ledger.steps())[0]
        held = await self.ledger.recorded_batch(last) if more else None
        step = last + 1
        now = await self.ledger.open_groups()
        state = dict(zip(now.order, now.states, strict=True))
        ready, _ = await self.ledger.ready_groups("0", block_ms=0)
        chosen = [r for r in ready if state.get(r.group_id) == "r"][:n]
        if not chosen:
            return None
        if held is not None and not held.ticks:
            return await self.ledger.extend(held, chosen, ticks=ticks)
        return await self.ledger.batch(step, chosen, surplus=surplus, ticks=ticks)

    @few
    @precondition(lambda self: "r" in self.story.place.values())
    @rule(n=st.integers(1, 3), surplus=st.sampled_from([0, 0, 1, 2]), commands=st.sampled_from([99, 99, 99, 0, 2, 3]))
    def batch(self, n: int, commands: int, surplus: int = 0) -> None:
        self.begin(lambda: self._select(n, surplus), commands)

    @few
    @precondition(lambda self: "r" in self.story.place.values())
    @rule(n=st.integers(1, 2), ticks=st.booleans(), commands=st.sampled_from([99, 99, 99, 0, 2, 3]))
    def hold(self, n: int, ticks: bool, commands: int) -> None:
        """A step whose weights are held, or a further part of it."""
        self.begin(lambda: self._select(n, 0, ticks, more=True), commands)

    @few
    @precondition(lambda self: self.story.last_step > self.story.committed)
    @rule(offset=st.sampled_from([0, 0, -1, 1]), kept=st.sampled_from([None, 0, 1, 2]), commands=COMMANDS)
    def commit(self, offset: int, kept: int | None, commands: int) -> None:
        """``kept``: so many of its steps can be trained again afterwards."""
        step = self.story.last_step + offset
        forget = None if kept is None else step - kept
        self.begin(lambda: self.ledger.commit(step, forget=forget), commands)

    @few
    @precondition(lambda self: self.story.last_step > self.story.forgotten)
    @rule(which=INDEX, offset=st.sampled_from([0, 0, 0, 1]), commands=COMMANDS)
    def quarantine(self, which: int, offset: int, commands: int) -> None:
        """A recorded group; now and then under a step that is not its own."""
        story = self.story
        choice = [
            (gid, step) for step in range(story.forgotten + 1, story.last_step + 1) for gid in story.batches[step]
        ]
        if choice:
            gid, step = choice[which % len(choice)]
            put = Quarantine(self.ledger).put
            self.begin(lambda: put(step + offset, gid, "invalid_reward", "no"), commands)

    @precondition(lambda self: self.story.position)
    @rule(
        steps=st.integers(1, 2),
        opened=st.integers(0, 2),
        undealt=st.integers(0, 1),
        waiting=st.integers(0, 1),
        later=st.booleans(),
        again=st.booleans(),
    )
    def reconcile(self, steps: int, opened: int, undealt: int, waiting: int, later: bool, again: bool) -> None:
        """A learner with a checkpoint that is ahead; its commands may be sent twice, but nobody comes in between.

        ``later``: the prompts were trained at their next attempt.
        """
        last = self.story.last_step
        ids = [*self.story.in_place(OPEN)[:opened], *self.story.again[:waiting]]
        ids += [f"0-{self.story.position + i}-0" for i in range(undealt)]
        if not ids or set(ids) & self.story.ahead:
            return
        ids = [next_attempt(gid) for gid in ids] if later else ids
        trained = {last + 1 + i: tuple(ids[i::steps]) for i in range(steps)}
        known = {last: self.story.trained_in(last)} if last in self.story.batches else {}  # its weights may be held
        self._resume(last + steps, trained | known, again)

    def _resume(self, step: int, trained: dict[int, tuple[str, ...]], again: bool = False) -> None:
        """The learner begins with a checkpoint of ``step``."""
        operation = Operation(lambda: self.ledger.reconcile(step, trained))
        while operation.pending is not None:
            answer = self.execute(operation)
            operation.answer(self.execute(operation) if again else answer)
        self.ended(operation)
        assert operation.error is None, operation.error
        self.learnt = {s: ids for s, ids in {**self.learnt, **trained}.items() if s <= step}

    @rule()
    def save(self) -> None:
        self.saved = self.server.save(), deepcopy(self.story)

    @precondition(lambda self: self.saved)
    @rule(back=st.sampled_from([0, 0, 1, 2]))
    def lose_the_end(self, back: int) -> None:
        """A power cut: everybody is dead, the ledger is as it was once, and the newest checkpoint of any step since."""
        assert self.saved is not None
        (held, then), lost = self.saved, self.story
        newest = self.view.batch.get(lost.last_step)
        whole = lost.last_step - (newest is not None and not decode(newest, Batch).ticks)
        step = max(whole - back, lost.forgotten, then.forgotten)
        trained = self.learnt | {s: lost.trained_in(s) for s in lost.batches}
        trained = {s: ids for s, ids in trained.items() if s <= step}
        for operation in self.running:
            operation.die()
        self.running.clear()
        self.life = {worker: life + 1 for worker, life in self.life.items()}
        self.server.go_back(held)
        self.story = deepcopy(then)
        self.view = View(self.server.redis, self.ledger.bus.prefix)
        check(self.view, self.story)
        wanted = {prompt_of(gid) for gid in [*then.in_place(OPEN), *then.again]}
        self._resume(step, trained)
        found = {gid for gid, place in self.story.place.items() if place == "trained"}
        assert found >= {gid for ids in trained.values() for gid in ids}
        still = {*map(prompt_of, [*found, *self.story.in_place(OPEN), *self.story.again])}
        assert wanted <= still, "a prompt is lost"

    async def _deal_again(self) -> None:
        tickets = [ticket_of(gid) for gid in self.story.again]
        await self.ledger.admit_again(tickets, limit=10**6, step=self.story.last_step)

    # what may happen between two commands

    some = precondition(lambda self: self.running)

    @some
    @rule(which=INDEX, commands=st.sampled_from([1, 2, 99]))
    def go_on(self, which: int, commands: int) -> None:
        self.go(self.running[which % len(self.running)], commands)

    @some
    @rule(which=INDEX, commands=st.sampled_from([0, 1, 99]))
    def lose_the_answer(self, which: int, commands: int) -> None:
        """The command is executed; the client sends it again, at once or much later."""
        operation = self.running[which % len(self.running)]
        self.execute(operation)
        self.go(operation, commands)

    @some
    @rule(which=INDEX, executed=st.booleans(), commands=st.sampled_from([0, 1, 99]))
    def try_again(self, which: int, executed: bool, commands: int) -> None:
        """The connection breaks, and the client makes the whole operation again."""
        operation = self.running[which % len(self.running)]
        if executed:
            self.execute(operation)
        operation.answer(LOST)
        assert operation.error is LOST
        operation.begin()
        self.go(operation, commands)

    @some
    @rule(which=INDEX, executed=st.booleans())
    def die(self, which: int, executed: bool) -> None:
        """The client ends before or after its next command was executed; a worker comes back under a new lease."""
        operation = self.running[which % len(self.running)]
        if executed:
            self.execute(operation)
        operation.die()
        self.running.remove(operation)
        if operation.owner == self.lease(worker := operation.owner.partition("/")[0] or "z"):
            self.restart(worker, dead=True, commands=99)

    def teardown(self) -> None:
        """Nothing is wedged: all that is open can be generated, trained and committed by whoever is left."""
        for operation in self.running:
            operation.die()
        if not self.whole:
            return
        self.running.clear()
        self.held.clear()
        self.begin(self._deal_again, 10**6)
        assert not self.story.again
        while len(self.held) < len(self.story.in_place("wf")):
            before = len(self.held)
            self.begin(lambda: self.ledger.next_tickets("z", "z/1", 100, 0, 10**6), 10**6, "z/1")
            assert len(self.held) > before, "open groups that no worker gets"
        for gid, lease in self.held:
            self.begin(lambda gid=gid, lease=lease: self.ledger.publish(group(gid), lease, 0.0), 99)
        self.begin(lambda: self._select(10**6), 99)
        self.begin(lambda: self.ledger.commit(self.story.last_step), 99)
        assert set(self.story.place.values()) <= {"trained", "dropped"}
        assert not self.view.tickets and not self.view.samples


SERVERS = servers()


@pytest.fixture(params=list(SERVERS))
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[GatedServer]:
    """A server of its own, since the machine looks at all keys and empties it after each example."""
    own = RedisServer(tmp_path, program=SERVERS[request.param], flags={"appendonly": "no"})
    gated = GatedServer(own.start())
    yield gated
    gated.close()
    own.stop()


def test_no_interleaving_and_no_death_between_two_commands_loses_a_group(server: GatedServer) -> None:
    run_state_machine_as_test(
        lambda: LedgerMachine(server),
        settings=settings(
            max_examples=-(-EXAMPLES // len(SERVERS)),
            stateful_step_count=35,
            deadline=None,
            print_blob=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
