"""A reward that another server works out: ``reward.rm_type = "remote_rm"`` asks ``reward.rm_url``.

Promises: one deadline over all attempts, after which the sample has a RewardError that says what the last one came to;
a failure that may pass (no connection, 408, 429, 5xx) is tried again after pauses that double; an answer that is no reward is
not asked for again; nothing of the URL, which may hold a key, is in any message.
"""

from __future__ import annotations

import asyncio
import random

import aiohttp
import msgspec

from miles_async.config.secrets import resolve
from miles_async.rewards.graded import Numbers, RewardError, numbers
from miles_async.rewards.sample import RewardSample

FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 5.0
MAX_ANSWER_BYTES = 1 << 20
MAX_CALLS = 64  # at once; a place among them is waited for outside the deadline

_MAY_PASS = {408, 429, *range(500, 600)}


class RewardServer:
    """The server at ``reward.rm_url``, from one event loop; ``url`` may be ``env:NAME``. Raises ConfigError: it is not set."""

    def __init__(self, url: str, timeout_s: float) -> None:
        self._url = resolve("reward.rm_url", url) or ""
        self._timeout_s = timeout_s
        self._calls = asyncio.Semaphore(MAX_CALLS)
        self._session: aiohttp.ClientSession | None = None

    async def ask(self, sample: RewardSample) -> Numbers:
        """What the server says, a number or an object of numbers. Raises RewardError.

        It is sent ``{"prompt", "response", "raw_response", "label", "metadata"}`` as JSON by POST; raw_response has the special
        tokens that response lacks.
        """
        row = {key: getattr(sample, key) for key in ("prompt", "response", "raw_response", "label", "metadata")}
        body = msgspec.json.encode(row)
        async with self._calls:
            answer = await self._ask_until_it_answers(body)
        try:
            return numbers(msgspec.json.decode(answer))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise RewardError(
                "reward_error", f"the server at reward.rm_url answered what is no JSON: {error}"
            ) from None
        except (TypeError, ValueError) as error:
            raise RewardError("reward_error", f"the server at reward.rm_url: {error}") from None

    async def close(self) -> None:
        """End the connections; can be repeated."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def _ask_until_it_answers(self, body: bytes) -> bytes:
        pause, last = FIRST_PAUSE_S, "it did not answer"
        try:
            async with asyncio.timeout(self._timeout_s):
                while True:
                    try:
                        return await self._post(body)
                    except _MayPassError as error:
                        last = str(error)
                    # spread, so that all samples of a batch do not come back at the same moment
                    await asyncio.sleep(pause * random.uniform(0.5, 1.0))
                    pause = min(2 * pause, LONGEST_PAUSE_S)
        except TimeoutError:
            late = f"the server at reward.rm_url gave no reward within {self._timeout_s:g} s: {last}"
            raise RewardError("reward_timeout", late) from None

    async def _post(self, body: bytes) -> bytes:
        if self._session is None:
            # the deadline of a call is the only one, the semaphore the only limit
            connector = aiohttp.TCPConnector(limit=0)
            self._session = aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=None))
        headers = {"content-type": "application/json"}
        try:
            # a redirected POST becomes a GET, which no reward server means
            async with self._session.post(self._url, data=body, headers=headers, allow_redirects=False) as response:
                if response.status in _MAY_PASS:
                    raise _MayPassError(f"it answered {response.status}")
                if response.status != 200:
                    raise RewardError("reward_error", f"the server at reward.rm_url answered {response.status}")
                return await _read(response.content)
        except (aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError):
            raise RewardError("reward_error", "reward.rm_url is not the URL of an HTTP server") from None
        except (aiohttp.ClientError, OSError) as error:
            raise _MayPassError(f"no connection ({type(error).__name__})") from None


async def remote_rm(sample: RewardSample, server: RewardServer) -> Numbers:
    """What ``server`` says about ``sample``. Raises RewardError."""
    return await server.ask(sample)


async def _read(stream: aiohttp.StreamReader) -> bytes:
    answer = b""
    while more := await stream.read(MAX_ANSWER_BYTES):
        answer += more
        if len(answer) > MAX_ANSWER_BYTES:
            raise RewardError(
                "reward_error", f"the server at reward.rm_url answered more than {MAX_ANSWER_BYTES} bytes"
            )
    return answer


class _MayPassError(Exception):
    """This attempt failed; another one may not."""
