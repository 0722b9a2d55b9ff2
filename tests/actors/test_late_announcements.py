"""However late an actor gets to what it has decided of an engine: the ledger of versions, the stream and the router agree."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
import redis
from gated_bus import GatedRedis, Operation

from actors.announcements import Announcements
from actors.router import Router
from actors.runtime.context import ActorContext
from actors.runtime.spec import ActorSpec
from bus import Bus, EngineState, Roster, VersionLedger
from bus.codec import decode
from bus.messages import EngineDown, EngineServes, EngineUp, Message, Snapshot
from miles_async.config.schema import Data, Engine, Model, RunConfig
from miles_async.weights.fleet import Fleet, Member

URL = "http://127.0.0.1:1"
NAME = "engine-0"
_numbers = itertools.count()


class Stand:
    """A run of its own on the session's Redis; every client stands still before each of its commands."""

    def __init__(self, url: str, tmp_path: Path) -> None:
        self.redis = redis.Redis.from_url(url, protocol=2)
        self.bus = Bus(GatedRedis.from_url(url, protocol=2), f"late-{next(_numbers)}")
        self.ledger = VersionLedger(self.bus)
        config = RunConfig(
            model=Model(hf_checkpoint="none"), data=Data(prompt_data="none"), engine=Engine(num_engines=1)
        )
        spec = ActorSpec("broadcaster", "broadcaster", 0, "", config, tmp_path, "", "", self.bus.run_id, 1)
        self.ctx = ActorContext(spec, self.bus)
        self.fleet = Fleet()
        self.told = Announcements(self.ctx, self.fleet)

    def step(self, operation: Operation) -> None:
        """Let it do its next command."""
        assert operation.pending is not None
        args, options = operation.pending
        try:
            answer: Any = self.redis.execute_command(*args, **options)
        except redis.exceptions.ResponseError as error:
            answer = error
        operation.answer(answer)

    def run(self, call: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        operation = Operation(call)
        while operation.pending is not None:
            self.step(operation)
        if operation.error is not None:
            raise operation.error
        return operation.result

    def serving(self, incarnation: int = 1) -> Member:
        """An engine that serves version 1."""
        self.run(lambda: self.ledger.up(NAME, URL, incarnation, 0))
        up = self.messages()[-1]
        assert isinstance(up, EngineUp)
        self.run(lambda: self.told.hear(up))
        member = self.fleet.members[NAME]
        assert self.run(lambda: self.told.updating(member))
        self.run(lambda: self.told.serves(member, snapshot(1)))
        return member

    def line(self) -> EngineState:
        return self.run(self.bus.engines)[NAME]

    def messages(self) -> list[Message]:
        return [decode(fields[b"m"], Message) for _, fields in self.redis.xrange(self.bus.key("weights"))]


@pytest.fixture
def stand(redis_url: str, tmp_path: Path) -> Callable[[], Stand]:
    return lambda: Stand(redis_url, tmp_path)


def snapshot(version: int) -> Snapshot:
    return Snapshot(version=version, incarnation=1, path="nowhere")


def told_state(messages: list[Message]) -> tuple[str, int]:
    """What the stream says of the engine, read in order: up or down, and the version."""
    state, version = "down", -1
    for message in messages:
        if isinstance(message, EngineServes):
            state, version = "up", message.version
        elif isinstance(message, EngineUp | EngineDown):
            state = "down"
    return state, version


def test_a_late_announcement_does_not_revive_an_engine_that_is_down(stand: Callable[[], Stand]) -> None:
    """The broadcaster stands still before each of its commands in turn, and the engine goes down meanwhile."""
    stopped_before = 0
    while not announced_in_time(stand(), stopped_before):
        stopped_before += 1
    assert stopped_before >= 2  # else it has not stood still anywhere


def announced_in_time(scene: Stand, stopped_before: int) -> bool:
    """One announcement and one death. False: the announcement was late."""
    member = scene.serving()
    assert scene.run(lambda: scene.told.updating(member))
    announcement = Operation(lambda: scene.told.serves(member, snapshot(2)))
    for _ in range(stopped_before):
        if announcement.pending is not None:
            scene.step(announcement)
    in_time = announcement.pending is None
    scene.run(lambda: scene.ledger.down(NAME, "its process ended", 1))
    while announcement.pending is not None:
        scene.step(announcement)
    assert announcement.error is None and (in_time or member.down)
    assert scene.line().state == told_state(scene.messages())[0] == "down", stopped_before
    return in_time


def test_an_engine_gets_no_request_before_its_first_weights_are_confirmed(stand: Callable[[], Stand]) -> None:
    """Also one that comes back: it would sample with the weights that it started with, which may be many versions old."""
    scene = stand()
    router = Router(scene.ctx)

    def asked() -> bool:
        router._settle(scene.run(scene.bus.engines))
        return NAME in router.app.engines

    scene.run(lambda: scene.ledger.up(NAME, URL, 1, 0))
    up = scene.messages()[-1]
    assert isinstance(up, EngineUp)
    scene.run(lambda: scene.told.hear(up))
    member = scene.fleet.members[NAME]
    for version in (7, 8):
        assert not asked()
        assert scene.run(lambda: scene.told.updating(member))
        assert not asked(), "its first weights are under way"
        scene.run(lambda version=version: scene.told.serves(member, snapshot(version)))
        assert asked()
        assert scene.run(lambda: scene.told.updating(member)) and scene.line().state == "updating"
        assert asked()
        scene.run(lambda: scene.told.down(member, "silent"))
        assert not asked()
        assert scene.run(lambda: scene.told.back(member))


def test_late_news_of_a_death_do_not_take_out_an_engine_that_has_come_back(stand: Callable[[], Stand]) -> None:
    scene = stand()
    member = scene.serving()
    epoch = member.epoch
    assert scene.run(lambda: scene.ledger.down(NAME, "silent", 1, epoch))
    (down,) = [message for message in scene.messages() if isinstance(message, EngineDown)]
    scene.run(lambda: scene.told.hear(down))
    assert scene.run(lambda: scene.told.back(member))
    assert scene.line().state == "starting" and scene.line().epoch == member.epoch > epoch
    assert scene.run(lambda: scene.told.updating(member))
    scene.run(lambda: scene.told.serves(member, snapshot(2)))
    before = scene.messages()
    assert not scene.run(lambda: scene.ledger.down(NAME, "silent", 1, epoch))  # who saw it says so only now
    scene.run(lambda: scene.told.hear(down))  # and the broadcaster reads it only now
    assert scene.messages() == before and scene.line().state == "serving" and not member.down


def test_an_engine_that_started_again_while_its_death_was_told_is_not_announced_in_its_former_life(
    stand: Callable[[], Stand],
) -> None:
    scene = stand()
    member = scene.serving()
    late = Operation(lambda: scene.told.serves(member, snapshot(2)))
    scene.run(lambda: scene.ledger.down(NAME, "killed", 1))
    scene.run(lambda: scene.ledger.up(NAME, URL, 2, 0))
    while late.pending is not None:
        scene.step(late)
    line = scene.line()
    assert (line.incarnation, line.state, line.version) == (2, "starting", 0)
    assert told_state(scene.messages())[0] == "down"


def test_the_line_of_an_engine_that_was_added_again_is_not_taken_for_that_of_the_one_that_left(
    stand: Callable[[], Stand],
) -> None:
    scene = stand()
    member = scene.serving()
    scene.ctx.roster = Roster(frozenset({NAME}), frozenset({NAME}))
    member.down = True
    read = scene.run(scene.bus.engines)
    scene.run(lambda: scene.ledger.up(NAME, URL, 2, 0))  # after the broadcaster has read who leaves
    scene.run(lambda: scene.told.let_go(read))
    assert scene.line().incarnation == 2
    scene.run(lambda: scene.told.let_go({NAME: scene.line()}))
    assert scene.run(scene.bus.engines) == {}


@pytest.mark.parametrize("seed", range(40))
def test_the_stream_and_the_ledger_agree_whoever_is_stopped_wherever(seed: int, stand: Callable[[], Stand]) -> None:
    """Four clients change one engine, each stopped at random before any of its commands."""
    rng, scene = random.Random(seed), stand()
    line = scene.run(lambda: scene.ledger.up(NAME, URL, 1, 0))
    moves: list[Callable[[], Coroutine[Any, Any, Any]]] = [
        lambda: scene.ledger.move(NAME, line, "updating", 0),
        lambda: scene.ledger.move(NAME, line, "serving", rng.randrange(1, 9)),
        lambda: scene.ledger.down(NAME, "x", 1, line.epoch),
        lambda: scene.ledger.down(NAME, "x"),
        lambda: scene.ledger.back(NAME, line),
        lambda: scene.ledger.up(NAME, URL, rng.randrange(1, 3), 0),
    ]

    running: list[Operation] = []
    for _ in range(60):
        if len(running) < 4:
            running.append(Operation(rng.choice(moves)))
        operation = rng.choice(running)
        scene.step(operation)
        assert operation.error is None
        running = [operation for operation in running if operation.pending is not None]
        now, (state, version) = scene.line(), told_state(scene.messages())
        if now.state == "serving":
            assert (state, version) == ("up", now.version)
        elif now.state == "down":
            assert state == "down"
        if now.state == "serving" or rng.random() < 0.3:  # else they go on from what has passed
            line = now


async def test_a_router_sends_requests_only_where_the_ledger_says_that_they_are_served(
    bus: Bus, tmp_path: Path
) -> None:
    config = RunConfig(model=Model(hf_checkpoint="none"), data=Data(prompt_data="none"), engine=Engine(num_engines=1))
    router = Router(ActorContext(ActorSpec("router", "router", 0, "", config, tmp_path, "", "", bus.run_id, 1), bus))
    ledger, app = VersionLedger(bus), router.app

    async def look() -> list[tuple[str, int]]:
        router._settle(await router.ctx.engine_states())
        return [(worker.state, worker.version) for worker in app.engines.values()]

    line = await ledger.up(NAME, URL, 1, 0)
    assert await look() == []
    await ledger.move(NAME, line, "serving", 3)
    assert await look() == [("up", 3)]
    app.mark_dead(app.engines[NAME], "nobody listens")
    assert await look() == [("dead", 3)]  # the same life: what the ledger says is older than what was seen
    await ledger.down(NAME, *await first_death(router))
    assert await look() == []
    # what is said on the stream alone, however late, changes nothing
    await bus.publish("weights", EngineServes(engine=NAME, url=URL, incarnation=1, version=9, epoch=line.epoch))
    assert await look() == []
    back = await ledger.back(NAME, line)
    assert back is not None and await ledger.move(NAME, back, "serving", 3) is not None
    assert await look() == [("up", 3)]
    app.mark_dead(app.engines[NAME], "silent")
    await ledger.down(NAME, *await first_death(router))
    again = await ledger.back(NAME, back)
    assert again is not None and await ledger.move(NAME, again, "serving", 3) is not None
    assert await look() == [("up", 3)]  # the same URL, incarnation and version, in another life, between two looks
    await bus.redis.hdel(bus.key("engines"), NAME)
    assert await look() == []


async def first_death(router: Router) -> tuple[str, int, int]:
    name, why, incarnation, epoch = await router._deaths.get()
    assert name == NAME and epoch > 0
    return why, incarnation, epoch
