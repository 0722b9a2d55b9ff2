"""Broadcaster: brings the learner's newest weights to every engine while the others keep generating.

    Learner ──Snapshot──► Broadcaster ══ NCCL / gloo ══► engines        reads  "weights": Snapshot, EngineUp, EngineDown
    engine hosts ──EngineUp──►  │                                       writes "weights", the ledger of versions, as
                                └──EngineServes──► router, dealer              announcements.py has it; metrics

Invariants: a version is announced only after the engine confirmed it; an engine that comes late or comes back is brought
to the newest version before anybody sends it work; a dead engine is reported and costs the others nothing; the learner
is in no collective, so nothing here can hold it up; killed at any point, this actor starts again from the stream (it
then updates every engine, since what an engine was doing when its sender died is not known); what is said of an engine
that this run does not have, or of weights that are not there, is refused.
"""

from __future__ import annotations

import asyncio
import math
import time
from dataclasses import replace
from pathlib import Path

from actors.announcements import Announcements
from actors.comparison import Comparison
from actors.learner_offers import Unseen, ask_again
from actors.runtime.context import ActorContext
from bus import SnapshotLedger
from bus.messages import EngineDown, EngineUp, Message, Snapshot
from bus.waits import WaitKind
from miles_async.config.secrets import resolve
from miles_async.engines.client import EngineClient, EngineError
from miles_async.engines.kinds.table import addresses_of
from miles_async.engines.lean_client import LeanEngineClient
from miles_async.router.addresses import host_and_port, is_of_run
from miles_async.weights.fleet import Fleet, Member, key, next_wave, wave_partition
from miles_async.weights.push import probe
from miles_async.weights.snapshot import SnapshotError, has_weights
from miles_async.weights.transports.table import make_transport, prepared
from miles_async.weights.update import PushReport, Receiver, Update
from miles_async.weights.verify import check, roots_of

READ_BLOCK_MS = 500
PROBE_TIMEOUT_S = 5.0
MAX_RANKS = 1 << 16  # of an engine


class Broadcaster:
    """The actor: one task folds the stream into the fleet, the other updates wave after wave."""

    role = "broadcaster"

    def __init__(self, ctx: ActorContext) -> None:
        self.ctx = ctx
        self.config = ctx.config.weights
        self.fleet = Fleet()
        self.told = Announcements(ctx, self.fleet)
        self.snapshots = SnapshotLedger(ctx.bus)
        self.transport = make_transport(ctx.config, ctx.run_dir)
        self.comparison = Comparison(ctx, self.fleet, self.told, self._client)
        self._news = asyncio.Event()
        self._update: Update | None = None
        self._heard: dict[tuple[int, int], float] = {}  # when each snapshot was announced that is not old yet
        self._unseen = Unseen(ctx, self.snapshots)
        self._clients: dict[tuple[str, str], LeanEngineClient] = {}  # by name and address
        self._api_key = resolve("engine.api_key", ctx.config.engine.api_key)
        self._addresses = addresses_of(ctx.config.engine)

    async def run(self) -> None:
        try:
            cursor = await self._read_history()
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._follow(cursor))  # ends by itself: a blocking read may swallow a cancel
                duties = [tasks.create_task(duty) for duty in (self._update_all(), self._revive(), self.told.mend())]
                await self.ctx.stop.wait()
                for duty in duties:
                    duty.cancel()
        finally:
            await self.transport.close()
            for client in self._clients.values():
                client.close()

    # what the stream says

    async def _read_history(self) -> str:
        """Fold what was said before this process began; forget engines of that time that do not answer any more."""
        cursor, messages = "0", [Message()]
        last: Snapshot | None = None
        while messages:
            messages, cursor = await self.ctx.bus.read("weights", (Snapshot, EngineUp, EngineDown), cursor, block_ms=1)
            for message in messages:
                last = message if isinstance(message, Snapshot) else last
                # old snapshots have been removed since: no reason to refuse what was said of them
                if isinstance(message, Snapshot) and not has_weights(message.path):
                    continue
                if await self._is_ours(message):
                    self.fleet.fold(message)
        if last is not None and not has_weights(last.path):
            await self._unseen.ask_for(last)
        self.told.resume(await self.ctx.engine_states())
        alive = [member for member in self.fleet.members.values() if not member.down]
        await asyncio.gather(*(self._down_if_gone(member) for member in alive))
        return cursor

    async def _down_if_gone(self, member: Member) -> None:
        try:
            await self._client(member).model_info(timeout=PROBE_TIMEOUT_S)
        except EngineError as error:
            await self.told.down(member, str(error))

    async def _follow(self, cursor: str) -> None:
        kinds = (Snapshot, EngineUp, EngineDown)
        while not self.ctx.stop.is_set():
            messages, cursor = await self.ctx.bus.read("weights", kinds, cursor, block_ms=READ_BLOCK_MS)
            for message in messages:
                if isinstance(message, Snapshot) and not has_weights(message.path):
                    await self._unseen.ask_for(message)
                    continue
                if not await self._is_ours(message):
                    continue
                if isinstance(message, EngineUp) and await self.ctx.engine_leaves(message.engine):
                    continue  # it was still starting when it was told to leave
                if isinstance(message, EngineUp | EngineDown):
                    await self.told.hear(message)
                else:
                    self.fleet.fold(message)
                    self._heard[key(message)] = time.monotonic()
            if messages:
                self._news.set()

    async def _is_ours(self, message: Message) -> bool:
        if isinstance(message, Snapshot):
            return await self.snapshots.knows(message)
        if isinstance(message, EngineUp | EngineDown) and not await self.ctx.has_engine(message.engine):
            self.ctx.bus.refuse("weights", message.engine, ValueError("no engine of this run"))
            return False
        if isinstance(message, EngineUp) and not self._can_be_at(message.url):
            self.ctx.bus.refuse("weights", message.url, ValueError("no place for an engine of this run"))
            return False
        return True

    def _can_be_at(self, url: str) -> bool:
        return is_of_run(url, self._addresses, self.ctx.spec.site.is_ours) and host_and_port(url) is not None

    async def _revive(self) -> None:
        """An engine that was reported gone and answers after all is brought back like a new one."""
        while not self.ctx.stop.is_set():
            await asyncio.sleep(self.ctx.config.router.health_interval_s)
            for member in [m for m in self.fleet.members.values() if m.down]:
                if await self.ctx.engine_leaves(member.name):
                    continue
                try:
                    await self._client(member).model_info(timeout=PROBE_TIMEOUT_S)
                except EngineError:
                    continue
                if await self.told.back(member):
                    self._news.set()

    # what the engines get

    async def _update_all(self) -> None:
        """One wave after the other, always to the newest version there is."""
        while not self.ctx.stop.is_set():
            wave = next_wave(self.fleet, self.config.update_waves)
            if not wave:
                self._news.clear()
                has_use = self.fleet.newest is None or self.fleet.members
                with self.ctx.waiting(WaitKind.SNAPSHOT if has_use else WaitKind.ENGINE):
                    await self._news.wait()
                continue
            self.told.wave = {member.name for member in wave}
            await self._update_wave(wave)
            self.told.wave = set()

    async def _update_wave(self, wave: list[Member]) -> None:
        snapshot = self.fleet.newest
        assert snapshot is not None, "next_wave gives nothing without a snapshot"
        wave = await self._announce_current(wave, snapshot)
        update, wave = await self._make_ready(wave, snapshot)
        if update is None or not wave:
            return
        if self.transport.COPIED_BY:
            copies = await self._copies(wave, snapshot)
            wave = [member for member in wave if member.name in copies]
            update = replace(update, copies=copies)
        wave = [member for member in wave if await self.told.updating(member)]
        if not wave:
            return
        update = replace(update, follows=all(member.served is not None for member in wave))
        receivers = [await self._receiver(member) for member in wave]
        waves = [[await self._receiver(m) for m in w] for w in wave_partition(self.fleet, self.config.update_waves)]
        self.transport.form([receivers, *waves])
        with self.ctx.waiting(WaitKind.UPDATE, [m.name for m in wave], version=snapshot.version):
            report = await self.transport.push(receivers, update, probed=True)
        await self.comparison.compare([member for member in wave if member.name in report.served], snapshot, update)
        for member in wave:
            if member.name in report.served:
                await self.told.serves(member, snapshot)
            else:
                await self.told.down(member, report.failed.get(member.name, "weights.transport left it out"))
        await self._report(report, snapshot)

    async def _make_ready(self, wave: list[Member], snapshot: Snapshot) -> tuple[Update | None, list[Member]]:
        """The weights, and the engines that answer: one that hangs should cost the others no pause at all."""
        if not wave:
            return None, wave
        asked = wave if self.transport.ASKS_FIRST else []
        update, silent = await asyncio.gather(self._load(snapshot), self._silent(asked))
        for member in wave:
            if member.name in silent:
                await self.told.down(member, silent[member.name])
        return update, [member for member in wave if member.name not in silent]

    async def _silent(self, wave: list[Member]) -> dict[str, str]:
        """Which engines of ``wave`` do not answer, and why."""
        receivers = [await self._receiver(member) for member in wave]
        with self.ctx.waiting(WaitKind.ANSWER, [member.name for member in wave]):
            return await probe(receivers, self.config)

    async def _copies(self, wave: list[Member], snapshot: Snapshot) -> dict[str, Path]:
        """Where the machine of each engine has its own copy of the version; those that get none are down."""
        names = [member.name for member in wave]
        with self.ctx.waiting(WaitKind.COPIES, names, copied_by=self.transport.COPIED_BY, version=snapshot.version):
            copies = await self.transport.deliver(names)
        for name, why in copies.asked.items():
            await self.ctx.event("full_copy", engine=name, version=snapshot.version, cause=why)
        for member in wave:
            if member.name in copies.failed:
                await self.told.down(member, copies.failed[member.name])
        return copies.paths

    async def _announce_current(self, wave: list[Member], snapshot: Snapshot) -> list[Member]:
        """Announce the engines that came with the right weights; give back the others.

        Only version 0 is right by its number alone: it is the checkpoint that engines load. A later number may have
        been made by another incarnation of the learner.
        """
        others: list[Member] = []
        for member in wave:
            serves = None
            if snapshot.version == member.version == 0 and member.fresh:
                try:
                    serves = (await self._client(member).model_info(timeout=PROBE_TIMEOUT_S)).get("weight_version")
                except EngineError as error:
                    await self.told.down(member, str(error))
                    continue
            if serves == "0":
                await self.told.serves(member, snapshot)
            else:
                others.append(member)
        return others

    async def _load(self, snapshot: Snapshot) -> Update | None:
        """The newest weights in buckets, or None if the snapshot is gone (the learner has a newer one by now)."""
        if self._update is None or (self._update.version, str(self._update.path)) != (snapshot.version, snapshot.path):
            self._update = None
            try:
                await asyncio.to_thread(check, snapshot, roots_of(self.ctx.config, self.ctx.run_dir))
                self._update = await prepared(self.transport, Path(snapshot.path), key(snapshot))
            except (SnapshotError, OSError) as error:
                kind = "snapshot_refused" if has_weights(snapshot.path) else "snapshot_gone"
                await self.ctx.event(kind, version=snapshot.version, cause=str(error))
                if self.fleet.newest is snapshot:  # else there are newer ones
                    self.fleet.newest = None
                    await ask_again(self.ctx, snapshot.version)
        return self._update

    def _client(self, member: Member) -> EngineClient:
        """With the connections that it has: an update is some seven calls of each engine."""
        where = member.name, member.url
        if where not in self._clients:
            self._clients[where] = LeanEngineClient(member.url, self._api_key, name=member.name)
        return self._clients[where]

    async def _receiver(self, member: Member) -> Receiver:
        """The engine as a member of groups; its tensor-parallel size is asked once."""
        client = self._client(member)
        if member.ranks is None:
            try:
                size = (await client.server_info(timeout=PROBE_TIMEOUT_S)).get("tp_size") or 1
                member.ranks = size if isinstance(size, int) and 0 < size < MAX_RANKS else 1
            except EngineError:
                return Receiver(member.name, client, 1)  # the push will find out what is wrong with it
        return Receiver(member.name, client, member.ranks)

    async def _report(self, report: PushReport, snapshot: Snapshot) -> None:
        self._heard = {k: when for k, when in self._heard.items() if k >= key(snapshot)}
        since = self._heard.get(key(snapshot), math.nan)  # of one that was announced to an earlier life it is not known
        newest = self.fleet.newest.version if self.fleet.newest is not None else report.version
        lags = [newest - m.version for m in self.fleet.members.values() if m.served is not None and not m.down]
        values = {
            "weights/update_s": report.seconds,
            "weights/bytes": float(report.n_bytes * len(report.served)),
            "weights/failed_engines": float(len(report.failed)),
            **self.transport.metrics(),
            "weights/publish_lag": float(max(lags, default=math.nan)),
            "weights/publish_s": time.monotonic() - since if report.served else math.nan,
            **{f"weights/paused_s/{name}": seconds for name, seconds in report.paused_s.items()},
        }
        await self.ctx.metrics(report.version, {key: value for key, value in values.items() if not math.isnan(value)})
