"""The codec under arbitrary bytes, damaged messages and misfit fields: a valid message or CodecError, and soon."""

from __future__ import annotations

import time

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.lib.fuzz_messages import HASHES, VALID, Fuzz
from bus import Bus
from bus.codec import CodecError, decode, encode
from bus.messages import AnyMessage, Message
from bus.topics import KINDS, Topic

ENOUGH_S = 2.0  # for any input of these tests; a slow machine included

anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=20)
    | st.binary(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=10,
)


def check(data: bytes) -> Message | None:
    """What the codec makes of ``data``; it must be a whole message that survives the wire, or a CodecError."""
    began = time.monotonic()
    try:
        message = decode(data, Message)
    except CodecError:
        message = None
    assert time.monotonic() - began < ENOUGH_S
    if message is not None:
        assert isinstance(message, AnyMessage)
        again = encode(message)
        assert encode(decode(again, type(message))) == again
    return message


@settings(deadline=None)
@given(st.binary(max_size=2000))
def test_arbitrary_bytes(data: bytes) -> None:
    check(data)
    check(b"\1" + data)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(VALID), st.data())
def test_a_message_of_each_type_with_bytes_changed_cut_or_added(message: Message, data: st.DataObject) -> None:
    raw = bytearray(encode(message))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(raw)))
        raw[at : at + data.draw(st.integers(0, 5))] = data.draw(st.binary(max_size=5))
    check(bytes(raw))


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(VALID), st.data())
def test_a_message_of_each_type_whose_fields_have_other_types(message: Message, data: st.DataObject) -> None:
    fields = msgspec.msgpack.decode(encode(message)[1:])
    for at in data.draw(st.sets(st.integers(0, len(fields) - 1), min_size=1, max_size=3)):
        fields[at] = data.draw(anything)
    check(b"\1" + msgspec.msgpack.encode(fields))


@pytest.mark.parametrize(
    "unit", [b"\x91", b"\x81\xa1a", b"\x81\x91", b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff\xa1a"]
)
@pytest.mark.parametrize("depth", [100, 10_000, 1_000_000])
def test_nesting_of_any_depth_and_lengths_that_are_lies(unit: bytes, depth: int) -> None:
    assert check(b"\1" + unit * depth) is None
    assert check(b"\1\x95\xa5event\xa1a\xa1k\xca\0\0\0\0" + unit * depth) is None


def test_ten_thousand_seeded_messages_of_every_kind() -> None:
    fuzz = Fuzz(1)
    for _ in range(2500):
        for make in (fuzz.bytes, fuzz.mutated, fuzz.misfit, fuzz.nested):
            check(make())


async def test_every_malformed_entry_is_refused_counted_and_taken_off(bus: Bus) -> None:
    fuzz = Fuzz(2)
    topics: tuple[Topic, ...] = ("weights", "control", "metrics", "events")
    for topic in topics:
        # about nothing that a run has, but well-formed: an actor refuses these, not the bus
        sent = 0
        while sent < 300:
            fields = fuzz.entry(topic)
            try:
                if "m" in fields and isinstance(decode(fields["m"], Message), KINDS[topic]):
                    continue
            except CodecError:
                pass
            await bus.redis.xadd(bus.key(topic), fields)
            sent += 1
        assert await bus.read(topic, KINDS[topic], "0", count=1000) == ([], await bus_last(bus, topic))
        assert bus.refused[topic] == 300
        assert await bus.redis.xlen(bus.key(topic)) == 0
    readers = {
        "heartbeats": lambda: bus.heartbeats(("dealer",)),
        "engines": lambda: bus.engines(("engine-0",)),
        "addresses": lambda: bus.check_addresses(("router",)),
    }
    assert set(readers) == set(HASHES)
    for table, read in readers.items():
        for _ in range(300):
            name, value = fuzz.field(table)
            await bus.redis.hset(bus.key(table), name, value)
        assert not await read()
        assert bus.refused[table] == 300
        assert await bus.redis.hlen(bus.key(table)) == 0


async def bus_last(bus: Bus, topic: Topic) -> str:
    return (await bus.redis.xinfo_stream(bus.key(topic)))["last-generated-id"].decode()


async def test_a_damaged_address_is_waited_out(bus: Bus) -> None:
    await bus.redis.hset(bus.key("addresses"), "router", b"\xff\0http://x")
    with pytest.raises(TimeoutError, match="the address of router"):
        await bus.address("router", deadline_s=0.05)
    await bus.set_address("router", "http://127.0.0.1:1")
    assert await bus.address("router", deadline_s=1.0) == "http://127.0.0.1:1"
    assert bus.refused["addresses"] == 1
