"""Segments give back what was written to them, whatever a crash left of their end, and never anything else."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from miles_async.recording.segments import Entry, Payloads, SegmentError, block, scan

Block = list[tuple[Entry, bytes]]

PAYLOADS = st.binary(max_size=200)
BLOCKS = st.lists(st.lists(st.tuples(st.text(max_size=8), PAYLOADS), min_size=1, max_size=4), min_size=1, max_size=4)
over_one_directory = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


def entries(made: list[list[tuple[str, bytes]]]) -> list[Block]:
    return [[(Entry(name, "rollout-0/1", "published", len(data)), data) for name, data in one] for one in made]


def read(file: Path) -> list[tuple[Entry, bytes]]:
    payloads = Payloads()
    return [(entry, payloads.read(place)) for entry, place in scan(file)]


@over_one_directory
@given(made=BLOCKS)
def test_what_was_written_is_read_back_in_its_order(made: list, tmp_path: Path) -> None:
    blocks, file = entries(made), tmp_path / "a.seg"
    file.write_bytes(b"".join(map(block, blocks)))
    assert read(file) == [item for one in blocks for item in one]


@over_one_directory
@given(made=BLOCKS, data=st.data())
def test_a_crash_costs_the_block_that_it_tore_and_no_other(made: list, data: st.DataObject, tmp_path: Path) -> None:
    blocks, file = entries(made), tmp_path / "a.seg"
    *whole, last = map(block, blocks)
    torn = last[: data.draw(st.integers(0, len(last) - 1))]
    zeros = bytes(data.draw(st.integers(0, 40))) if not torn else b""  # a power cut can lengthen the file first
    file.write_bytes(b"".join(whole) + torn + zeros)
    assert read(file) == [item for one in blocks[:-1] for item in one]


@over_one_directory
@given(made=BLOCKS, data=st.data())
def test_a_changed_byte_is_named_and_gives_nobody_another_payload(
    made: list, data: st.DataObject, tmp_path: Path
) -> None:
    blocks, file = entries(made), tmp_path / "a.seg"
    written = bytearray(b"".join(map(block, blocks)))
    place = data.draw(st.integers(0, len(written) - 1))
    written[place] ^= data.draw(st.integers(1, 255))
    file.write_bytes(written)
    right = [item for one in blocks for item in one]
    try:
        found = read(file)
    except SegmentError as error:
        assert str(file) in str(error)
    else:  # a length that was changed can make the rest look torn
        assert found == right[: len(found)] and len(found) < len(right)


def test_damage_in_the_middle_is_not_taken_for_the_end(tmp_path: Path) -> None:
    first, second = (block(one) for one in entries([[("a", b"1" * 50)], [("b", b"2" * 50)]]))
    file = tmp_path / "a.seg"
    file.write_bytes(first[:30] + bytes([first[30] ^ 1]) + first[31:] + second)
    with pytest.raises(SegmentError, match=r"a\.seg is damaged at byte 0"):
        list(scan(file))
    file.write_bytes(first[:-1] + bytes([first[-1] ^ 1]) + second)
    places = [place for _, place in scan(file)]
    with pytest.raises(SegmentError, match="at byte 0: its groups do not have the checksum"):
        Payloads().read(places[0])
    assert Payloads().read(places[1]) == b"2" * 50
