"""The clients of the state machine: what runs, one command at a time, and what is looked at after each command.

Promises: after every command that may write, Redis is whole, and the script answered and recorded what the story expects;
an operation ends with its result or with LedgerError, never with anything else.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import redis.exceptions
from gated_bus import Command, GatedServer, Operation
from hypothesis.stateful import RuleBasedStateMachine
from ledger_story import REFUSED, Expected, Story
from ledger_view import View, check

from bus import LedgerError
from bus.codec import encode
from bus.messages import Batch

READS = ("XREAD", "HGET", "HMGET")


class LedgerClients(RuleBasedStateMachine):
    def __init__(self, server: GatedServer) -> None:
        super().__init__()
        self.server, self.ledger = server, server.ledger
        server.redis.flushall()
        self.story = Story()
        self.running: list[Operation] = []
        self.life = dict.fromkeys("abcz", 1)
        self.held: list[tuple[str, str]] = []  # group and lease, as workers were told
        self.whole = True
        self.finish(Operation(self.ledger.prepare))
        self.view = View(server.redis, self.ledger.bus.prefix)

    # commands

    def look(self, command: Command, expected: Expected | None, answer: Any) -> None:
        """After a command: did it do what it must, and is everything whole?"""
        self.whole = False
        view = View(self.server.redis, self.ledger.bus.prefix, self.view.newest)
        moves = [(t.kind, sorted(t.group_ids)) for t in view.events]
        if expected is None:
            assert not moves
            assert not isinstance(answer, Exception), answer
        elif expected.answer is REFUSED:
            assert isinstance(answer, redis.exceptions.ResponseError) and not moves
        else:
            name = self.server.script(command)
            assert (answer, moves) == (expected.answer, expected.moves), f"{name} {self.server.args(command)}"
        for transition in view.events:
            self.story.fold(transition)
        self.view = view
        check(view, self.story)
        self.whole = True

    def execute(self, operation: Operation) -> Any:
        command = operation.pending
        assert command is not None
        script = self.server.script(command)
        expected = self.story.expect(script, self.server.args(command), self.view) if script else None
        answer = self.server.execute(command)
        if command.args[0] not in READS and script not in ("open", "foreign"):
            self.look(command, expected, answer)
        elif expected is not None:
            assert answer == expected.answer
        return answer

    def go(self, operation: Operation, commands: int) -> None:
        while operation.pending is not None and commands > 0:
            operation.answer(self.execute(operation))
            commands -= 1
        if operation.pending is None:
            self.ended(operation)

    def ended(self, operation: Operation) -> None:
        if operation in self.running:
            self.running.remove(operation)
        if isinstance(operation.error, Exception) and not isinstance(operation.error, LedgerError):
            raise operation.error
        if isinstance(operation.result, Batch):
            assert self.story.batched_as(encode(operation.result))
        elif isinstance(operation.result, list):
            lease = operation.owner
            self.held += [(claimed.ticket.group_id, lease) for claimed in operation.result]

    def begin(self, call: Callable[[], Any], commands: int, owner: str = "") -> None:
        operation = Operation(call, owner)
        self.running.append(operation)
        self.go(operation, commands)

    def finish(self, operation: Operation) -> Any:
        """All of it, and its result; only for what no other client disturbs."""
        while operation.pending is not None:
            operation.answer(self.server.execute(operation.pending))
        if operation.error:
            raise operation.error
        return operation.result

    def lease(self, worker: str) -> str:
        return f"{worker}/{self.life[worker]}"

    def holder(self, which: int) -> tuple[str, str]:
        """A group and a lease that it was once claimed under: rather a valid one, or one of a group taken over."""
        held = dict.fromkeys(self.held)
        valid = [pair for pair in held if self.story.lease.get(pair[0]) == pair[1]]
        fenced = [pair for pair in held if pair not in valid and pair[0] in self.story.lease]
        choice = [*valid[-3:], *fenced[-3:], self.held[-1]]
        return choice[which % len(choice)]
