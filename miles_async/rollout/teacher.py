"""On-policy distillation, the rollout's side: a teacher's log-probs of what the policy wrote.

A teacher is any server of SGLang's contract with the same vocabulary. It is asked for the log-probs of the whole sequence
and generates nothing. ``metadata["opd_teacher"]`` of a prompt names one of ``rollout.opd_teacher_urls``; else "default".

Promises: a teacher that is away costs no attempt: it is waited for, which is an event, up to ``rollout.request_timeout_s``, and
then the run ends with its name.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import aiohttp
import msgspec

from bus.codec import LOGPROBS, TOKENS, pack, unpack
from bus.messages import Sample, Ticket
from miles_async.config.schema import RunConfig
from miles_async.engines.client import EngineClient, EngineError

DEFAULT = "default"
GONE = (None, 502, 503, 504)  # statuses of a request that may be sent again: no answer, or nobody behind who answers
AGAIN_S = 1.0
LEAST_S = 0.1


class TeacherError(RuntimeError):
    """A teacher is not there, or its answer is not what was asked for."""


class TeacherGoneError(ValueError):
    """A teacher is away for good. No restart of ours brings it back."""


async def _tell_nobody(kind: str, **data: Any) -> None:
    pass


class Teachers:
    """The teachers of a run, by name. ``tell`` records an event: ``teacher_down``, ``teacher_up``. ``top_k``: of so many of
    their likeliest tokens at each position they are asked, too."""

    def __init__(
        self,
        clients: Mapping[str, EngineClient],
        timeout_s: float,
        tell: Callable[..., Awaitable[None]] = _tell_nobody,
        *,
        top_k: int = 0,
    ) -> None:
        self._clients, self._timeout_s, self._tell, self._top_k = clients, timeout_s, tell, top_k
        self._away: set[str] = set()

    async def teach(self, ticket: Ticket, samples: list[Sample]) -> list[Sample]:
        """The samples with ``teacher_logprobs``. Raises TeacherError, EngineError (it refuses), TeacherGoneError."""
        name = str(ticket.metadata.get("opd_teacher", DEFAULT))
        client = self._clients.get(name) or self._clients.get(DEFAULT)
        if client is None:
            raise TeacherError(f'{ticket.group_id} wants the teacher "{name}"; there are {", ".join(self._clients)}')
        return list(await asyncio.gather(*(self._teach_one(client, ticket, sample) for sample in samples)))

    async def _teach_one(self, client: EngineClient, ticket: Ticket, sample: Sample) -> Sample:
        prompt = unpack(sample.prompt_tokens or ticket.prompt_tokens, TOKENS).tolist()
        response = unpack(sample.tokens, TOKENS).tolist()
        body = {
            "input_ids": prompt + response,
            "sampling_params": {"max_new_tokens": 0, "temperature": 1.0},
            "return_logprob": True,
            "logprob_start_len": 0,
        }
        if self._top_k:
            body["top_logprobs_num"] = self._top_k
        answer: Any = await self._ask(client, body)
        try:
            entries = answer["meta_info"]["input_token_logprobs"]
            scored = entries[len(entries) - len(response) :] if response else []
            if [entry[1] for entry in scored] != response:
                raise TeacherError(f"teacher {client.name}: it scored other tokens than those of {ticket.group_id}")
            logprobs = pack([float(entry[0]) for entry in scored], LOGPROBS)
            top = self._likeliest(answer["meta_info"], len(response), client.name) if self._top_k else []
        except (LookupError, TypeError, ValueError) as error:
            raise TeacherError(f"teacher {client.name}: an answer without log-probs of the input: {error}") from None
        return msgspec.structs.replace(
            sample,
            teacher_logprobs=logprobs,
            teacher_top_tokens=pack([entry[1] for entry in top], TOKENS),
            teacher_top_logprobs=pack([float(entry[0]) for entry in top], LOGPROBS),
        )

    def _likeliest(self, meta: dict[str, Any], count: int, name: str) -> list[Any]:
        """The entries of the last ``count`` positions, one behind the other. Raises TeacherError: not ``top_k`` of each."""
        positions = meta["input_top_logprobs"]
        last = positions[len(positions) - count :] if count else []
        if len(last) != count or any(len(entries) != self._top_k for entries in last):
            raise TeacherError(f"teacher {name}: its answer has no {self._top_k} likeliest tokens at each position")
        return [entry for entries in last for entry in entries]

    async def _ask(self, client: EngineClient, body: dict[str, Any]) -> Any:
        """The answer of a teacher, as soon as it is there."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._timeout_s
        while True:
            try:
                answer = await client.generate(body, timeout=max(deadline - loop.time(), LEAST_S))
                await self._note(client, away=False)
                return answer
            except EngineError as error:
                if error.status not in GONE:
                    raise
                await self._note(client, away=True, cause=error.answer)
                if loop.time() >= deadline:
                    who, limit = f'the teacher "{client.name}" at {client.url}', f"{self._timeout_s:g} s"
                    raise TeacherGoneError(f"{who} has given no answer for {limit}: {error.answer}") from None
            await asyncio.sleep(AGAIN_S)

    async def _note(self, client: EngineClient, *, away: bool, **data: Any) -> None:
        if away != (client.name in self._away):
            (self._away.add if away else self._away.discard)(client.name)
            await self._tell("teacher_down" if away else "teacher_up", teacher=client.name, url=client.url, **data)


def teachers(config: RunConfig, session: aiohttp.ClientSession, tell: Callable[..., Awaitable[None]]) -> Teachers:
    """Those of ``rollout.opd_teacher_urls``."""
    clients = {name: EngineClient(url, session, name=name) for name, url in config.rollout.opd_teacher_urls.items()}
    return Teachers(clients, config.rollout.request_timeout_s, tell, top_k=config.algorithm.opd_log_prob_top_k)
