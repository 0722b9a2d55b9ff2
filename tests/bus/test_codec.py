"""The codec: what goes in comes out; arbitrary bytes never do more than raise CodecError."""

from __future__ import annotations

import contextlib

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus.codec import LOGPROBS, TOKENS, CodecError, decode, encode, pack, unpack
from bus.messages import SCHEMA_VERSION, Batch, Event, Group, Message, ReadyGroup, Sample, Ticket, Transition

samples = st.builds(
    Sample,
    index=st.integers(0, 100),
    tokens=st.lists(st.integers(-(2**31), 2**31 - 1)).map(lambda ids: pack(ids, TOKENS)),
    logprobs=st.lists(st.floats(width=32, allow_nan=False)).map(lambda values: pack(values, LOGPROBS)),
    loss_mask=st.binary(max_size=20),
    versions=st.binary(max_size=20),
    reward=st.floats(allow_nan=False),
    finish_reason=st.sampled_from(["stop", "length", "abort"]),
    text=st.text(),
)
groups = st.builds(
    Group,
    group_id=st.text(),
    prompt_tokens=st.binary(max_size=40),
    samples=st.lists(samples, max_size=3).map(tuple),
    worker=st.text(),
    started=st.floats(allow_nan=False),
    finished=st.floats(allow_nan=False),
    label=st.none() | st.text(),
)


@given(groups)
def test_a_group_survives_the_wire(group: Group) -> None:
    assert decode(encode(group), Group) == group


def test_what_an_earlier_version_left_on_the_bus_is_read() -> None:
    """A run that was killed goes on under newer code: fields that a message has got since then stand behind those it had."""
    ready = ["ready", "0-1-0", "key", 3, 4, 9, 1.5, [4, 5], [0.0, 1.0], [[3, 5], [4, 4]]]
    news = ReadyGroup("0-1-0", "key", 3, 4, 9, 1.5, (4, 5), (0.0, 1.0), ((3, 5), (4, 4)))
    published = ["transition", "published", ["0-1-0"], "w0-1", 0, "", "", 0, [], ready]
    for fields, expected in ((ready, news), (published, Transition("published", ("0-1-0",), by="w0-1", group=news))):
        assert decode(bytes([SCHEMA_VERSION]) + msgspec.msgpack.encode(fields), type(expected)) == expected


@given(st.binary(max_size=300))
def test_arbitrary_bytes_never_do_more_than_raise_codec_error(data: bytes) -> None:
    for head in (b"", b"\1"):
        with contextlib.suppress(CodecError):
            assert isinstance(decode(head + data, Message), Message)


@given(groups, st.integers(0, 10_000), st.integers(0, 255))
def test_a_damaged_message_never_does_more_than_raise_codec_error(group: Group, place: int, value: int) -> None:
    data = bytearray(encode(group))
    data[place % len(data)] = value
    with contextlib.suppress(CodecError):
        assert isinstance(decode(bytes(data), Group), Group)


def test_another_type_schema_or_an_empty_message_is_refused_by_name() -> None:
    ticket = Ticket(group_id="0-1-0", prompt_tokens=b"", sampling_seed=1)
    with pytest.raises(CodecError, match="expected Batch, got Ticket"):
        decode(encode(ticket), Batch)
    with pytest.raises(CodecError, match="schema version 9"):
        decode(b"\x09" + encode(ticket)[1:], Ticket)
    with pytest.raises(CodecError, match="0"):
        decode(b"", Ticket)


def test_deep_nesting_is_refused_instead_of_exhausting_the_stack() -> None:
    bomb = encode(Event(actor="a", kind="k", time=0.0))[:-1] + b"\x81\xa1a" * 100_000 + b"\xc0"
    with pytest.raises(CodecError):
        decode(bomb, Event)


def test_arrays_are_little_endian_views_of_the_message() -> None:
    values = np.array([1, -2, 2**31 - 1], dtype=np.int64)
    assert pack(values, TOKENS) == values.astype("<i4").tobytes()
    assert not unpack(pack(values, TOKENS), TOKENS).flags.writeable
    with pytest.raises(CodecError, match="whole number"):
        unpack(b"abc", TOKENS)


def test_no_message_can_carry_an_object_of_python() -> None:
    with pytest.raises((TypeError, msgspec.EncodeError)):
        encode(Event(actor="a", kind="k", time=0.0, data={"f": object()}))
