"""Broadcaster: brings the learner's newest weights to every engine while the others keep generating.

    Learner ──Snapshot──► Broadcaster ══ NCCL / gloo ══► engines        reads  "weights": Snapshot, EngineUp, EngineDown
    engine hosts ──EngineUp──►  │                                       writes "weights": EngineServes, EngineDown;
                                └──EngineServes──► router, dealer              the ledger of versions; metrics

Invariants: a version is announced only after the engine confirmed it; an engine that comes late or comes back is brought
to the newest version before anybody sends it work; a dead engine is reported and costs the others nothing; the learner
is in no collective, so nothing here can hold it up; killed at any point, this actor starts again from the stream (it
then updates every engine, since what an engine was doing when its sender died is not known); what is said of an engine
that this run does not have, or of weights that are not there, is refused; a line of the ledger of versions that somebody
else has written over is written again.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Literal

import aiohttp

from actors.runtime.context import ActorContext
from bus import EngineState
from bus.messages import EngineDown, EngineServes, EngineUp, Message, Snapshot
from miles_async.engine_client import EngineClient, EngineError
from miles_async.secret import resolve
from miles_async.weights.check import Checks, bucket_sums, engine_sums
from miles_async.weights.delta_mirror import shared_dir
from miles_async.weights.delta_sender import Delivery, DeltaSender
from miles_async.weights.fleet import Fleet, Member, key, next_wave, wave_partition
from miles_async.weights.group import Receiver, WeightGroups, choose_backend
from miles_async.weights.push import PushReport, Update, prepare, probe, push
from miles_async.weights.snapshot import SnapshotError, has_weights

READ_BLOCK_MS = 500
PROBE_TIMEOUT_S = 5.0
MEND_S = 1.0  # how soon a damaged line of the ledger of versions is right again
MAX_RANKS = 1 << 16  # of an engine


class Broadcaster:
    """The actor: one task folds the stream into the fleet, the other updates wave after wave."""

    role = "broadcaster"

    def __init__(self, ctx: ActorContext) -> None:
        self.ctx = ctx
        self.config = ctx.config.weights
        self.fleet = Fleet()
        self.groups = WeightGroups(choose_backend(ctx.config))
        self.deltas: DeltaSender | None = None
        if self.config.transport == "disk_delta":
            self.deltas = DeltaSender(shared_dir(ctx.config, ctx.run_dir), self.config.timeout_s)
        self.checks = Checks(self.config.check_interval)
        self._news = asyncio.Event()
        self._update: Update | None = None
        self._wave: set[str] = set()  # engines that are being updated
        self._written: dict[str, EngineState] = {}
        self._api_key = resolve("engine.api_key", ctx.config.engine.api_key)

    async def run(self) -> None:
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector) as self.session:
            cursor = await self._read_history()
            try:
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(self._follow(cursor))  # ends by itself: a blocking read may swallow a cancel
                    duties = [tasks.create_task(duty) for duty in (self._update_all(), self._revive(), self._mend())]
                    await self.ctx.stop.wait()
                    for duty in duties:
                        duty.cancel()
            finally:
                await self.groups.close()

    # what the stream says

    async def _read_history(self) -> str:
        """Fold what was said before this process began; forget engines of that time that do not answer any more."""
        cursor, messages = "0", [Message()]
        while messages:
            messages, cursor = await self.ctx.bus.read("weights", (Snapshot, EngineUp, EngineDown), cursor, block_ms=1)
            for message in messages:
                # old snapshots have been removed since: no reason to refuse what was said of them
                if await self._is_ours(message) and not (
                    isinstance(message, Snapshot) and not has_weights(message.path)
                ):
                    self.fleet.fold(message)
        await asyncio.gather(*(self._forget_if_gone(member) for member in list(self.fleet.members.values())))
        for name, engine in (await self.ctx.engine_states()).items():
            if engine.state in ("serving", "updating"):
                self.fleet.assume_serving(name, engine.incarnation, engine.version)
        return cursor

    async def _forget_if_gone(self, member: Member) -> None:
        try:
            await self._client(member).model_info(timeout=PROBE_TIMEOUT_S)
        except EngineError as error:
            self.ctx.log.info("forgotten, from before: %s", error)
            self.fleet.members.pop(member.name, None)

    async def _follow(self, cursor: str) -> None:
        kinds = (Snapshot, EngineUp, EngineDown)
        while not self.ctx.stop.is_set():
            messages, cursor = await self.ctx.bus.read("weights", kinds, cursor, block_ms=READ_BLOCK_MS)
            for message in messages:
                if isinstance(message, Snapshot) and not has_weights(message.path):
                    self.ctx.bus.refuse("weights", message.path, SnapshotError("no weights lie there"))
                    continue
                if not await self._is_ours(message):
                    continue
                if isinstance(message, EngineUp) and await self.ctx.engine_leaves(message.engine):
                    continue  # it was still starting when it was told to leave
                self.fleet.fold(message)
                if isinstance(message, EngineUp):
                    await self._write_ledger(message.engine, "starting")
                elif isinstance(message, EngineDown):
                    await self._write_ledger(message.engine, "down")
            if messages:
                self._news.set()

    async def _is_ours(self, message: Message) -> bool:
        if isinstance(message, EngineUp | EngineDown) and not await self.ctx.has_engine(message.engine):
            self.ctx.bus.refuse("weights", message.engine, ValueError("no engine of this run"))
            return False
        return True

    async def _mend(self) -> None:
        """Keep the ledger of versions as we wrote it: without its lines nobody would be given work."""
        while not self.ctx.stop.is_set():
            await asyncio.sleep(MEND_S)
            lines = await self.ctx.engine_states()
            await self._let_go(lines)
            for name, ours in list(self._written.items()):
                line = lines.get(name)
                # a host that has started its engine again writes the first line of its new incarnation itself
                if self._written.get(name) is ours and (
                    line is None or (line.incarnation <= ours.incarnation and line != ours)
                ):
                    await self.ctx.bus.set_engine(name, ours.url, ours.incarnation, ours.version, ours.state)

    async def _let_go(self, lines: Collection[str]) -> None:
        """Forget the engines that leave, each when the router has said that it is down and no update is under way there.

        The supervisor ends an engine's process when its line is gone. Until it is down an engine that leaves is updated like
        any other: its last requests may take long, and nothing is admitted that an old version could make too stale.
        """
        for name in self.ctx.roster.leaving:
            member = self.fleet.members.get(name)
            if member is not None and member.served is None:  # no request has ever been sent there
                member.down = True
            if member is not None and (name in self._wave or not member.down):
                continue
            self.fleet.members.pop(name, None)
            self._written.pop(name, None)
            if name in lines:
                await self.ctx.bus.forget(name, ("engines",))

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
                if member.down and self.fleet.members.get(member.name) is member:
                    await self.ctx.event("engine_back", engine=member.name)
                    member.come_back()
                    self._news.set()

    # what the engines get

    async def _update_all(self) -> None:
        """One wave after the other, always to the newest version there is."""
        while not self.ctx.stop.is_set():
            wave = next_wave(self.fleet, self.config.update_waves)
            if not wave:
                self._news.clear()
                whom = "a snapshot of the learner" if self.fleet.newest is None or self.fleet.members else "an engine"
                with self.ctx.waiting(whom):
                    await self._news.wait()
                continue
            self._wave = {member.name for member in wave}
            await self._update_wave(wave)
            self._wave = set()

    async def _update_wave(self, wave: list[Member]) -> None:
        snapshot = self.fleet.newest
        assert snapshot is not None, "next_wave gives nothing without a snapshot"
        wave = await self._announce_current(wave, snapshot)
        update, wave = await self._make_ready(wave, snapshot)
        if update is None or not wave:
            return
        if self.deltas is not None:
            names = [member.name for member in wave]
            with self.ctx.waiting(f"the mirrors of {', '.join(names)} to have version {snapshot.version}"):
                delivery = await self.deltas.wait(names)
            wave = await self._settle(wave, delivery, snapshot)
            update = replace(update, copies=delivery.paths)
            if not wave:
                return
        for member in wave:
            await self._write_ledger(member.name, "updating")
        receivers = [await self._receiver(member) for member in wave]
        waves = [[await self._receiver(m) for m in w] for w in wave_partition(self.fleet, self.config.update_waves)]
        self.groups.keep_only([receivers, *waves])
        with self.ctx.waiting(f"engines {', '.join(m.name for m in wave)} to take version {snapshot.version}"):
            report = await push(receivers, update, self.groups, self.config, probed=True)
        await self._compare([member for member in wave if member.name in report.served], snapshot, update)
        for member in wave:
            if member.name in report.failed:
                await self._announce_down(member, report.failed[member.name])
            else:
                await self._announce(member, snapshot)
        await self._report(report)

    async def _make_ready(self, wave: list[Member], snapshot: Snapshot) -> tuple[Update | None, list[Member]]:
        """The weights, and the engines that answer: one that hangs should cost the others no pause at all."""
        if not wave:
            return None, wave
        asked = wave if self.config.transport == "collective" else []
        receivers = [await self._receiver(member) for member in asked]
        update, silent = await asyncio.gather(self._load(snapshot), probe(receivers, self.config))
        for member in wave:
            if member.name in silent:
                await self._announce_down(member, silent[member.name])
        return update, [member for member in wave if member.name not in silent]

    async def _settle(self, wave: list[Member], delivery: Delivery, snapshot: Snapshot) -> list[Member]:
        """Tell what became of a delivery; give back the engines whose mirrors have the version."""
        for name, why in delivery.asked.items():
            await self.ctx.event("full_copy", engine=name, version=snapshot.version, cause=why)
        for member in wave:
            if member.name in delivery.failed:
                await self._announce_down(member, delivery.failed[member.name])
        return [member for member in wave if member.name in delivery.paths]

    async def _compare(self, served: list[Member], snapshot: Snapshot, update: Update) -> None:
        """Ask engines for the checksums of what they have just got, where that is due, and take out those that are wrong.

        They come back like any engine that was down: with all of the weights.
        """
        asked = [member for member in served if self.checks.due(member.name, key(snapshot))]
        questions = (engine_sums(self._client(member), self.config.timeout_s) for member in asked)
        sums: dict[str, dict[str, str]] = {}
        for member, answer in zip(asked, await asyncio.gather(*questions, return_exceptions=True), strict=True):
            if isinstance(answer, EngineError):
                await self._announce_down(member, str(answer))
            elif isinstance(answer, BaseException):
                raise answer
            else:
                sums[member.name] = answer
        expected = None
        if sums and self.ctx.config.engine.kind == "embedded":  # it names and hashes tensors as we do
            dtype = self.ctx.config.model.dtype
            expected = await asyncio.to_thread(bucket_sums, update.buckets, dtype)
        for name, why in self.checks.judge(key(snapshot), sums, expected).items():
            await self.ctx.event("weights_differ", engine=name, version=snapshot.version, cause=why)
            if name in self.fleet.members:
                await self._announce_down(self.fleet.members[name], f"version {snapshot.version}: {why}")

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
                    await self._announce_down(member, str(error))
                    continue
            if serves == "0":
                await self._announce(member, snapshot)
            else:
                others.append(member)
        return others

    async def _load(self, snapshot: Snapshot) -> Update | None:
        """The newest weights in buckets, or None if the snapshot is gone (the learner has a newer one by now)."""
        if self._update is None or (self._update.version, str(self._update.path)) != (snapshot.version, snapshot.path):
            self._update = None
            try:
                self._update = await prepare(Path(snapshot.path), snapshot.version, self.config.bucket_mb)
                if self.deltas is not None:
                    await self.deltas.offer(Path(snapshot.path), key(snapshot))
            except (SnapshotError, OSError) as error:
                self._update = None
                await self.ctx.event("snapshot_gone", version=snapshot.version, cause=str(error))
                if self.fleet.newest is snapshot:
                    self.fleet.newest = None
        return self._update

    def _client(self, member: Member) -> EngineClient:
        return EngineClient(member.url, self.session, self._api_key, name=member.name)

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

    # what the others hear

    async def _announce(self, member: Member, snapshot: Snapshot) -> None:
        if self.fleet.members.get(member.name) is not member or member.down:
            return  # it went away, or was started again, meanwhile
        member.serve(snapshot)
        await self._write_ledger(member.name, "serving")
        await self.ctx.bus.publish(
            "weights",
            EngineServes(engine=member.name, url=member.url, incarnation=member.incarnation, version=snapshot.version),
        )

    async def _announce_down(self, member: Member, why: str) -> None:
        await self.ctx.event("engine_down", engine=member.name, cause=why)
        if self.fleet.members.get(member.name) is member:
            member.down = True
            await self._write_ledger(member.name, "down")
        down = EngineDown(engine=member.name, incarnation=member.incarnation, reason=why)
        await self.ctx.bus.publish("weights", down)

    async def _write_ledger(self, name: str, state: Literal["starting", "serving", "updating", "down"]) -> None:
        member = self.fleet.members.get(name)
        if member is not None:
            self._written[name] = EngineState(member.url, member.incarnation, member.version, state)
            await self.ctx.bus.set_engine(name, member.url, member.incarnation, member.version, state)

    async def _report(self, report: PushReport) -> None:
        newest = self.fleet.newest.version if self.fleet.newest is not None else report.version
        lags = [newest - m.version for m in self.fleet.members.values() if m.served is not None and not m.down]
        values = {
            "weights/update_s": report.seconds,
            "weights/bytes": float(report.n_bytes * len(report.served)),
            "weights/failed_engines": float(len(report.failed)),
            **({"weights/delta_bytes": float(self.deltas.file_bytes)} if self.deltas is not None else {}),
            "weights/publish_lag": float(max(lags, default=math.nan)),
            **{f"weights/paused_s/{name}": seconds for name, seconds in report.paused_s.items()},
        }
        await self.ctx.metrics(report.version, {key: value for key, value in values.items() if not math.isnan(value)})
