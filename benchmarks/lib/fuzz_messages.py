"""Malformed messages for every topic and hash of a bus: each is one that its reader has to refuse.

Promises: the same seed gives the same messages; none of them is a message that an actor of the run could have sent
(what a mutation leaves whole is not used), so that the counters of refusals must account for each.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import msgspec

from bus.codec import CodecError, decode, encode
from bus.messages import (
    Batch,
    Control,
    DeadLetter,
    EngineDown,
    EngineServes,
    EngineUp,
    Event,
    Group,
    Heartbeat,
    Message,
    Metrics,
    ReadyGroup,
    Sample,
    Scale,
    Scaled,
    Snapshot,
    Ticket,
    Transition,
    Wait,
)
from bus.topics import KINDS, Topic
from bus.waits import WaitKind

HASHES = ("heartbeats", "engines", "addresses")

SAMPLE = Sample(
    index=0,
    tokens=b"\0\0\0\0",
    logprobs=b"\0\0\0\0",
    loss_mask=b"\1",
    versions=b"\0\0\0\0",
    reward=1.0,
    finish_reason="stop",
)
READY = ReadyGroup(
    group_id="0-999999-0", payload_key="nowhere", oldest_version=0, newest_version=0, n_tokens=1, published=1.0
)
WAIT = Wait(kind=WaitKind.UPDATE, since=1.0, targets=("engine-999",), about={"version": 1})
URL = "http://127.0.0.1:9"
# one well-formed message of each type, all of them about things that no run has
VALID: tuple[Message, ...] = (
    SAMPLE,
    Group(group_id="0-999999-0", prompt_tokens=b"", samples=(SAMPLE,), worker="nobody", started=1.0, finished=2.0),
    Ticket(group_id="0-999999-0", prompt_tokens=b"\1\0\0\0", sampling_seed=1),
    READY,
    Batch(step=999_999, group_ids=("0-999999-0",), payload_keys=("nowhere",)),
    Transition(kind="dropped", group_ids=("0-999999-0",), reason="nonsense", group=READY),
    DeadLetter(group_id="0-999999-0", attempts=1, reason="nonsense", causes=("none",)),
    Snapshot(version=999, incarnation=1, path="/nowhere/at/all"),
    EngineUp(engine="engine-999", url=URL, incarnation=1, version=0),
    EngineServes(engine="engine-999", url=URL, incarnation=1, version=999),
    EngineDown(engine="engine-999", incarnation=99, reason="nonsense"),
    Control(command="dance", roles=("learner",), reason="nonsense"),
    Scale(request="nobody", engines=1),
    Scaled(request="nobody", refusal="nonsense"),
    Event(actor="nobody", kind="died", time=1.0, data={"cause": "x", "fatal": True}),
    Metrics(actor="nobody", step=1, time=1.0, values={"raw_reward": 1.0}),
    WAIT,
    Heartbeat(actor="nobody", role="learner", incarnation=1, where="pid 1", time=1.0, waits=(WAIT,)),
)
# well-formed, of the topic, and about nothing that the run has: refused by the actor that knows
UNKNOWN: dict[Topic, tuple[type[Message], ...]] = {
    "tickets": (Ticket,),
    "samples": (ReadyGroup,),
    "batches": (),
    "weights": (Snapshot, EngineUp, EngineServes, EngineDown),
    "control": (Control,),
    "events": (Event,),
    "metrics": (Metrics,),
    "dead": (),
}
ODD: tuple[Any, ...] = (
    None, True, -1, 2**31, 2**63, -(2**63), float("nan"), float("inf"), "", "\0",
    "é" * 300, b"\xff" * 40, [], {}, [[]], {"a": {}},
    msgspec.msgpack.Ext(5, b"x"), "http://[", "file:///etc/passwd", "../../..", [1] * 300,
)  # fmt: skip


class Fuzz:
    """A seeded source of malformed messages."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self._fields = 0

    def bytes(self, longest: int = 200) -> bytes:
        return self.rng.randbytes(self.rng.randint(0, longest))

    def mutated(self) -> bytes:
        """A message of any type with some of its bytes changed, cut out or added."""
        data = bytearray(encode(self.rng.choice(VALID)))
        for _ in range(self.rng.randint(1, 4)):
            at = self.rng.randrange(len(data) + 1)
            match self.rng.randrange(4):
                case 0:
                    data[at:] = b""
                case 1:
                    data[at:at] = self.bytes(8)
                case 2:
                    del data[at : at + self.rng.randint(1, 4)]
                case _:
                    data[at : at + 1] = self.rng.randbytes(1)
        return bytes(data)

    def misfit(self) -> bytes:
        """A message of the right type and arity whose fields have wrong types or values."""
        fields = msgspec.msgpack.decode(encode(self.rng.choice(VALID))[1:])
        for _ in range(self.rng.randint(1, 2)):
            fields[self.rng.randrange(1, len(fields))] = self.rng.choice(ODD)
        return b"\1" + msgspec.msgpack.encode(fields)

    def nested(self) -> bytes:
        """Containers in containers, deeper than any stack."""
        depth = self.rng.choice((50, 2_000, 20_000))
        return b"\1" + self.rng.choice((b"\x91", b"\x81\xa1a", b"\x81\x91")) * depth

    def of_topic(self, topic: Topic) -> bytes:
        """The payload of a malformed entry of ``topic``."""
        while True:
            kind = self.rng.randrange(10)
            if kind < 2:
                data = self.bytes()
            elif kind < 4:
                data = self.mutated()
            elif kind < 7:
                data = self.misfit()
            elif kind == 7:
                data = self.nested() if self.rng.random() < 0.1 else b"\1" + self.bytes()
            else:
                data = encode(self.rng.choice(VALID))
            if self._is_refused(topic, data):
                return data

    def _is_refused(self, topic: Topic, data: bytes) -> bool:
        """Whether nothing in ``data`` could be what an actor of the run says on ``topic``."""
        try:
            message = decode(data, Message)
        except CodecError:
            return True
        if not isinstance(message, KINDS[topic]):
            return True
        # a mutation may have left a message whole; only those about nothing are for certain
        return isinstance(message, UNKNOWN[topic]) and message in VALID

    def entry(self, topic: Topic) -> dict[str, bytes]:
        """The fields of a malformed entry of ``topic``."""
        if self.rng.random() < 0.05:
            return {self.rng.choice("xyz"): self.bytes()}
        return {"m": self.of_topic(topic)}

    def damage(self, table: str) -> tuple[bytes, bytes]:
        """A field that the run does have, and a malformed value for it: whoever owns it writes it again."""
        owners = {
            "heartbeats": (b"dealer", b"rollout-0"),
            "engines": (b"engine-0", b"engine-1"),
            "addresses": (b"router",),
        }
        return self.rng.choice(owners[table]), b"\xc1" + self.bytes()

    def field(self, table: str) -> tuple[bytes, bytes]:
        """A field and its malformed value for the hash ``table``."""
        self._fields += 1  # no two have one name: the second would hide the first
        name = self.rng.choice((b"nobody-%d", self.bytes(20).replace(b"%", b"") + b"!%d")) % self._fields
        values: tuple[Callable[[], bytes], ...] = (self.bytes, self.mutated, self.misfit, self.nested)
        return name, self.rng.choice(values)()
