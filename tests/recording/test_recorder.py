"""A group that the recorder has taken is on disk; the loop waits for no disk; the record stays within its bound."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from miles_async.recording import recorder as recording
from miles_async.recording.recorder import Recorder
from miles_async.recording.segments import Entry, Payloads, scan


def entry(name: str, payload: bytes) -> Entry:
    return Entry(name, "rollout-0/1", "published", len(payload))


def names(root: Path) -> list[str]:
    return [found.group_id for file in sorted(root.glob("*.seg")) for found, _ in scan(file)]


async def test_what_was_kept_is_in_the_file_before_anything_is_closed(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "record", "rollout-0-1", 10**9)
    await asyncio.gather(*(recorder.keep(entry(f"{i}", bytes([i]) * i), bytes([i]) * i) for i in range(20)))
    (file,) = (tmp_path / "record").glob("*.seg")
    payloads = Payloads()
    found = {one.group_id: payloads.read(place) for one, place in scan(file)}
    assert found == {f"{i}": bytes([i]) * i for i in range(20)}
    await recorder.close()


async def test_groups_that_come_while_others_are_written_share_a_block_and_the_loop_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    goes_on, blocks = threading.Event(), list[int]()

    def slow(items: list) -> bytes:
        assert goes_on.wait(60)
        blocks.append(len(items))
        return real(items)

    real = recording.block
    monkeypatch.setattr(recording, "block", slow)
    recorder = Recorder(tmp_path / "record", "rollout-0-1", 10**9)
    kept = [asyncio.create_task(recorder.keep(entry(str(i), b"x"), b"x")) for i in range(1)]
    await asyncio.sleep(0)
    kept += [asyncio.create_task(recorder.keep(entry(str(i), b"x"), b"x")) for i in range(1, 9)]
    await asyncio.sleep(0)
    assert not any(task.done() for task in kept)
    goes_on.set()
    await asyncio.gather(*kept)
    await recorder.close()
    assert sum(blocks) == 9 and len(blocks) <= 2
    assert names(tmp_path / "record") == [str(i) for i in range(9)]


async def test_a_disk_that_takes_nothing_is_told_and_what_comes_later_is_readable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Recorder(tmp_path / "record", "rollout-0-1", 10**9)
    await recorder.keep(entry("a", b"1"), b"1")

    class HalfFull:
        """Takes some bytes of a block, and then none."""

        def __init__(self, file: object) -> None:
            self.file, self.left = file, 10

        def write(self, data: memoryview) -> int:
            if not self.left:
                raise OSError(28, "No space left on device")
            taken, self.left = self.file.write(data[: self.left]), 0  # type: ignore[attr-defined]
            return taken

        def __getattr__(self, name: str) -> object:
            return getattr(self.file, name)

    real = recorder._file
    monkeypatch.setattr(recorder, "_file", HalfFull(real))
    with pytest.raises(OSError, match="No space left"):
        await recorder.keep(entry("b", b"2"), b"2")
    monkeypatch.setattr(recorder, "_file", real)
    await recorder.keep(entry("c", b"3"), b"3")
    await recorder.close()
    assert names(tmp_path / "record") == ["a", "c"]


async def test_the_oldest_segments_leave_where_the_bound_is_reached(tmp_path: Path) -> None:
    root, payload = tmp_path / "record", bytes(range(256)) * 40  # zstd makes little of it, and less of the next ones
    recorder = Recorder(root, "rollout-0-1", 4000, segment_bytes=500)
    for number in range(60):
        noise = bytes((byte * (number + 3) + number) % 251 for byte in payload[:700])
        await recorder.keep(entry(str(number), noise), noise)
    await recorder.close()
    assert sum(file.stat().st_size for file in root.glob("*.seg")) <= 4000 + 1200
    left = [int(name) for name in names(root)]
    assert left == list(range(left[0], 60)) and left[0] > 0
