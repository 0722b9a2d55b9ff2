"""One dataset at one version: generated, checked, graded, summed up.

Promises: samples are made by the run's own rollout function; every token that the policy wrote is of exactly the version
that was asked for, or the result is refused; a rollout or a grading that fails (of a function of the user's) is in the
record with its reason, counts 0, and costs no other; an engine that fails ends what is under way, and its error is raised.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import math
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from bus.codec import MASK, TOKENS, VERSIONS, pack, unpack
from bus.messages import Sample, Ticket
from miles_async.data import Prompt
from miles_async.engines.client import EngineError
from miles_async.evaluation.datasets import Dataset
from miles_async.evaluation.metrics import EvalSample, dataset_metrics
from miles_async.evaluation.settings import seed_of
from miles_async.groups.rollouts import rollout_of
from miles_async.hooks.calls import shown
from miles_async.rewards import RewardError
from miles_async.rewards.graded import is_finite
from miles_async.rollout.failures import check_samples, reason_of
from miles_async.rollout.first_failures import contained
from miles_async.rollout.generate import AbortedError, AnswerError
from miles_async.rollout.interface import Ask, RolloutContext
from miles_async.rollout.registry import rollout_function
from miles_async.rollout.scoring import Scorer, score
from miles_async.text.tokenizer import Tokenizer
from miles_async.text.unicode import well_formed

Generate = Callable[[Prompt], Awaitable[list[Sample]]]
Grade = Callable[[Prompt, Sequence[Sample]], Awaitable[list[float | None]]]
EvalFunction = Callable[[Dataset, Generate, Grade], Awaitable[dict[str, float]]]

OF_ENGINES = ("generate_error", "aborted")  # why a rollout was lost: not for its own sake
MAX_METRICS = 200  # of one dataset; they travel in one message
MAX_NAME = 150

T = TypeVar("T")


class VersionError(RuntimeError):
    """A token is of another version than the one under evaluation."""


class LostError(RuntimeError):
    """An engine's failure has cost some rollouts of a prompt."""


class ResultError(ValueError):
    """An evaluation function returned what are no metrics of its dataset."""


AGAIN = (EngineError, AnswerError, AbortedError, VersionError, LostError)  # what another attempt may mend


@dataclass
class Result:
    """A dataset at a version: its metrics, as they are published under ``eval/``, and what they were made from."""

    metrics: dict[str, float] = field(default_factory=dict)
    samples: list[EvalSample] = field(default_factory=list)


class Evaluation:
    """One dataset at one version. ``mark`` makes its request ids unlike those of any other attempt."""

    def __init__(
        self, dataset: Dataset, version: int, ask: Ask, tokenizer: Tokenizer, grader: Scorer, mark: str = ""
    ) -> None:
        self.dataset, self.version, self.mark = dataset, version, mark
        data = dataset.config.data
        self._ask, self._grader = ask, grader
        self._tokenizer = tokenizer.for_chats(data.chat_template_path, data.apply_chat_template_kwargs)
        self._roll = rollout_function(dataset.config)
        self._places = asyncio.Semaphore(dataset.config.eval.max_in_flight)
        self._record: dict[int, list[EvalSample]] = {}  # by prompt
        self._lost: dict[str, list[dict[str, Any]]] = {}  # by group

    async def run(self, function: EvalFunction | None = None) -> Result:
        """Raises one of AGAIN, ResultError, and what ``function`` raises."""
        async with contextlib.AsyncExitStack() as stack:
            self._context = RolloutContext(self.dataset.config, self._tokenizer, self._ask, stack, self._tell)
            with contained():
                found: Any = (function or self._built_in)(self.dataset, self.generate, self.grade)
                found = await found if inspect.isawaitable(found) else found
            metrics = _checked(self.dataset.name, found)
        return Result(metrics, [sample for index in sorted(self._record) for sample in self._record[index]])

    async def _built_in(self, dataset: Dataset, generate: Generate, grade: Grade) -> dict[str, float]:
        async def one(prompt: Prompt) -> None:
            await grade(prompt, await generate(prompt))

        await together(one(prompt) for prompt in dataset.prompts)
        return dataset_metrics(dataset.name, list(self._record.values()))

    async def generate(self, prompt: Prompt) -> list[Sample]:
        """The samples of ``prompt``, without those that a function of the user's failed to make. Raises one of AGAIN."""
        n, ticket = self.dataset.n_samples, self._ticket(prompt)
        async with self._places:
            try:
                with contained():
                    samples = check_samples(await self._roll(ticket, self._context))
            except AGAIN:
                raise
            except Exception as error:
                samples, why = [], reason_of(error)
                lost = [{"rollout": number, "reason": why[0], "detail": why[1]} for number in range(n)]
            else:
                lost = self._lost.pop(ticket.group_id, [])
        for one in lost:
            if one["reason"] in OF_ENGINES:
                raise LostError(f"{self.dataset.name}, prompt {prompt.index}: {one['detail']}")
        for sample in samples:
            self._check_versions(prompt, sample)
        self._record[prompt.index] = [_lost_line(prompt, one) for one in lost]
        return samples

    async def grade(self, prompt: Prompt, samples: Sequence[Sample]) -> list[float | None]:
        """The rewards of ``samples`` of ``prompt``, None where grading failed."""
        try:
            scored, failed = await score(self._ticket(prompt), samples, self._grader) if samples else ([], [])
        except RewardError as error:  # every one of them
            scored, failed = [], [(rollout_of(sample), error) for sample in samples]
        unfit = [(rollout_of(sample), error) for sample in scored if (error := _not_finite(sample)) is not None]
        grades, errors = {sample.index: sample for sample in scored}, dict([*failed, *unfit])
        lines = [_line(prompt, grades.get(s.index, s), errors.get(rollout_of(s))) for s in samples]
        self._record.setdefault(prompt.index, []).extend(lines)
        return [line.reward for line in lines]

    def _ticket(self, prompt: Prompt) -> Ticket:
        dataset = self.dataset
        return Ticket(
            group_id=f"eval-{prompt.index}-{dataset.name}-{self.version}{self.mark}",
            prompt_tokens=pack(prompt.tokens, TOKENS),
            sampling_seed=seed_of(dataset.config.run.seed, dataset.name, prompt.index, dataset.n_samples),
            prompt=prompt.text,
            label=prompt.label,
            metadata=prompt.metadata,
        )

    def _check_versions(self, prompt: Prompt, sample: Sample) -> None:
        versions = unpack(sample.versions, VERSIONS)[unpack(sample.loss_mask, MASK) != 0]
        wrong = versions[versions != self.version]
        if len(wrong):
            raise VersionError(
                f"{self.dataset.name}, prompt {prompt.index}, sample {sample.index}: {len(wrong)} of {len(versions)} tokens "
                f"are of version {int(wrong[0])}, not of {self.version}"
            )

    async def _tell(self, kind: str, **data: Any) -> None:
        if kind == "sample_lost":
            self._lost.setdefault(data["group"], []).append(data)


async def together(work: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """The results of all, in order. The first one that fails ends the others, and its error is raised."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one) for one in work]
    except BaseExceptionGroup as errors:
        first: BaseException = errors
        while isinstance(first, BaseExceptionGroup):
            first = first.exceptions[0]
        raise first from None
    return [task.result() for task in tasks]


def _line(prompt: Prompt, sample: Sample, error: RewardError | None) -> EvalSample:
    return EvalSample(
        prompt_index=prompt.index,
        sample_index=sample.index,
        rollout_index=rollout_of(sample),
        prompt=prompt.text,
        response=sample.text,
        label=prompt.label,
        reward=sample.reward if error is None else None,
        finish_reason=sample.finish_reason,
        response_len=int(np.count_nonzero(unpack(sample.loss_mask, MASK))),
        reward_parts=sample.reward_parts if error is None else {},
        error="" if error is None else str(error),
    )


def _not_finite(sample: Sample) -> RewardError | None:
    """What is wrong with the reward that a sample's own function gave it: graders' are looked at where they come from."""
    for name, value in {"reward": sample.reward, **sample.reward_parts}.items():
        if not math.isfinite(value):
            return RewardError("reward_error", f"{name} must be finite, not {value}")
    return None


def _lost_line(prompt: Prompt, lost: dict[str, Any]) -> EvalSample:
    """The line of a rollout that was not made."""
    return EvalSample(
        prompt_index=prompt.index,
        sample_index=-1,
        rollout_index=lost["rollout"],
        prompt=prompt.text,
        response="",
        label=prompt.label,
        reward=None,
        finish_reason="lost",
        response_len=0,
        error=f"{lost['reason']}: {lost['detail']}",
    )


def _checked(name: str, found: Any) -> dict[str, float]:
    """``found`` as metrics of the dataset ``name``. Raises ResultError."""
    if not isinstance(found, dict) or not 0 < len(found) <= MAX_METRICS:
        what = f"{len(found)} of them" if isinstance(found, dict) else type(found).__name__
        raise ResultError(f"an evaluation of {name} must return 1 to {MAX_METRICS} metrics by name, not {what}")
    for key, value in found.items():
        if not isinstance(key, str) or not (key == name or key.startswith((f"{name}-", f"{name}/"))):
            raise ResultError(f"an evaluation of {name} returned {shown(key)}: its names begin with {name}")
        if len(key) > MAX_NAME:
            raise ResultError(
                f"an evaluation of {name} returned {key[:40]}...: a name has at most {MAX_NAME} characters"
            )
        if not is_finite(value):
            raise ResultError(f"an evaluation of {name} returned {key} = {shown(value)}: expected a finite number")
    return {well_formed(key): float(value) for key, value in found.items()}
