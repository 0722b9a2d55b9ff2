"""Pushes to real engines over a real process group."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import aiohttp
import pytest
import torch
from embedded_engines import EngineProcess, engines, snapshot_of
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from miles_async.config.schema import Data, Model, RunConfig, Weights
from miles_async.engines.client import EngineClient, EngineError
from miles_async.engines.embedded.groups import GROUP_TIMEOUT_S
from miles_async.rollout.generate import own_cache
from miles_async.weights.buckets import make_buckets
from miles_async.weights.group import GroupError, WeightGroup, _arrived
from miles_async.weights.push import Wave
from miles_async.weights.snapshot import load_snapshot, write_snapshot
from miles_async.weights.transports.base import Transport
from miles_async.weights.transports.table import make_transport
from miles_async.weights.update import PushReport, Receiver, Update

SMALL_BUCKET_BYTES = 64 << 10  # several of them make the model


def config(transport: str = "collective", timeout_s: float = 20) -> RunConfig:
    weights = Weights(transport=transport, backend="gloo", timeout_s=timeout_s)
    return RunConfig(model=Model(hf_checkpoint="none"), data=Data(), weights=weights)


@pytest.fixture(scope="module")
def fleet(digits_model: Path) -> Iterator[list[EngineProcess]]:
    """Two engines that no test harms; their weights are whatever the last test pushed."""
    with engines(digits_model, 2) as started:
        yield started


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


@pytest.fixture
async def transport() -> AsyncIterator[Transport]:
    transport = make_transport(config(), Path())
    yield transport
    await transport.close()


def receivers(started: list[EngineProcess], session: aiohttp.ClientSession) -> list[Receiver]:
    return [Receiver(f"e{i}", EngineClient(engine.url, session, name=f"e{i}")) for i, engine in enumerate(started)]


async def push_path(targets: list[Receiver], path: Path, version: int, transport: Transport) -> PushReport:
    update = await transport.prepare(path, (0, version))
    update = replace(update, buckets=tuple(make_buckets(load_snapshot(path), SMALL_BUCKET_BYTES)))
    return await transport.push(targets, update)


async def state(receiver: Receiver) -> tuple[str, str]:
    """(weight version, checksum of all weights)."""
    info, sums = await receiver.client.model_info(), await receiver.client.checksums()
    return info["weight_version"], sums["per_engine_checksum"]


async def checksum_of(path: Path, session: aiohttp.ClientSession) -> str:
    """The checksum of an engine that loaded ``path`` itself at its start."""
    with engines(path, 1) as [reference]:
        return (await EngineClient(reference.url, session).checksums())["per_engine_checksum"]


@pytest.mark.parametrize("name", ["collective", "disk"])
async def test_after_a_push_every_engine_has_the_very_bits_of_the_snapshot(
    name: str,
    fleet: list[EngineProcess],
    digits_model: Path,
    tmp_path: Path,
    session: aiohttp.ClientSession,
) -> None:
    path = snapshot_of(digits_model, tmp_path, 3)
    targets = receivers(fleet, session)
    transport = make_transport(config(name), tmp_path)
    report = await push_path(targets, path, 3, transport)
    await transport.close()
    assert report.served == ("e0", "e1") and not report.failed
    assert report.n_bytes > 3 * SMALL_BUCKET_BYTES
    assert report.n_bytes == sum(t.nbytes for t in load_snapshot(path).values())
    expected = ("3", await checksum_of(path, session))
    assert [await state(target) for target in targets] == [expected, expected]


async def test_an_engine_that_a_transport_did_not_have_confirm_the_version_is_reported_and_not_served(
    fleet: list[EngineProcess], digits_model: Path, tmp_path: Path, session: aiohttp.ClientSession
) -> None:
    class Forgetful(Transport):
        async def carry(self, wave: Wave, update: Update) -> None:
            await wave.pause(session=False)

    targets = receivers(fleet, session)
    report = await push_path(targets, snapshot_of(digits_model, tmp_path, 5), 5, Forgetful(config("disk"), tmp_path))
    assert report.served == () and set(report.failed) == {"e0", "e1"}
    assert all("did not have it confirm version 5" in why for why in report.failed.values())


async def test_a_request_under_way_survives_pushes_and_knows_which_version_wrote_each_token(
    fleet: list[EngineProcess],
    digits_model: Path,
    tmp_path: Path,
    session: aiohttp.ClientSession,
    transport: Transport,
) -> None:
    targets = receivers(fleet, session)[:1]
    await push_path(targets, snapshot_of(digits_model, tmp_path, 1), 1, transport)
    body = {"input_ids": [1, 2, 3], "sampling_params": {"max_new_tokens": 200, "ignore_eos": True, "sampling_seed": 5}}
    request = asyncio.create_task(targets[0].client.generate(body))
    version = 1
    while not request.done() and version < 40:
        version += 1
        report = await push_path(targets, snapshot_of(digits_model, tmp_path, version), version, transport)
        assert not report.failed
    answer = await request
    assert isinstance(answer, dict)
    spans = answer["meta_info"]["weight_versions"]
    assert len(spans) > 1
    assert spans[0]["start"] == 0 and spans[-1]["end"] == len(answer["output_ids"]) == 200
    assert all(a["end"] == b["start"] for a, b in itertools.pairwise(spans))
    written = [int(span["version"]) for span in spans]
    assert written == sorted(set(written)) and written[-1] <= version


async def test_a_dead_engine_costs_the_others_nothing(
    digits_model: Path, tmp_path: Path, session: aiohttp.ClientSession, transport: Transport
) -> None:
    with engines(digits_model, 3) as started:
        targets = receivers(started, session)
        assert not (await push_path(targets, snapshot_of(digits_model, tmp_path, 1), 1, transport)).failed
        started[1].kill()  # while the group of the three is formed
        report = await push_path(targets, snapshot_of(digits_model, tmp_path, 2), 2, transport)
        assert report.served == ("e0", "e2")
        assert "engine e1" in report.failed["e1"]
        assert [(await state(t))[0] for t in (targets[0], targets[2])] == ["2", "2"]
        assert (await generated_version(targets[0])) == (await generated_version(targets[2])) == "2"


async def generated_version(receiver: Receiver) -> str:
    answer = await receiver.client.generate(
        {"input_ids": [1, 2], "sampling_params": {"max_new_tokens": 1}}, timeout=20.0
    )
    assert isinstance(answer, dict)
    return answer["meta_info"]["weight_version"]


async def test_an_engine_that_dies_in_the_middle_of_a_broadcast_is_left_out_of_the_next_round(
    digits_model: Path, tmp_path: Path, session: aiohttp.ClientSession, transport: Transport
) -> None:
    with engines(digits_model, 3) as started:
        targets = receivers(started, session)
        victim = targets[1].client

        async def die(**_: object) -> None:
            started[1].kill()
            raise EngineError("e1", "/update_weights_from_distributed", "connection lost")

        victim.update_from_distributed = die  # type: ignore[method-assign]  # the moment is what is staged, not the death
        report = await push_path(targets, snapshot_of(digits_model, tmp_path, 1), 1, transport)
        assert report.served == ("e0", "e2") and list(report.failed) == ["e1"]
        sums = {await state(t) for t in (targets[0], targets[2])}
        assert len(sums) == 1 and sums.pop()[0] == "1"


async def test_an_engine_that_hangs_is_reported_and_a_restart_of_it_catches_up(
    digits_model: Path, tmp_path: Path, session: aiohttp.ClientSession, transport: Transport
) -> None:
    with engines(digits_model, 2) as started:
        targets = receivers(started, session)
        transport.config = config(timeout_s=4)
        await push_path(targets, snapshot_of(digits_model, tmp_path, 1), 1, transport)
        started[0].freeze()
        report = await push_path(targets, snapshot_of(digits_model, tmp_path, 2), 2, transport)
        assert report.served == ("e1",) and "no answer within" in report.failed["e0"]
        started[0].thaw()
        transport.config = config()
        report = await push_path(targets, snapshot_of(digits_model, tmp_path, 3), 3, transport)
        assert report.served == ("e0", "e1")
        assert (await state(targets[0])) == (await state(targets[1]))


async def test_weights_that_the_engines_refuse_leave_them_running_and_reported(
    fleet: list[EngineProcess],
    digits_model: Path,
    tmp_path: Path,
    session: aiohttp.ClientSession,
    transport: Transport,
) -> None:
    targets = receivers(fleet, session)
    await push_path(targets, snapshot_of(digits_model, tmp_path, 1), 1, transport)
    misshapen = {name: torch.zeros(3, 3) for name in load_snapshot(digits_model)}
    report = await push_path(targets, write_snapshot(tmp_path, 2, 0, misshapen, str(digits_model)), 2, transport)
    assert not report.served and set(report.failed) == {"e0", "e1"}
    report = await push_path(targets, snapshot_of(digits_model, tmp_path, 3), 3, transport)
    assert report.served == ("e0", "e1")
    assert [await generated_version(target) for target in targets] == ["3", "3"]


async def test_an_engine_left_paused_in_a_session_by_a_killed_sender_is_taken_over(
    fleet: list[EngineProcess],
    digits_model: Path,
    tmp_path: Path,
    session: aiohttp.ClientSession,
    transport: Transport,
) -> None:
    targets = receivers(fleet, session)
    await targets[0].client.pause("retract")
    await targets[0].client.begin_update()
    report = await push_path(targets, snapshot_of(digits_model, tmp_path, 5), 5, transport)
    assert report.served == ("e0", "e1")
    assert await generated_version(targets[0]) == "5"


async def test_a_group_without_one_of_its_members_fails_at_once_and_names_it(
    fleet: list[EngineProcess], session: aiohttp.ClientSession
) -> None:
    nobody = Receiver("ghost", EngineClient("http://127.0.0.1:9", session, name="ghost"))
    with pytest.raises(GroupError, match="engine ghost, /init_weights_update_group") as caught:
        await WeightGroup.form([*receivers(fleet, session), nobody], "gloo", 20.0)
    assert list(caught.value.refusals) == ["ghost"]
    for target in receivers(fleet, session):  # the others wait for nobody any more
        await target.client.model_info(timeout=5.0)
        await generated_version(target)


async def test_an_engine_waits_for_a_group_no_longer_than_its_sender_is_in_that_attempt(
    fleet: list[EngineProcess], session: aiohttp.ClientSession
) -> None:
    target = receivers(fleet, session)[0]
    # a store at which nobody but the engine arrives
    store = TCPStore("127.0.0.1", 0, 2, True, wait_for_workers=False)

    async def joining(name: str) -> None:
        where = {"address": "127.0.0.1", "port": store.port, "rank_offset": 1, "world_size": 2}
        await target.client.init_group(**where, group=name, backend="gloo", timeout=GROUP_TIMEOUT_S)

    async def begun(name: str) -> asyncio.Task[None]:
        task = asyncio.create_task(joining(name))
        async with asyncio.timeout(60):
            while _arrived(store, name) != {1}:
                assert not task.done()
                await asyncio.sleep(0.01)
        return task

    given_up = await begun("given up")
    await target.client.destroy_group("given up")
    with pytest.raises(EngineError, match=r"HTTP 400.*the sender gave it up while group given up was waited for"):
        await given_up
    overtaken = await begun("overtaken")
    group = await WeightGroup.form([target], "gloo", 20.0)
    with pytest.raises(EngineError, match=r"HTTP 400.*another group is formed"):
        await overtaken
    await group.leave()


async def test_an_engine_error_names_the_engine_the_endpoint_and_the_answer(
    fleet: list[EngineProcess], session: aiohttp.ClientSession
) -> None:
    client = EngineClient(fleet[0].url, session, name="e0")
    with pytest.raises(EngineError, match=r"engine e0, /destroy_weights_update_group: HTTP 400") as caught:
        await client.destroy_group("no such group")
    assert caught.value.status == 400
    await client.health()
    await client.flush()
    await client.abort("unknown")
    await client.set_version("7")
    assert (await client.model_info())["weight_version"] == "7"


def test_requests_in_place_share_no_prefix_cache() -> None:
    body = {"rid": ["a.0", "b.0"], "input_ids": [[1], [1]]}
    first, second = own_cache(body), own_cache(body)
    assert first["extra_key"] != second["extra_key"] and "extra_key" not in body
    assert {key: first[key] for key in body} == body
