"""The evaluator: measures chosen weight versions on named datasets, beside the training.

    Learner ──Snapshot──► Evaluator ──prompts, weights from disk──► eval engines      reads  "weights": Snapshot
                              └──► grades ──► metrics eval/..., eval/*.jsonl

Consumes: snapshots; those that are due it keeps (or finds kept by the learner). Publishes: metrics of each point at its own
version, and why a point was not made.

Keeps: its engines are its own, so that nothing of the training waits for it and their weights do not change during a point;
every token of a point is of exactly that version, or the point is refused; points are made one after the other, and when
more than ``eval.keep_snapshots`` are open the oldest that waits is skipped; killed at any moment, its successor makes
the points that are not on record, and one that has been replaced adds none. Asked to finish, it makes what is open and the
last version that was published.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from actors.runtime.context import ActorContext
from actors.runtime.plan import eval_engine_names
from actors.runtime.tasks import end
from bus import SnapshotLedger
from bus.client import READ_BLOCK_MS
from bus.messages import Snapshot
from bus.waits import WaitKind
from miles_async.disk.fence import before_it_counts
from miles_async.evaluation.datasets import load_datasets
from miles_async.evaluation.engines import EvalEngines
from miles_async.evaluation.hooks import EVAL_FUNCTION, EVAL_LOG_FUNCTION
from miles_async.evaluation.pins import pin, unpin
from miles_async.evaluation.point import AGAIN, Evaluation, Result, VersionError
from miles_async.evaluation.record import EvalRecord
from miles_async.evaluation.settings import is_due
from miles_async.models.context_length import context_length
from miles_async.rewards import Grader
from miles_async.rollout.first_failures import contained, told
from miles_async.runs.points import MADE, Point
from miles_async.text.tokenizer import Tokenizer
from miles_async.weights.place import pins_kept
from miles_async.weights.snapshot import SnapshotError, has_weights
from miles_async.weights.verify import check_weights


@dataclass(frozen=True, eq=False)
class Candidate:
    """A version that is to be measured. ``pin``: its snapshot, kept for us; None: the checkpoint that training began with."""

    version: int
    incarnation: int
    path: Path
    pin: Path | None
    checksum: str = ""  # of a pin: what its learner announced


class Evaluator:
    role = "evaluator"

    def __init__(self, ctx: ActorContext) -> None:
        self.ctx, self.config = ctx, ctx.config.eval
        self.tokenizer = Tokenizer(ctx.model_path)
        self.datasets = load_datasets(ctx.config, self.tokenizer)
        self.function = next(iter(EVAL_FUNCTION.functions(ctx.config)), None)
        self.log_function = next(iter(EVAL_LOG_FUNCTION.functions(ctx.config)), None)
        self.snapshots = SnapshotLedger(ctx.bus)
        self.record = EvalRecord(ctx.run_dir / "eval")
        self.graders: dict[str, Grader] = {}
        self.waiting: deque[Candidate] = deque()
        self.making: Candidate | None = None
        self.newest: Snapshot | None = None
        self.first: Snapshot | None = None  # of the learner's present incarnation
        self.all_read = False  # asked to finish, and nothing more will come
        self.news = asyncio.Event()

    async def run(self) -> None:
        async with contextlib.AsyncExitStack() as stack:
            session = await stack.enter_async_context(aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)))
            names, vocab_size = eval_engine_names(self.ctx.config), self.tokenizer.vocab_size
            context = context_length(self.ctx.config, self.ctx.model_path)
            is_ours = self.ctx.spec.site.is_ours
            self.engines = EvalEngines(self.ctx.bus, names, self.ctx.config, session, vocab_size, context, is_ours)
            for reward in (dataset.config.reward for dataset in self.datasets):
                if reward.rm_type not in self.graders:
                    self.graders[reward.rm_type] = await stack.enter_async_context(Grader(reward))
            follow, work = asyncio.create_task(self._follow()), asyncio.create_task(self._work())
            stopped = asyncio.create_task(self.ctx.stop.wait())
            pending: set[asyncio.Task[Any]] = {follow, work, stopped}
            try:
                while {work, stopped} <= pending:
                    done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                    for task in done:
                        task.result()
            finally:
                await end([follow, work, stopped])
        for candidate in self._open_candidates():
            await self._skip(candidate, "stopped", "the run ended before it was made")

    # which versions

    async def _follow(self) -> None:
        """Take in the snapshots, until asked to finish and all are read."""
        cursor = "0"
        while True:
            last = self.ctx.finish.is_set()  # the learner has ended: what is not there by now will not come
            before, block_ms = cursor, 1 if last else READ_BLOCK_MS
            snapshots, cursor = await self.ctx.bus.read("weights", Snapshot, cursor, block_ms=block_ms)
            for snapshot in snapshots:
                if await self.snapshots.knows(snapshot):
                    await self._hear(snapshot)
            if last and cursor == before:
                break
        if self.newest is not None:
            await self._line_up(self.newest)
        self.all_read = True
        self.news.set()

    async def _hear(self, snapshot: Snapshot) -> None:
        if self.first is None or snapshot.incarnation > self.first.incarnation:
            self.first = snapshot
        self.newest = snapshot
        if is_due(self.config, snapshot.version):
            await self._line_up(snapshot)

    async def _line_up(self, snapshot: Snapshot) -> None:
        """Keep the snapshot and put it in line, unless its point is there already."""
        if self._is_known(snapshot):
            return
        try:
            kept = path = pin(snapshot.path, pins_kept(self.config))
        except SnapshotError as error:
            kept, path = None, Path(self.ctx.model_path)
            if snapshot.version != 0:  # which is right by its number alone: the checkpoint that everybody loads
                await self._skip(Candidate(snapshot.version, snapshot.incarnation, path, None), "gone", str(error))
                return
        self.waiting.append(Candidate(snapshot.version, snapshot.incarnation, path, kept, snapshot.checksum))
        while len(self._open_candidates()) > self.config.keep_snapshots:
            await self._skip(self.waiting.popleft(), "busy", f"{self.config.keep_snapshots} later ones are open")
        self.news.set()

    def _open_candidates(self) -> list[Candidate]:
        return [*([] if self.making is None else [self.making]), *self.waiting]

    def _is_known(self, snapshot: Snapshot) -> bool:
        """Whether there is a point of these very weights, or will be.

        What another incarnation of the learner called v may have been other weights, unless this one has begun with v.
        """
        if any((c.version, c.incarnation) == (snapshot.version, snapshot.incarnation) for c in self._open_candidates()):
            return True
        known = self.record.points.get(snapshot.version)
        if known is None:
            return False
        begun_with = self.first is not None and snapshot.version == self.first.version
        return known.incarnation == snapshot.incarnation or (known.outcome == MADE and begun_with)

    # one point after the other

    async def _work(self) -> None:
        while True:
            while not self.waiting:
                if self.all_read:
                    return
                self.news.clear()
                with self.ctx.waiting(WaitKind.VERSION_TO_EVALUATE):
                    await self.news.wait()
            self.making = self.waiting.popleft()
            await self._make(self.making)
            self.making = None

    async def _make(self, point: Candidate) -> None:
        """Measure ``point`` on every dataset, in a few attempts, and report it; or say why not."""
        started, results, reason, cause = time.monotonic(), dict[str, Result](), "", ""
        attempts = self.ctx.config.rollout.max_attempts
        if (damage := await asyncio.to_thread(_damage, point)) is not None:
            return await self._skip(point, "damaged", damage)
        for attempt in range(1, attempts + 1):
            if not has_weights(point.path):
                reason, cause = "gone", f"no weights lie in {point.path} any more"
                break
            try:
                await self._attempt(point, attempt, results)
            except AGAIN as error:
                self.ctx.log.warning("version %d, attempt %d of %d: %s", point.version, attempt, attempts, error)
                reason, cause = "refused" if isinstance(error, VersionError) else "crashed", str(error)
                continue
            except Exception as error:  # of a function of the user's
                self.ctx.log.exception("version %d", point.version)
                reason, cause = "error", told(error)
                break
            await self._report(point, results, time.monotonic() - started)
            return
        await self._skip(point, reason, cause)

    async def _attempt(self, point: Candidate, attempt: int, results: dict[str, Result]) -> None:
        """Fill ``results`` with what is missing in it. Raises one of AGAIN, and what functions of the user raise."""
        names, mark = self.engines.names, f"-{self.ctx.incarnation}.{attempt}"
        with self.ctx.waiting(WaitKind.EVALUATED_VERSION, names, version=point.version):
            await self.engines.load(point.version, point.path)
        for dataset in self.datasets:
            if dataset.name not in results:
                grader = self.graders[dataset.config.reward.rm_type]
                evaluation = Evaluation(dataset, point.version, self.engines.ask, self.tokenizer, grader, mark)
                with self.ctx.waiting(WaitKind.EVALUATION, names, dataset=dataset.name, version=point.version):
                    results[dataset.name] = await evaluation.run(self.function)

    # what becomes of it

    async def _report(self, point: Candidate, results: Mapping[str, Result], seconds: float) -> None:
        newest = point.version if self.newest is None else self.newest.version
        about = {
            "version": float(point.version),
            "lag_steps": float(newest - point.version),
            "duration_seconds": seconds,
        }
        await asyncio.to_thread(before_it_counts)
        self.record.add_samples(point.version, results)
        parts = [*(result.metrics for result in results.values()), about]
        for part in parts:
            await self.ctx.metrics(point.version, {f"eval/{name}": value for name, value in part.items()})
        await self.ctx.event("evaluated", version=point.version, seconds=round(seconds, 3))
        self._close(point, MADE, {name: value for part in parts for name, value in part.items()})
        if self.log_function is not None:
            try:
                with contained():
                    logged = self.log_function(point.version, dict(results))
                    if inspect.isawaitable(logged):
                        await logged
            except Exception as error:
                self.ctx.log.exception(EVAL_LOG_FUNCTION.key)
                await self.ctx.event("eval_log_failed", version=point.version, cause=told(error))

    async def _skip(self, point: Candidate, reason: str, cause: str) -> None:
        await self.ctx.metrics(point.version, {f"eval/skipped_{reason}": 1.0})
        await self.ctx.event("eval_skipped", version=point.version, reason=reason, cause=cause[:1000])
        self._close(point, reason, cause=cause)

    def _close(self, point: Candidate, outcome: str, metrics: dict[str, float] | None = None, cause: str = "") -> None:
        self.record.add(Point(point.version, point.incarnation, outcome, time.time(), {**(metrics or {})}, cause))
        if point.pin is not None:
            unpin(point.pin)


def _damage(point: Candidate) -> str | None:
    """What is wrong with the weights that were kept for a point; None: nothing, or they are gone, which is found later."""
    if point.pin is None or not has_weights(point.path):
        return None
    try:
        check_weights(point.path, point.version, point.incarnation, point.checksum)
    except SnapshotError as error:
        return str(error)
    return None
