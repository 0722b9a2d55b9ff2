"""Where payloads lie, on a real Redis: whatever the store, what is published can be fetched, and what is forgotten is gone."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from ledger_steps import deal, group, make_ready

from bus import Bus, Ledger, LedgerError, balanced
from bus.ledger_leases import Publication
from bus.payloads import InDirectory, InRedis, PayloadStore


@pytest.fixture
def in_directory(tmp_path: Path) -> InDirectory:
    return InDirectory(tmp_path / "payloads")


@pytest.fixture(params=[InRedis, InDirectory])
def store(request: pytest.FixtureRequest, in_directory: InDirectory) -> PayloadStore:
    return in_directory if request.param is InDirectory else InRedis()


def files(store: InDirectory) -> list[str]:
    return sorted(path.name for path in store.directory.glob("*"))


async def test_a_published_group_is_fetched_until_no_learner_can_train_it_again(bus: Bus, store: PayloadStore) -> None:
    ledger = Ledger(bus, store)
    await deal(ledger, 6)
    ready = await make_ready(ledger, 6)
    records = [await ledger.batch(step, ready[2 * step - 2 : 2 * step]) for step in (1, 2, 3)]
    await ledger.commit(2, forget=1)
    with pytest.raises(LedgerError, match="missing"):
        await ledger.payloads(records[0].payload_keys)
    for record in records[1:]:
        assert [one.group_id for one in await ledger.payloads(record.payload_keys)] == list(record.group_ids)
    await ledger.commit(3)
    assert isinstance((await ledger.payloads_or_causes(records[2].payload_keys))[0], LedgerError)
    assert balanced(await ledger.counts())


async def test_a_publication_can_be_repeated_in_any_store(bus: Bus, store: PayloadStore) -> None:
    ledger = Ledger(bus, store)
    await deal(ledger, 1)
    (claimed,) = await ledger.next_tickets("w", "w/1", 1, None)
    mine = group(claimed.ticket.group_id)
    assert await ledger.publish(mine, "w/1", 0.0) and await ledger.publish(mine, "w/1", 0.0)
    ready, _ = await ledger.ready_groups("0")
    record = await ledger.batch(1, ready)
    assert await ledger.payloads(record.payload_keys) == [mine]


async def test_what_a_commit_forgets_leaves_the_directory_with_it(bus: Bus, in_directory: InDirectory) -> None:
    ledger = Ledger(bus, in_directory)
    await deal(ledger, 4)
    ready = await make_ready(ledger, 4)
    assert len(files(in_directory)) == 4
    await ledger.batch(1, ready[:2])
    await ledger.drop(ready[2].group_id, "stale")
    await ledger.commit(1)
    assert len(files(in_directory)) == 1
    values = await bus.redis.mget([one.payload_key for one in ready])
    assert [value.decode() for value in values if value is not None] == files(in_directory)


async def test_redis_holds_a_name_and_not_the_payload(bus: Bus, in_directory: InDirectory) -> None:
    ledger = Ledger(bus, in_directory)
    await deal(ledger, 1)
    await ledger.next_tickets("w", "w/1", 1, None)
    await ledger.publish_all([Publication(group("0-0-0"), 0.0, b"\1" + b"x" * 10_000)], "w/1")
    (ready,), _ = await ledger.ready_groups("0")
    assert await bus.redis.strlen(ready.payload_key) < 255
    assert (in_directory.directory / files(in_directory)[0]).read_bytes()[1:] == b"x" * 10_000


async def committed(ledger: Ledger, step: int, start: int) -> None:
    """A step of one other group, which is dealt for it."""
    await deal(ledger, 1, start)
    (ready,) = await make_ready(ledger, 1, "other/1")
    await ledger.batch(step, [ready])
    await ledger.commit(step)


async def test_a_payload_whose_worker_died_before_it_published_goes_when_its_lease_is_over(
    bus: Bus, in_directory: InDirectory
) -> None:
    ledger = Ledger(bus, in_directory)
    await deal(ledger, 1)
    await ledger.next_tickets("w", "w/1", 1, None)
    await in_directory.put(bus.key("payload:0-0-0:w/1"), b"made")
    (in_directory.directory / "miles%3A1%3Apayload%3A0-0-0%3Aw%2F1.0a.partial").touch()  # of another run: left alone
    await committed(ledger, 1, 1)
    assert len(files(in_directory)) == 2  # it might be published still
    await ledger.release("w/1", "died")
    await ledger.next_tickets("v", "v/1", 1, None)
    await committed(ledger, 2, 2)
    assert files(in_directory) == ["miles%3A1%3Apayload%3A0-0-0%3Aw%2F1.0a.partial"]


class Slow(InDirectory):
    """One whose payloads are written, and whose publications wait until they may go on."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.written, self.go_on = asyncio.Event(), asyncio.Event()

    async def put(self, key: str, payload: bytes) -> bytes:
        value = await super().put(key, payload)
        self.written.set()
        await self.go_on.wait()
        return value


async def test_a_commit_between_the_writing_of_a_payload_and_its_publication_does_not_lose_it(
    bus: Bus, tmp_path: Path
) -> None:
    slow, ledger = Slow(tmp_path), Ledger(bus, InDirectory(tmp_path))
    await deal(ledger, 1)
    await ledger.next_tickets("w", "w/1", 1, None)
    publishing = asyncio.create_task(Ledger(bus, slow).publish(group("0-0-0"), "w/1", 0.0))
    await slow.written.wait()
    await committed(ledger, 1, 1)
    slow.go_on.set()
    assert await publishing
    (ready,) = [one for one in (await ledger.ready_groups("0"))[0] if one.group_id == "0-0-0"]
    assert await ledger.payloads([ready.payload_key]) == [group("0-0-0")]


async def test_a_publication_between_the_two_looks_of_a_sweep_does_not_lose_its_payload(
    bus: Bus, tmp_path: Path
) -> None:
    slow, ledger = Slow(tmp_path), Ledger(bus, InDirectory(tmp_path))
    await deal(ledger, 1)
    await ledger.next_tickets("w", "w/1", 1, None)
    publishing = asyncio.create_task(Ledger(bus, slow).publish(group("0-0-0"), "w/1", 0.0))
    await slow.written.wait()
    looks = {name: getattr(bus.redis, name) for name in ("hmget", "mget")}

    def published_after(look: Callable[..., Awaitable[object]]) -> Callable[..., Awaitable[object]]:
        async def looked(*args: object) -> object:
            found = await look(*args)
            slow.go_on.set()
            assert await publishing
            return found

        return looked

    for name, look in looks.items():
        setattr(bus.redis, name, published_after(look))
    assert await InDirectory(tmp_path).sweep(ledger._on_record) == 0
    for name, look in looks.items():
        setattr(bus.redis, name, look)
    (ready,), _ = await ledger.ready_groups("0")
    assert await ledger.payloads([ready.payload_key]) == [group("0-0-0")]


async def test_of_two_attempts_under_one_lease_the_published_one_stays(bus: Bus, in_directory: InDirectory) -> None:
    ledger = Ledger(bus, in_directory)
    await deal(ledger, 1)
    await ledger.next_tickets("w", "w/1", 1, None)
    await in_directory.put(bus.key("payload:0-0-0:w/1"), b"an earlier attempt's")
    assert await ledger.publish(group("0-0-0"), "w/1", 0.0)
    assert await in_directory.sweep(ledger._on_record) == 1
    (ready,), _ = await ledger.ready_groups("0")
    assert await ledger.payloads([ready.payload_key]) == [group("0-0-0")]


Spoil = Callable[[Path], object]


@pytest.mark.parametrize("spoil", [Path.unlink, lambda path: path.write_bytes(b"")], ids=["gone", "emptied"])
async def test_a_payload_that_is_gone_or_damaged_is_said_by_its_key(
    bus: Bus, in_directory: InDirectory, spoil: Spoil
) -> None:
    ledger = Ledger(bus, in_directory)
    await deal(ledger, 2)
    one, other = await make_ready(ledger, 2)
    spoil(in_directory.directory / (await bus.redis.get(one.payload_key)).decode())
    lost, there = await ledger.payloads_or_causes([one.payload_key, other.payload_key])
    assert isinstance(lost, LedgerError) and one.payload_key in str(lost)
    assert there == group(other.group_id)


@pytest.mark.parametrize("junk", [b"../secret", b"", b".", b"\xff\0", b"x" * 5000])
async def test_a_value_that_is_no_name_of_ours_reads_nothing(junk: bytes, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("not for reading")
    assert await InDirectory(tmp_path / "payloads").get([junk, None]) == [None, None]
