"""One run's bus with the broadcaster, the router and engines as actors on it, and snapshots as the learner writes them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
from announcing import announce
from embedded_engines import EngineProcess, snapshot_of

from actors.broadcaster import Broadcaster
from actors.engine import EngineHost
from actors.router import Router
from actors.runtime.context import ActorContext
from actors.runtime.spec import ActorSpec
from bus import Bus
from bus.messages import EngineDown, EngineServes, EngineUp, Message
from miles_async.config.schema import Data, Engine, Learner, Model, RunConfig, Weights
from miles_async.config.schema import Router as RouterConfig
from miles_async.weights.snapshot import choose_root, load_snapshot, write_snapshot

DEADLINE_S = 60.0


class Stage:
    """One run's bus, its snapshots, and what a test says and hears on it."""

    def __init__(self, bus: Bus, model: Path, run_dir: Path) -> None:
        self.bus, self.model, self.run_dir = bus, model, run_dir
        self.cursor = "0"
        self.heard: list[Message] = []
        self.weights = Weights(timeout_s=20.0, backend="gloo", snapshot_dir=str(run_dir / "snapshots"))
        self.learner = Learner()

    def context(self, role: str, name: str = "") -> ActorContext:
        config = RunConfig(
            model=Model(hf_checkpoint=str(self.model), device="cpu"),
            data=Data(prompt_data="unused"),
            weights=self.weights,
            learner=self.learner,
            router=RouterConfig(health_interval_s=0.5),
            engine=Engine(num_engines=3),
        )
        spec = ActorSpec(name or role, role, 0, "", config, self.run_dir, str(self.model), "", self.bus.run_id, 1)
        return ActorContext(spec, self.bus)

    @contextlib.asynccontextmanager
    async def running(
        self, kind: type[Broadcaster] | type[Router] | type[EngineHost], name: str = ""
    ) -> AsyncIterator[ActorContext]:
        """The actor, stopped in an orderly way at the end."""
        ctx = self.context(kind.role, name)
        task = asyncio.create_task(kind(ctx).run())
        try:
            yield ctx
        finally:
            ctx.stop.set()
            async with asyncio.timeout(DEADLINE_S):
                await task

    async def engine_up(self, name: str, engine: EngineProcess, incarnation: int = 1, version: int = 0) -> None:
        up = EngineUp(engine=name, url=engine.url, incarnation=incarnation, version=version)
        await self.bus.publish("weights", up)

    async def snapshot(self, version: int, incarnation: int = 1) -> None:
        root = choose_root(self.context("learner").config, self.run_dir)
        if version:
            path = snapshot_of(self.model, root, version, incarnation)
        else:
            path = write_snapshot(root, 0, incarnation, load_snapshot(self.model), str(self.model))
        await announce(self.bus, version, incarnation, path)

    async def hear(self, kind: type[EngineServes] | type[EngineDown], count: int = 1, **what: object) -> list[Message]:
        """Wait until ``count`` messages of ``kind`` with these fields have been heard; take them all."""
        async with asyncio.timeout(DEADLINE_S):
            while True:
                fitting = [
                    message
                    for message in self.heard
                    if isinstance(message, kind) and what.items() <= msgspec.structs.asdict(message).items()
                ]
                if len(fitting) >= count:
                    self.heard = [message for message in self.heard if message not in fitting]
                    return fitting
                more, self.cursor = await self.bus.read("weights", Message, self.cursor, block_ms=200)
                self.heard += more


def body(tokens: int) -> dict[str, object]:
    return {"input_ids": [1, 2, 3], "sampling_params": {"max_new_tokens": tokens, "ignore_eos": True}}
