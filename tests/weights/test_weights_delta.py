"""Deltas, and the mirrors that follow them: bit for bit, or found and replaced by a full copy."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from miles_async.engines.checksum import as_bytes
from miles_async.weights import delta_sender
from miles_async.weights.delta import DeltaError, check_file, read_header, read_tensors, write_delta
from miles_async.weights.delta_mirror import CONFIG_DIR, Mirror, state_file
from miles_async.weights.delta_sender import DeltaSender
from miles_async.weights.snapshot import load_snapshot, write_snapshot
from miles_async.weights.update import Copies

Tensors = dict[str, torch.Tensor]
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool, torch.float8_e4m3fn]


@st.composite
def tensor_sets(draw: st.DrawFn) -> tuple[Tensors, Tensors]:
    """Two sets whose tensors are equal, close, unrelated, of other dtypes or shapes, or only in one of them."""
    noise = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))

    def some(dtype: torch.dtype, shape: list[int]) -> torch.Tensor:
        values = torch.randint(0, 256, (*shape, dtype.itemsize), dtype=torch.uint8, generator=noise)
        return values.bool()[..., 0] if dtype == torch.bool else values.view(dtype).reshape(shape)

    old: Tensors = {}
    new: Tensors = {}
    for name in draw(st.lists(st.sampled_from("abcdef"), min_size=1, unique=True)):
        dtype, shape = draw(st.sampled_from(DTYPES)), draw(st.lists(st.integers(0, 9), max_size=3))
        old[name] = new[name] = some(dtype, shape)
        match draw(st.sampled_from(["same", "close", "other", "reshaped", "added"])):
            case "close" if old[name].numel():
                new[name] = old[name].clone()
                new[name].view(-1)[:1] = some(dtype, [1])
            case "other":
                new[name] = some(dtype, shape)
            case "reshaped":
                new[name] = some(draw(st.sampled_from(DTYPES)), [*shape, 2])
            case "added":
                del old[name]
    return old, new


def there(file: Path, base: Tensors) -> Tensors:
    return dict(zip([e.name for e in read_header(file).entries], read_tensors(file, base), strict=True))


def same(a: Tensors, b: Tensors) -> bool:
    """Bit for bit: NaNs, too."""
    return a.keys() == b.keys() and all(
        (a[k].dtype, a[k].shape) == (b[k].dtype, b[k].shape) and (as_bytes(a[k]) == as_bytes(b[k])).all() for k in a
    )


@settings(max_examples=60, deadline=None)
@given(tensor_sets())
def test_any_tensors_come_back_bit_for_bit_from_a_delta_and_from_a_full_copy(pair: tuple[Tensors, Tensors]) -> None:
    old, new = pair
    with tempfile.TemporaryDirectory() as home:
        file = Path(home) / "i0001-v00000002.delta"
        write_delta(file, (1, 2), new, ((1, 1), old))
        assert same(there(file, old), new)
        write_delta(file, (1, 2), new, None)
        assert same(there(file, {}), new)
        assert [path.name for path in Path(home).iterdir()] == [file.name]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Tensors, Tensors]:
    """A delta with tensors of all three kinds, its base, and what it makes."""
    torch.manual_seed(0)
    old = {name: torch.randn(40) for name in ("kept", "moved", "made")}
    new = old | {"moved": old["moved"] * (1 + 1e-6), "made": torch.zeros(40)}
    file = tmp_path_factory.mktemp("delta") / "i0001-v00000002.delta"
    header = write_delta(file, (1, 2), new, ((1, 1), old))
    assert {entry.kind for entry in header.entries} == {"same", "xor", "new"}
    return file, old, new


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_byte_that_is_changed_missing_or_added_is_found(
    small: tuple[Path, Tensors, Tensors], data: st.DataObject
) -> None:
    file, old, _ = small
    good = file.read_bytes()
    place = data.draw(st.integers(0, len(good) - 1))
    flipped = good[:place] + bytes([good[place] ^ data.draw(st.integers(1, 255))]) + good[place + 1 :]
    bad = data.draw(st.sampled_from([flipped, good[:place], good + b"\0"]))
    with tempfile.TemporaryDirectory() as home:
        damaged = Path(home) / file.name
        damaged.write_bytes(bad)
        with pytest.raises(DeltaError, match=file.name):
            list(read_tensors(damaged, old))


@settings(max_examples=60, deadline=None)
@given(place=st.integers(0, 159), name=st.sampled_from(["kept", "moved"]))
def test_a_base_with_a_wrong_byte_is_found_by_the_checksum_of_the_result(
    place: int, name: str, small: tuple[Path, Tensors, Tensors]
) -> None:
    file, old, _ = small
    wrong = {key: tensor.clone() for key, tensor in old.items()}
    wrong[name].view(torch.uint8)[place] ^= 1
    with pytest.raises(DeltaError, match=f"{name} is not what was sent"):
        list(read_tensors(file, wrong))
    check_file(file)  # the file itself is right


def test_a_small_step_costs_a_part_of_a_full_copy(tmp_path: Path) -> None:
    torch.manual_seed(0)
    old = {"w": (torch.randn(1 << 16) * 0.02).bfloat16()}
    new = {"w": torch.where(torch.rand(1 << 16) < 0.05, old["w"] * 1.01, old["w"])}
    delta, full = tmp_path / "i0001-v00000002.delta", tmp_path / "i0001-v00000002.full"
    write_delta(delta, (1, 2), new, ((1, 1), old))
    write_delta(full, (1, 2), new, None)
    assert delta.stat().st_size < full.stat().st_size / 4


class Stage:
    """A sender, its snapshots, and mirrors of engines."""

    def __init__(self, home: Path) -> None:
        self.home, self.shared = home, home / "shared"
        self.sender = DeltaSender(self.shared, timeout_s=10)
        (home / "hf").mkdir()
        (home / "hf" / "config.json").write_text("{}")
        torch.manual_seed(1)
        self.tensors = {"a": torch.randn(100), "b": torch.randn(7, 3).bfloat16()}

    async def offer(self, version: int, incarnation: int = 1) -> Tensors:
        self.tensors = {name: tensor * 1.001 for name, tensor in self.tensors.items()}
        path = write_snapshot(self.home / "snapshots", version, incarnation, self.tensors, str(self.home / "hf"))
        await self.sender.offer(path, (incarnation, version))
        return self.tensors

    @contextlib.asynccontextmanager
    async def mirror(self, engine: str, local: str = "") -> AsyncIterator[Mirror]:
        mirror = Mirror(engine, self.shared, lambda _: self.home / (local or engine))
        task = asyncio.create_task(mirror.follow())
        try:
            yield mirror
        finally:
            task.cancel()

    async def arrives(self, *engines: str) -> Copies:
        """Wait until all of ``engines`` have the version offered last, bit for bit, as a directory an engine can load."""
        delivery = await self.sender.wait(engines)
        assert not delivery.failed
        for path in delivery.paths.values():
            assert same(load_snapshot(path), self.tensors) and (path / "config.json").exists()
        return delivery

    def files(self) -> list[str]:
        return sorted(path.name for path in self.shared.iterdir() if path.suffix in (".delta", ".full"))


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


async def test_mirrors_follow_by_deltas_and_a_late_one_gets_a_full_copy(stage: Stage) -> None:
    async with stage.mirror("e0"), stage.mirror("e1", local="e0"):
        await stage.offer(1)
        await stage.arrives("e0", "e1")
        for version in (2, 3):
            await stage.offer(version)
            assert not (await stage.arrives("e0", "e1")).asked
        assert stage.files() == ["i0001-v00000002.delta", "i0001-v00000003.delta"]
        async with stage.mirror("e2"):
            delivery = await stage.arrives("e0", "e1", "e2")
            assert list(delivery.asked) == ["e2"] and "no copy of version" in delivery.asked["e2"]
            await stage.offer(4)
            assert not (await stage.arrives("e0", "e1", "e2")).asked


async def test_a_mirror_that_missed_versions_applies_them_in_order(stage: Stage) -> None:
    async with stage.mirror("e0"):
        await stage.offer(1)
        await stage.arrives("e0")
    for version in (2, 3, 4):
        await stage.offer(version)
    async with stage.mirror("e0"):  # its host was started again
        assert not (await stage.arrives("e0")).asked


async def test_another_incarnation_of_the_learner_starts_from_a_full_copy(stage: Stage) -> None:
    async with stage.mirror("e0"):
        await stage.offer(5, incarnation=1)
        await stage.arrives("e0")
        await stage.offer(3, incarnation=2)
        assert stage.files() == ["i0002-v00000003.full"]
        await stage.arrives("e0")


@pytest.mark.parametrize("what", ["delta", "copy"])
async def test_damage_to_a_delta_or_to_a_copy_is_found_named_and_mended_by_a_full_copy(what: str, stage: Stage) -> None:
    async with stage.mirror("e0"):
        await stage.offer(1)
        copy = (await stage.arrives("e0")).paths["e0"]
    if what == "copy":
        flip(copy / "model.safetensors", -1)
    await stage.offer(2)
    if what == "delta":
        flip(stage.shared / "i0001-v00000002.delta", -40)
    async with stage.mirror("e0") as mirror:
        delivery = await stage.arrives("e0")
    assert ("damaged" if what == "delta" else "is not what was sent, by its checksum") in delivery.asked["e0"]
    assert mirror.state.asks == 1 and stage.files() == ["i0001-v00000002.delta", "i0001-v00000002.full"]


async def test_a_full_copy_that_is_damaged_is_written_once_more(stage: Stage) -> None:
    await stage.offer(1)
    flip(stage.shared / "i0001-v00000001.full", -40)
    async with stage.mirror("e0"):
        assert "damaged" in (await stage.arrives("e0")).asked["e0"]


def flip(file: Path, place: int) -> None:
    data = bytearray(file.read_bytes())
    data[place] ^= 1
    file.write_bytes(data)


async def test_a_mirror_that_is_silent_is_given_up_by_name_and_at_once_the_next_time(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delta_sender, "SILENT_S", 0.5)
    async with stage.mirror("e0"):
        await stage.offer(1)
        delivery = await stage.sender.wait(["e0", "e1"])
        assert list(delivery.paths) == ["e0"] and str(state_file(stage.shared, "e1")) in delivery.failed["e1"]
        monkeypatch.setattr(delta_sender, "SILENT_S", 60.0)
        assert list((await stage.sender.wait(["e1"])).failed) == ["e1"]
        async with stage.mirror("e1"), asyncio.timeout(10):
            while (await stage.sender.wait(["e1"])).failed:
                assert list((await stage.arrives("e0")).paths) == ["e0"]
                await asyncio.sleep(0.02)


async def test_a_sender_that_starts_again_clears_what_lies_there(stage: Stage) -> None:
    await stage.offer(1)
    (stage.shared / ".i0001-v00000009.delta.draft").write_bytes(b"half")
    stage.sender = DeltaSender(stage.shared, timeout_s=10)
    await stage.offer(1)
    assert stage.files() == ["i0001-v00000001.full"] and not list(stage.shared.glob(".i*"))
    assert (stage.shared / CONFIG_DIR / "config.json").exists()
