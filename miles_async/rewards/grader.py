"""Grades the samples of a rollout worker, each call of a reward function under its own deadline.

    sample ──► chosen(): which reward ──┬─ cheap built-in ─────► here, at once
               weighted_sum: several    ├─ remote_rm ──────────► HTTP, many at once
                                        └─ mathematics, users' ► GradingPool, one call at a time for each process

Promises: the event loop never blocks on a grader; a call that hangs, raises or kills its process costs that one sample (with
``reward.group_rm`` that group), which gets a ``RewardError`` with its reason; nothing outlives ``close``.

User code runs in processes: an ``async`` function that forgets itself and blocks, or a regular expression that holds the
interpreter, cannot be stopped otherwise.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from miles_async.config.schema import Reward
from miles_async.hooks.faults import words
from miles_async.rewards import registry
from miles_async.rewards.graded import Graded, RewardError, graded, numbers
from miles_async.rewards.grading_pool import GradingPool
from miles_async.rewards.registry import RewardFunction
from miles_async.rewards.sample import GradingRequest, RewardSample
from miles_async.rewards.table import BOXED, WEIGHTED_SUM, built_in, short_name
from miles_async.rewards.weighted import weighted_sum

if TYPE_CHECKING:
    from miles_async.rewards.remote import RewardServer

START_TIMEOUT_S = 120.0  # a user's module may import torch on a busy machine
MAX_TASKS = 2000

Grades = list[Graded | RewardError]


class Grader:
    """The rewards of a run, callable from one event loop; ``async with`` starts and closes it."""

    def __init__(self, config: Reward, *, max_tasks: int = MAX_TASKS, start_timeout_s: float = START_TIMEOUT_S) -> None:
        self.config = config
        self._pool = GradingPool(config.num_processes, max_tasks, start_timeout_s)
        self._functions: dict[str, RewardFunction] = {}  # the built-ins that run here, as they are needed
        self._server: RewardServer | None = None
        if config.rm_url is not None:
            # not at the top: the grading processes import this package, too, and have no use for an HTTP client
            from miles_async.rewards.remote import RewardServer

            self._server = RewardServer(config.rm_url, config.timeout_s)

    async def start(self) -> None:
        """Start what the configuration names. Raises RewardConfigError: a function cannot be imported, or not in time.

        What only metadata name is started when the first sample asks for it.
        """
        try:
            for name in {self.config.rm_type, *self.config.rm_types, *self.config.rm_weights}:
                if not self._runs_here(name):
                    await self._pool.load(name, group=self._takes_groups(name))
        except BaseException:
            await self.close()
            raise

    async def score(self, samples: Sequence[RewardSample]) -> Grades:
        """The grade of each sample, in order; in the place of one that has none lies the error that says why.

        With ``reward.group_rm`` the samples are one group: a function of the user is called with all of them that it grades.
        """
        grades: list[Any] = [None] * len(samples)
        places: dict[str, list[int]] = {}
        for place, sample in enumerate(samples):
            try:
                places.setdefault(registry.chosen(sample, self.config), []).append(place)
            except RewardError as error:
                grades[place] = error
        calls = [self._score(name, [samples[i] for i in mine]) for name, mine in places.items()]
        found = [await calls[0]] if len(calls) == 1 else await asyncio.gather(*calls)
        for mine, their_grades in zip(places.values(), found, strict=True):
            for place, grade in zip(mine, their_grades, strict=True):
                grades[place] = grade
        return grades

    async def grade(self, sample: RewardSample) -> float:
        """The reward of one sample, finite. Raises RewardError."""
        (grade,) = await self.score([sample])
        if isinstance(grade, RewardError):
            raise grade
        return grade.reward

    async def close(self) -> None:
        """End processes and connections; can be repeated. Calls under way fail."""
        if self._server is not None:
            await self._server.close()
        await self._pool.close()

    async def _score(self, name: str, samples: list[RewardSample]) -> Grades:
        if name == WEIGHTED_SUM:
            return await self._score_sum(samples)
        if self._takes_groups(name):
            try:
                return [self._graded(name, result) for result in await self._in_process(name, samples, group=True)]
            except RewardError as error:
                return [error for _ in samples]
        if (entry := built_in(name)) is not None and entry.inline:
            return [self._grade_here(name, sample) for sample in samples]
        return list(await asyncio.gather(*(self._score_one(name, sample) for sample in samples)))

    async def _score_sum(self, samples: list[RewardSample]) -> Grades:
        weights = self.config.rm_weights
        if not weights:
            return [RewardError("reward_error", f"{WEIGHTED_SUM}: reward.rm_weights is empty") for _ in samples]
        names = [short_name(name) for name in weights]
        columns = await asyncio.gather(*(self._score(name, samples) for name in weights))
        by_name = dict(zip(names, weights.values(), strict=True))
        return [weighted_sum(dict(zip(names, row, strict=True)), by_name) for row in zip(*columns, strict=True)]

    async def _score_one(self, name: str, sample: RewardSample) -> Graded | RewardError:
        try:
            if (entry := built_in(name)) is not None and entry.asks_server:
                return self._graded(name, await self._remotely(name, sample))
            (result,) = await self._in_process(name, [sample], group=False)
            return self._graded(name, result)
        except RewardError as error:
            return error

    def _grade_here(self, name: str, sample: RewardSample) -> Graded | RewardError:
        try:
            return self._graded(name, self._here(name, sample))
        except RewardError as error:
            return error

    def _here(self, name: str, sample: RewardSample) -> Any:
        if name not in self._functions:
            self._functions[name] = registry.resolve_reward(name)
        try:
            return numbers(self._functions[name](sample))
        except Exception as error:
            raise RewardError("reward_error", words(error)) from None

    async def _remotely(self, name: str, sample: RewardSample) -> Any:
        if self._server is None:
            raise RewardError("reward_error", f"{name} needs reward.rm_url")
        return await registry.resolve_reward(name)(sample, self._server)

    async def _in_process(self, name: str, samples: list[RewardSample], *, group: bool) -> list[Any]:
        reply = await self._pool.call(GradingRequest(name, samples, group), self.config.timeout_s)
        if reply.error:
            raise RewardError("reward_error", reply.error, reply.place, reply.trace)
        return reply.results

    def _graded(self, name: str, result: Any) -> Graded:
        entry = built_in(name)
        return graded(result, self.config.reward_key or (entry.reward_part if entry is not None else None))

    def _runs_here(self, name: str) -> bool:
        if (entry := built_in(name)) is not None:
            return entry.inline or entry.asks_server
        return name.removeprefix(BOXED) == WEIGHTED_SUM

    def _takes_groups(self, name: str) -> bool:
        return self.config.group_rm and not registry.is_built_in(name)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
