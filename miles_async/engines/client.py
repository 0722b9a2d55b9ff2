"""One engine, spoken to in SGLang's HTTP contract.

Promises: every call has a deadline; whatever goes wrong is an :class:`EngineError` that names the engine, the endpoint
and what it answered, also for an answer that is too long or not of its kind; no request with a token id outside the model's
vocabulary is sent, where that is given. Nothing is retried here: who calls knows whether a second try is safe.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from typing import Any

import aiohttp
import msgspec

from miles_async.engines.token_ids import TokenIdError, check_token_ids
from miles_async.models.context_length import fitted

CONTROL_TIMEOUT_S = 30.0
MAX_ANSWER_BYTES = 256 << 20
ROUTING_KEY = "x-routing-key"
ANSWER_CHARS = 300  # of an engine's answer in an error message


class EngineError(RuntimeError):
    """An engine did not do what it was asked.

    ``status`` is its HTTP status, or None if it gave no answer (refused, broken off, too late); ``refused``: nobody listens.
    """

    def __init__(
        self, engine: str, endpoint: str, answer: str, status: int | None = None, *, refused: bool = False
    ) -> None:
        super().__init__(f"engine {engine}, {endpoint}: {answer}")
        self.engine = engine
        self.endpoint = endpoint
        self.answer = answer
        self.status = status
        self.refused = refused


class EngineClient:
    """Calls of one engine. The session is the caller's (and closed by the caller); timeouts are in seconds.

    ``vocab_size``: of the model that it serves; requests with other ids are refused here, where they harm nobody.
    ``context_length``: responses that do not fit behind their prompts are asked for as long as they do.
    ``batches``: whether one request may ask for several answers; sglang-router takes no lists, so each goes alone.
    """

    def __init__(
        self,
        url: str,
        session: aiohttp.ClientSession,
        api_key: str | None = None,
        *,
        name: str | None = None,
        vocab_size: int | None = None,
        context_length: int | None = None,
        batches: bool = True,
    ) -> None:
        self.url = url.rstrip("/")
        self.name = name or self.url
        self.vocab_size, self.context_length = vocab_size, context_length
        self._batches = batches
        self._session = session
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}

    async def _call(
        self, method: str, path: str, body: Mapping[str, Any] | None, timeout: float, headers: Mapping[str, str] = {}
    ) -> Any:
        """The answer as JSON, or as text where it is not JSON. Raises EngineError for any status but 200."""
        try:
            status, content = await self._exchange(method, path, body, timeout, headers)
        except TimeoutError:
            raise EngineError(self.name, path, f"no answer within {timeout:g} s") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            refused = isinstance(error, aiohttp.ClientConnectorError) or getattr(error, "refused", False)
            raise EngineError(self.name, path, f"{type(error).__name__}: {error}", refused=refused) from None
        answer = _read_json(content)
        if status != 200 or (isinstance(answer, dict) and answer.get("success") is False):
            text = content.decode(errors="replace")
            raise EngineError(self.name, path, f"HTTP {status}: {text[:ANSWER_CHARS]}", status)
        return answer

    async def _exchange(
        self, method: str, path: str, body: Mapping[str, Any] | None, timeout: float, headers: Mapping[str, str]
    ) -> tuple[int, bytes]:
        """Status and content of the answer. Raises what the HTTP client raises, and TimeoutError."""
        async with self._session.request(
            method,
            self.url + path,
            json=body,
            headers={**self._headers, **headers},
            timeout=aiohttp.ClientTimeout(total=timeout),
            allow_redirects=False,  # its key is for this address only
        ) as response:
            return response.status, await self._read(response, path)

    async def _read(self, response: aiohttp.ClientResponse, path: str) -> bytes:
        parts: list[bytes] = []
        size = 0
        async for part in response.content.iter_any():
            parts.append(part)
            size += len(part)
            if size > MAX_ANSWER_BYTES:
                raise EngineError(self.name, path, f"an answer of more than {MAX_ANSWER_BYTES} bytes")
        return b"".join(parts)

    async def _info(self, path: str, timeout: float) -> dict[str, Any]:
        answer = await self._call("GET", path, None, timeout)
        if not isinstance(answer, dict):
            raise EngineError(self.name, path, f"not a JSON object: {str(answer)[:ANSWER_CHARS]}")
        return answer

    async def _post(self, path: str, body: Mapping[str, Any] | None = None, timeout: float = CONTROL_TIMEOUT_S) -> Any:
        return await self._call("POST", path, body or {}, timeout)

    # --- what it is -------------------------------------------------------------------------------------------------

    async def health(self, timeout: float = CONTROL_TIMEOUT_S) -> None:
        """Returns if the engine generates. A paused engine does not answer: SGLang blocks 20 s, then says 503."""
        await self._call("GET", "/health", None, timeout)

    async def model_info(self, timeout: float = CONTROL_TIMEOUT_S) -> dict[str, Any]:
        """Holds ``weight_version``, the version as a string. Answered while the engine is paused, too."""
        return await self._info("/model_info", timeout)

    async def server_info(self, timeout: float = CONTROL_TIMEOUT_S) -> dict[str, Any]:
        """The resolved server arguments (``tp_size``, ...). Its weight_version is that of the start: do not use it."""
        return await self._info("/server_info", timeout)

    async def has_endpoint(self, path: str, timeout: float = CONTROL_TIMEOUT_S) -> bool:
        """Whether ``path`` is one of its endpoints, without using it: none takes DELETE, so that is a 405 there, else a 404."""
        try:
            await self._call("DELETE", path, None, timeout)
        except EngineError as error:
            if error.status is None:
                raise
            return error.status != 404
        return True

    async def ready(self, timeout: float = CONTROL_TIMEOUT_S) -> None:
        """Returns if the engine takes requests; EngineError (503) at once while it is paused or starting."""
        await self._call("GET", "/ready", None, timeout)

    async def loads(self, timeout: float = CONTROL_TIMEOUT_S) -> dict[str, Any]:
        """``{"loads": [{"num_running_reqs": ..., "num_waiting_reqs": ..., "token_usage": ...}]}``, one for each dp rank."""
        return await self._info("/v1/loads", timeout)

    async def checksums(self, timeout: float = CONTROL_TIMEOUT_S) -> dict[str, Any]:
        """``{"ranks": [{"checksums": {name: hash}}], "per_engine_checksum": ...}``; names may be the engine's own."""
        return await self._post("/weights_checker", {"action": "checksum"}, timeout)

    # --- generation -------------------------------------------------------------------------------------------------

    async def generate(
        self, body: Mapping[str, Any], timeout: float = 600.0, *, routing_key: str = ""
    ) -> list[dict[str, Any]] | dict[str, Any]:
        """One answer, or a list of them where ``input_ids`` is a batch. EngineError (400, unsent) for an unknown id.

        ``routing_key``: a router of which this is asked may give requests with the same one to the same engine.
        """
        headers = {ROUTING_KEY: routing_key} if routing_key else {}
        if self.context_length is not None:
            body = fitted(body, self.context_length)
        if self.vocab_size is not None:
            try:
                check_token_ids(body, self.vocab_size)
            except TokenIdError as error:
                raise EngineError(self.name, "/generate", f"not sent: {error}", 400) from None
        ids = body.get("input_ids")
        if self._batches or not ids or not isinstance(ids[0], list):
            return await self._call("POST", "/generate", body, timeout, headers)
        each = [
            {key: value[i] if isinstance(value, list) else value for key, value in body.items()}
            for i in range(len(ids))
        ]
        calls = [asyncio.ensure_future(self._call("POST", "/generate", one, timeout, headers)) for one in each]
        try:
            return await asyncio.gather(*calls)
        finally:
            for call in calls:  # of a batch of which one has failed
                call.cancel()

    async def abort(self, rid: str = "", *, abort_all: bool = False, timeout: float = CONTROL_TIMEOUT_S) -> None:
        """Stop one request (its answer is partial, HTTP 200). An unknown rid is no error."""
        await self._post("/abort_request", {"rid": rid, "abort_all": abort_all}, timeout)

    async def fleet_loads(self, timeout: float = CONTROL_TIMEOUT_S) -> dict[str, Any]:
        """What our own router alone answers: ``{"engines": [{"engine", "running", "waiting", "kv_usage"}]}``."""
        return await self._info("/loads", timeout)

    async def flush(self, timeout: float = CONTROL_TIMEOUT_S) -> None:
        """Forget the prefix cache. EngineError (400) while requests run."""
        await self._post("/flush_cache", None, timeout)

    async def pause(self, mode: str, timeout: float = CONTROL_TIMEOUT_S) -> None:
        """``retract`` | ``in_place`` | ``abort``. New requests wait, without an error, until :meth:`resume`."""
        await self._post("/pause_generation", {"mode": mode}, timeout)

    async def resume(self, timeout: float = CONTROL_TIMEOUT_S) -> None:
        await self._post("/continue_generation", None, timeout)

    # --- weights ----------------------------------------------------------------------------------------------------

    async def begin_update(self, timeout: float = CONTROL_TIMEOUT_S) -> bool:
        """Open the session that updates need. False: an older server that knows no sessions (404).

        A session left open by a sender that was killed is closed first, since a new full update overwrites its work.
        """
        try:
            await self._post("/begin_weight_update", None, timeout)
        except EngineError as error:
            if error.status == 404:
                return False
            if error.status != 400:
                raise
            await self._post("/end_weight_update", None, timeout)
            await self._post("/begin_weight_update", None, timeout)
        return True

    async def end_update(self, timeout: float = CONTROL_TIMEOUT_S) -> None:
        await self._post("/end_weight_update", None, timeout)

    async def init_group(
        self, *, address: str, port: int, rank_offset: int, world_size: int, group: str, backend: str, timeout: float
    ) -> None:
        """Join a group as ranks ``rank_offset ...``; returns when every rank of the group has joined."""
        body = {
            "master_address": address,
            "master_port": port,
            "rank_offset": rank_offset,
            "world_size": world_size,
            "group_name": group,
            "backend": backend,
        }
        await self._post("/init_weights_update_group", body, timeout)

    async def destroy_group(self, group: str, timeout: float = CONTROL_TIMEOUT_S) -> None:
        await self._post("/destroy_weights_update_group", {"group_name": group}, timeout)

    async def update_from_distributed(
        self,
        *,
        names: Sequence[str],
        dtypes: Sequence[str],
        shapes: Sequence[Sequence[int]],
        group: str,
        flush_cache: bool,
        version: str | None,
        timeout: float,
    ) -> None:
        """Receive one flattened bucket from rank 0 of ``group``; returns when it is in the model.

        ``version`` names the weights from here on: give it with the last bucket only.
        """
        body: dict[str, Any] = {
            "names": list(names),
            "dtypes": list(dtypes),
            "shapes": [list(shape) for shape in shapes],
            "group_name": group,
            "flush_cache": flush_cache,
            "load_format": "flattened_bucket",
        }
        if version is not None:
            body["weight_version"] = version
        await self._post("/update_weights_from_distributed", body, timeout)

    async def update_from_disk(self, path: str, *, version: str, flush_cache: bool, timeout: float) -> None:
        """Load a Hugging Face directory that the engine's machine can read. Needs no session."""
        body = {"model_path": path, "weight_version": version, "flush_cache": flush_cache}
        await self._post("/update_weights_from_disk", body, timeout)

    async def set_version(self, version: str, timeout: float = CONTROL_TIMEOUT_S) -> None:
        """Name the weights. SGLang's default for this call aborts every request; that is switched off here."""
        await self._post("/update_weight_version", {"new_version": version, "abort_all_requests": False}, timeout)


def _read_json(content: bytes) -> Any:
    """What is in it; its text where it is not JSON."""
    if not content:
        return {}
    try:
        return msgspec.json.decode(content)
    except (ValueError, RecursionError):  # Python's own reads NaN, and halves of surrogate pairs
        text = content.decode(errors="replace")
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
