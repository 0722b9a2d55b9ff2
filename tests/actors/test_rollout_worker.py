"""A rollout worker between a real ledger and a real engine: what it publishes, drops, leaves out and gives up."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from announcing import announce
from embedded_engines import EngineProcess, engines
from running_engine import Running, start

from actors.rollout import RolloutWorker
from actors.runtime.context import ActorContext
from actors.runtime.spec import ActorSpec
from bus import Bus, Ledger, balanced
from bus.codec import MASK, TOKENS, decode, pack, unpack
from bus.ledger_leases import Publication
from bus.messages import EngineServes, Event, Group, Metrics, Ticket, Transition
from miles_async.config.schema import Data, Model, Record, Reward, Rollout, RunConfig, Staleness
from miles_async.engines.client import EngineClient
from miles_async.engines.embedded.scheduler import Scheduler
from miles_async.engines.loads import read_report
from miles_async.recording.segments import Payloads, scan
from miles_async.text.tokenizer import Tokenizer

DEADLINE_S = 60.0
SAMPLES = 3

FUNCTIONS = """
import time

from miles_async.rollout import single_turn

def number(group_id):
    return int(group_id.split("-")[1])

def same_in_even_groups(sample):
    return float(sample.index) if number(sample.group_id) % 2 else 0.5

def slow(sample):
    time.sleep(0.2)
    return 0.5

def unlucky(sample):
    if sample.index == 1:
        raise OSError("no grader")
    return 0.1 * sample.index

async def broken(ticket, context):
    raise LookupError("no such sandbox")

async def outside(ticket, context):
    return await context.ask({"input_ids": [[3, 2], [-1]], "rid": ["a", "b"], "sampling_params": {}})

def no_first(samples):
    return [sample.index != 0 for sample in samples]

def squared(samples):
    return [sample.reward**2 for sample in samples]

def no_list(samples):
    return 3
"""


@pytest.fixture(scope="module")
def engine(digits_model: Path) -> Iterator[EngineProcess]:
    with engines(digits_model, 1) as (one,):
        yield one


@pytest.fixture
def functions(tmp_path: Path) -> Path:
    path = tmp_path / "my_functions.py"
    path.write_text(FUNCTIONS)
    return path


@contextlib.asynccontextmanager
async def working(
    bus: Bus,
    model: Path,
    engine: EngineProcess | Running,
    groups: int,
    *,
    reward: dict[str, Any] | None = None,
    record: tuple[str, Path] = ("off", Path()),
    staleness: Staleness | None = None,
    **rollout: Any,
) -> AsyncIterator[tuple[RolloutWorker, Ledger]]:
    """A worker at its work on ``groups`` tickets; it stops in order at the end. ``record``: its level, the run's directory."""
    config = RunConfig(
        model=Model(hf_checkpoint=str(model)),
        data=Data(prompt_data="none"),
        rollout=Rollout(
            **{"n_samples_per_prompt": SAMPLES, "rollout_max_response_len": 8, "max_attempts": 2} | rollout
        ),
        reward=Reward(**reward or {}),
        record=Record(level=record[0]),
        staleness=staleness or Staleness(),
    )
    ledger, tokenizer = Ledger(bus), Tokenizer(model)
    await ledger.prepare()
    await bus.set_address("router", engine.url)
    await ledger.admit(
        [
            Ticket(
                group_id=f"0-{i}-0",
                prompt_tokens=pack(tokenizer.encode(f"{i}>3>"), TOKENS),
                sampling_seed=10 * i,
                label=str(i) * 3,
            )
            for i in range(groups)
        ],
        limit=99,
        position=0,
    )
    spec = ActorSpec("rollout-0", "rollout", 0, "", config, record[1], str(model), "", bus.run_id, 1)
    worker = RolloutWorker(ActorContext(spec, bus))
    async with asyncio.timeout(DEADLINE_S):
        run = asyncio.create_task(worker.run())
        try:
            yield worker, ledger
            worker.ctx.stop.set()
            await run
        finally:
            run.cancel()


async def until(ledger: Ledger, holds: Callable[[dict[str, int]], bool]) -> dict[str, int]:
    """The counts, once they hold what they should; at most ``DEADLINE_S``."""
    cursors: Any = {"events": "0"}
    while not holds(counts := await ledger.counts()):
        await ledger.bus.wait_for_news(cursors)
    assert balanced(counts)
    return counts


async def published(ledger: Ledger) -> list[Group]:
    ready, _ = await ledger.ready_groups("0", block_ms=0)
    return await ledger.payloads([group.payload_key for group in ready])


def kept(run_dir: Path) -> dict[str, tuple[str, Group]]:
    """The outcome and the payload of each group in the record."""
    payloads = Payloads()
    places = [found for file in sorted((run_dir / "record").glob("*.seg")) for found in scan(file)]
    return {entry.group_id: (entry.outcome, decode(payloads.read(place), Group)) for entry, place in places}


async def lost(bus: Bus) -> list[dict[str, Any]]:
    return [event.data for event in (await bus.read("events", Event, "0"))[0] if event.kind == "sample_lost"]


async def test_a_group_that_teaches_nothing_is_dropped_with_its_reason_and_the_others_are_published(
    bus: Bus, digits_model: Path, engine: EngineProcess, functions: Path
) -> None:
    reward = {"rm_type": f"{functions}:same_in_even_groups"}
    async with working(bus, digits_model, engine, 5, reward=reward, dynamic_sampling_filter="nonzero_std") as (
        _,
        ledger,
    ):
        counts = await until(ledger, lambda c: c["ready"] + c["dropped"] == 5)
        assert (counts["ready"], counts["dropped:zero_std"]) == (2, 3)
        assert sorted(group.group_id for group in await published(ledger)) == ["0-1-0", "0-3-0"]
    drops = [t for t in (await bus.read("events", Transition, "0"))[0] if t.kind == "dropped"]
    assert all(
        t.reason == "zero_std" and t.detail == "rewards 0.5, 0.5, 0.5" and len(t.lengths) == SAMPLES for t in drops
    )
    assert {t.by for t in drops} == {"rollout-0/1"}


@pytest.mark.parametrize("level", ["published", "all"])
async def test_what_is_published_is_kept_and_what_a_filter_refuses_where_all_is(
    level: str, bus: Bus, digits_model: Path, engine: EngineProcess, functions: Path, tmp_path: Path
) -> None:
    reward, refusing = {"rm_type": f"{functions}:same_in_even_groups"}, {"dynamic_sampling_filter": "nonzero_std"}
    async with working(bus, digits_model, engine, 5, reward=reward, record=(level, tmp_path), **refusing) as (
        _,
        ledger,
    ):
        await until(ledger, lambda c: c["ready"] + c["dropped"] == 5)
        groups = {group.group_id: ("published", group) for group in await published(ledger)}
    found = kept(tmp_path)
    refused = {group_id: outcome for group_id, (outcome, _) in found.items() if group_id not in groups}
    assert {group_id: found[group_id] for group_id in groups} == groups and len(groups) == 2
    assert refused == ({f"0-{i}-0": "zero_std" for i in (0, 2, 4)} if level == "all" else {})


async def test_a_group_says_when_its_last_token_was_there_and_when_it_was_graded(
    bus: Bus, digits_model: Path, engine: EngineProcess, functions: Path
) -> None:
    async with working(bus, digits_model, engine, 2, reward={"rm_type": f"{functions}:slow"}) as (_, ledger):
        await until(ledger, lambda c: c["ready"] == 2)
        groups = await published(ledger)
    assert all(group.started < group.generated < group.finished - 0.19 for group in groups)


async def test_a_group_is_kept_before_it_is_published(
    bus: Bus, digits_model: Path, engine: EngineProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with working(bus, digits_model, engine, 0, record=("published", tmp_path)) as (worker, ledger):
        seen = list[bool]()
        publish = worker.publisher.publish

        async def watched(publication: Publication) -> bool:
            seen.append(publication.group.group_id in kept(tmp_path))
            return await publish(publication)

        monkeypatch.setattr(worker.publisher, "publish", watched)
        prompt = pack(worker.tokenizer.encode("1>3>"), TOKENS)
        tickets = [Ticket(group_id=f"0-{i}-0", prompt_tokens=prompt, sampling_seed=i, label="1") for i in range(3)]
        await ledger.admit(tickets, limit=9, position=0)
        await until(ledger, lambda c: c["ready"] == 3)
    assert seen == [True] * 3


async def test_a_disk_that_takes_no_record_costs_the_record_and_not_the_group(
    bus: Bus, digits_model: Path, engine: EngineProcess, tmp_path: Path
) -> None:
    (tmp_path / "record").write_text("in the way")
    async with working(bus, digits_model, engine, 3, record=("published", tmp_path)) as (_, ledger):
        await until(ledger, lambda c: c["ready"] == 3)
    told = [e.data for e in (await bus.read("events", Event, "0"))[0] if e.kind == "group_not_recorded"]
    assert len(told) == 1 and "record" in told[0]["cause"]


async def test_a_grader_that_fails_costs_one_sample_and_its_group_is_published_without_it(
    bus: Bus, digits_model: Path, engine: EngineProcess, functions: Path
) -> None:
    async with working(bus, digits_model, engine, 2, reward={"rm_type": f"{functions}:unlucky"}) as (_, ledger):
        await until(ledger, lambda c: c["ready"] == 2)
        groups = await published(ledger)
    assert [[sample.index for sample in group.samples] for group in groups] == [[0, 2], [0, 2]]
    assert [[round(sample.reward, 3) for sample in group.samples] for group in groups] == [[0.0, 0.2]] * 2
    events = await lost(bus)
    assert sorted((event["group"], event["rollout"], event["reason"]) for event in events) == [
        ("0-0-0", 1, "reward_error"),
        ("0-1-0", 1, "reward_error"),
    ]
    assert all("no grader" in event["detail"] for event in events)


async def test_samples_that_are_filtered_out_are_masked_and_rewards_are_processed_on_the_way_to_the_learner(
    bus: Bus, digits_model: Path, engine: EngineProcess, functions: Path
) -> None:
    reward = {"rm_type": f"{functions}:same_in_even_groups", "reward_post_process": f"{functions}:squared"}
    sample_filter = f"{functions}:no_first"
    async with working(bus, digits_model, engine, 2, reward=reward, sample_filter=sample_filter) as (_, ledger):
        await until(ledger, lambda c: c["ready"] == 2)
        groups = {group.group_id: group for group in await published(ledger)}
    assert [sample.reward for sample in groups["0-1-0"].samples] == [0.0, 1.0, 4.0]
    assert [sample.reward_parts["raw"] for sample in groups["0-1-0"].samples] == [0.0, 1.0, 2.0]
    for group in groups.values():
        assert [bool(unpack(sample.loss_mask, MASK).any()) for sample in group.samples] == [False, True, True]


@pytest.mark.parametrize(
    ("rollout", "reason", "detail"),
    [
        ({"rollout_function": "broken"}, "rollout_error", "LookupError: no such sandbox"),
        (
            {"rollout_function": "outside"},
            "generate_error",
            "not sent: input_ids of prompt 1: token id -1 at position 0",
        ),
        ({"sample_filter": "no_list"}, "filter_error", "rollout.sample_filter returned 3"),
    ],
)
async def test_a_function_of_the_users_that_fails_costs_attempts_and_not_the_worker(
    bus: Bus,
    digits_model: Path,
    engine: EngineProcess,
    functions: Path,
    rollout: dict[str, str],
    reason: str,
    detail: str,
) -> None:
    named = {key: f"{functions}:{name}" for key, name in rollout.items()}
    async with working(bus, digits_model, engine, 2, **named) as (_, ledger):
        counts = await until(ledger, lambda c: c["dropped"] == 2)
        assert counts[f"dropped:{reason}"] == 2
    letters, _ = await ledger.dead_letters("0")
    assert all(len(letter.causes) == 2 and detail in letter.causes[0] for letter, _ in letters)


async def test_work_that_nobody_wants_any_more_is_ended_and_the_worker_goes_on(
    bus: Bus, digits_model: Path, engine: EngineProcess
) -> None:
    async with aiohttp.ClientSession() as session:
        client = EngineClient(engine.url, session)
        await client.pause("in_place")  # whatever is asked for stays in flight
        async with working(bus, digits_model, engine, 3, lease_s=0.4) as (worker, ledger):
            await until(ledger, lambda c: c["in_flight"] == 3)
            assert await ledger.drop("0-1-0", "surplus")
            while len(worker.in_flight) > 2:
                await asyncio.wait(worker.in_flight, return_when=asyncio.FIRST_COMPLETED)
                await asyncio.sleep(0)
            assert {claimed.ticket.group_id for claimed in worker.in_flight.values()} == {"0-0-0", "0-2-0"}
            await client.resume()
            counts = await until(ledger, lambda c: c["ready"] == 2)
            assert (counts["dropped:surplus"], counts["in_flight"]) == (1, 0)
        events = [event.kind for event in (await bus.read("events", Event, "0"))[0]]
        assert "late_publication_refused" not in events


async def test_one_sample_at_a_time_gives_the_group_that_one_request_gives(
    bus: Bus, digits_model: Path, engine: EngineProcess
) -> None:
    async with working(bus, digits_model, engine, 2) as (_, ledger):
        await until(ledger, lambda c: c["ready"] == 2)
        together = {group.group_id: [sample.tokens for sample in group.samples] for group in await published(ledger)}
    await bus.redis.delete(*await bus.redis.keys(bus.key("*")))
    async with working(bus, digits_model, engine, 2, rollout_function="per_sample") as (_, ledger):
        await until(ledger, lambda c: c["ready"] == 2)
        singly = {group.group_id: [sample.tokens for sample in group.samples] for group in await published(ledger)}
    assert singly == together


async def test_samples_called_back_under_pressure_leave_the_engine_and_their_groups_are_made_at_the_first_attempt(
    bus: Bus, digits_model: Path, engine: EngineProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("actors.rollout_requests.LOOK_S", 3600.0)  # the one look at the load is the test's own
    async with aiohttp.ClientSession() as session:

        async def waiting() -> int:
            async with session.get(engine.url + "/v1/loads") as response:
                report = read_report(await response.json())
                assert report is not None and report.waiting is not None
                return report.waiting

        client = EngineClient(engine.url, session)
        await client.pause("in_place")  # whatever is asked for stays in flight
        rollout = {"rollout_function": "per_sample", "adaptive_in_flight": True, "max_samples_in_flight": 4 * SAMPLES}
        async with working(bus, digits_model, engine, 5, **rollout) as (worker, ledger):
            requests = worker.requests
            while await waiting() < 4 * SAMPLES:
                pass

            async def loads(timeout: float) -> Any:
                return {"engines": [{"engine": "e", "running": 1, "waiting": 12, "kv_usage": 0.99}]}

            monkeypatch.setattr(requests.client, "fleet_loads", loads)
            assert requests.policy is not None
            await requests._follow(requests.policy)
            while requests.slots.in_flight > requests.slots.limit:
                await waiting()
            assert requests.slots.limit == 9 and requests.slots.canceled == requests.slots.waiting == 3
            assert await waiting() == 9 and (await ledger.counts())["in_flight"] == 4
            await client.resume()
            await until(ledger, lambda c: c["ready"] == 5)
            assert all(len(group.samples) == SAMPLES for group in await published(ledger))
    assert "failed" not in {transition.kind for transition in (await bus.read("events", Transition, "0"))[0]}
    reported = (await bus.read("metrics", Metrics, "0"))[0][-1].values
    assert reported["rollout/canceled"] == 3 and reported["rollout/in_flight_samples"] == 0
    assert 0 <= reported["rollout/tail_share"] <= 1


class Paused:
    """An engine in this process that pauses by itself, as an update would do it, once it has sampled ``tokens``."""

    def __init__(self, tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sampled, step = 0, Scheduler.step

        def stepped(scheduler: Scheduler) -> Any:
            output = step(scheduler)
            if self.sampled < tokens <= scheduler.generated_tokens:
                scheduler.pause("retract")
            self.sampled = scheduler.generated_tokens
            return output

        monkeypatch.setattr(Scheduler, "step", stepped)


@contextlib.asynccontextmanager
async def serving_version_0(bus: Bus, model: Path) -> AsyncIterator[Running]:
    async with aiohttp.ClientSession() as session:
        engine = await start(model, session, weight_version="0")
        await announce(bus, 0)
        serves = EngineServes(engine="engine-0", url=engine.url, incarnation=1, version=0)
        await bus.publish("weights", serves)
        try:
            yield engine
        finally:
            engine.stop.set()
            await engine.task


@pytest.mark.parametrize(("function", "too_old"), [("single_turn", "drop"), ("per_sample", "requeue")])
async def test_a_group_that_is_too_old_for_any_step_is_ended_while_its_engine_is_paused_and_computes_nothing_more(
    bus: Bus, digits_model: Path, monkeypatch: pytest.MonkeyPatch, function: str, too_old: Any
) -> None:
    paused, rollout = Paused(2 * SAMPLES, monkeypatch), {"rollout_function": function}
    bound = Staleness(policy="drop", max_lag=2, too_old=too_old)
    async with (
        serving_version_0(bus, digits_model) as engine,
        working(bus, digits_model, engine, 2, staleness=bound, **rollout) as (_, ledger),
    ):
        await engine.until(num_running_reqs=0, num_waiting_reqs=2 * SAMPLES)
        await announce(bus, 2)
        await announce(bus, 3)
        counts = await until(ledger, lambda c: c["dropped"] == 2)
        assert counts["dropped:stale_in_flight"] == 2
        await engine.until(num_waiting_reqs=0)
        made = paused.sampled
        await engine.call("/continue_generation", {})
        assert await engine.generate(sampling_params={"max_new_tokens": 1})
        assert paused.sampled == made + 1  # nothing but that
    found = [t for t in (await bus.read("events", Transition, "0"))[0] if t.kind in ("failed", "dropped")]
    said = "it was ended when the learner had reached version 3"
    assert [t.detail.partition("; ")[0] for t in found] == [said] * 2
    assert sorted(await ledger.waiting_again(9)) == (["0-0-1", "0-1-1"] if too_old == "requeue" else [])
    assert await lost(bus) == []


async def test_a_group_of_which_newer_tokens_can_be_trained_goes_on_behind_the_pause(
    bus: Bus, digits_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Paused(2 * SAMPLES, monkeypatch)
    bound = Staleness(policy="token_mask", max_lag=2)
    async with (
        serving_version_0(bus, digits_model) as engine,
        working(bus, digits_model, engine, 2, staleness=bound) as (worker, ledger),
    ):
        await engine.until(num_waiting_reqs=2 * SAMPLES)
        await announce(bus, 3)
        while worker.requests.published_versions.heard.learner != 3:
            await engine.load()
        await engine.call("/continue_generation", {})
        await until(ledger, lambda c: c["ready"] == 2)
        assert worker.requests.slots.canceled == 0


async def test_a_request_that_had_no_token_yet_is_asked_again_and_costs_no_attempt(
    bus: Bus, digits_model: Path
) -> None:
    bound = Staleness(policy="drop", max_lag=2)
    async with serving_version_0(bus, digits_model) as engine:
        await engine.call("/pause_generation", {"mode": "retract"})
        async with working(bus, digits_model, engine, 2, staleness=bound) as (worker, ledger):
            slots = worker.requests.slots
            await engine.until(num_waiting_reqs=2 * SAMPLES)
            await announce(bus, 3)
            while slots.canceled < 2 * SAMPLES or any(slot.canceled for slot in slots._held):
                await engine.load()
            assert (await ledger.counts())["in_flight"] == 2
            await engine.call("/continue_generation", {})
            await until(ledger, lambda c: c["ready"] == 2)
    assert "failed" not in {transition.kind for transition in (await bus.read("events", Transition, "0"))[0]}
