"""On-policy distillation, the rollout's side: a teacher's log-probs of what the policy wrote.

A teacher is any server of SGLang's contract with the same vocabulary. It is asked for the log-probs of the whole sequence
and generates nothing. ``metadata["opd_teacher"]`` of a prompt names one of ``rollout.opd_teacher_urls``; else "default".
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import aiohttp
import msgspec

from bus.codec import LOGPROBS, TOKENS, pack, unpack
from bus.messages import Sample, Ticket
from miles_async.config import RunConfig
from miles_async.engine_client import EngineClient

DEFAULT = "default"


class TeacherError(RuntimeError):
    """A teacher is not there, or its answer is not what was asked for."""


class Teachers:
    """The teachers of a run, by name."""

    def __init__(self, clients: Mapping[str, EngineClient], timeout_s: float) -> None:
        self._clients, self._timeout_s = clients, timeout_s

    async def teach(self, ticket: Ticket, samples: list[Sample]) -> list[Sample]:
        """The samples with ``teacher_logprobs``. Raises TeacherError, EngineError."""
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
        answer: Any = await client.generate(body, timeout=self._timeout_s)
        try:
            entries = answer["meta_info"]["input_token_logprobs"]
            scored = entries[len(entries) - len(response) :] if response else []
            if [entry[1] for entry in scored] != response:
                raise TeacherError(f"teacher {client.name}: it scored other tokens than those of {ticket.group_id}")
            logprobs = pack([float(entry[0]) for entry in scored], LOGPROBS)
        except (LookupError, TypeError, ValueError) as error:
            raise TeacherError(f"teacher {client.name}: an answer without log-probs of the input: {error}") from None
        return msgspec.structs.replace(sample, teacher_logprobs=logprobs)


def teachers(config: RunConfig, session: aiohttp.ClientSession) -> Teachers:
    """Those of ``rollout.opd_teacher_urls``."""
    clients = {name: EngineClient(url, session, name=name) for name, url in config.rollout.opd_teacher_urls.items()}
    return Teachers(clients, config.rollout.request_timeout_s)
