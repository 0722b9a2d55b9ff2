"""A request's way through the router: what of its head goes to the engine, and what of the answer has reached the client."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from miles_async.http.asgi import Scope, Send
from miles_async.http.client import Answer, Header
from miles_async.http.limits import say, send_whole
from miles_async.router.policies.versions import (
    ANY,
    MIN_VERSION_HEADER,
    VERSION_HEADER,
    Demand,
    DemandError,
    read_demand,
)

# the second one is what Miles sends
KEY_HEADERS = (b"x-routing-key", b"x-smg-routing-key")
_FOR_US = {*KEY_HEADERS, MIN_VERSION_HEADER, VERSION_HEADER}
_NOT_PASSED_ON = {
    b"host", b"connection", b"keep-alive", b"content-length", b"transfer-encoding", b"te", b"trailer", b"upgrade",
    b"expect", b"proxy-connection", b"authorization",
}  # fmt: skip
WHOLE_ANSWER_BYTES = 64 << 20  # an answer of known length up to this is read to its end before any of it is sent


@dataclass(slots=True)
class Head:
    """What the engine gets to see before the body, and what the router itself is told."""

    method: bytes
    target: bytes
    headers: list[Header]
    demand: Demand = ANY
    key: bytes = b""


def read_head(scope: Scope) -> Head:
    """The head of a request. Raises DemandError."""
    target = scope.get("raw_path") or scope["path"].encode()
    if scope["query_string"]:
        target += b"?" + scope["query_string"]
    headers: list[Header] = []
    ours: dict[bytes, bytes] = {}
    for pair in scope["headers"]:
        if pair[0] in _NOT_PASSED_ON:
            continue
        if pair[0] in _FOR_US:
            if pair[0] in ours:
                raise DemandError(f"{pair[0].decode()} is given twice")
            ours[pair[0]] = pair[1]
        headers.append(pair)
    head = Head(scope["method"].encode(), target, headers)
    if ours:
        head.key = next((ours[name] for name in KEY_HEADERS if name in ours), b"")
        least, exact = ours.get(MIN_VERSION_HEADER), ours.get(VERSION_HEADER)
        if least is not None or exact is not None:
            head.demand = read_demand(least, exact)
    return head


class Delivery:
    """Hands an answer to the client and knows whether it has begun to."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.begun = False

    async def say(self, status: int, message: str) -> None:
        self.begun = True
        await say(self._send, status, message)

    async def whole(self, answer: Answer, content: bytes) -> None:
        self.begun = True
        await send_whole(self._send, answer.status, passed_on(answer.headers), content)

    async def pieces(self, answer: Answer, moved: Callable[[], None]) -> None:
        """As they come. ``moved`` is called for each. Raises UpstreamError."""
        part = await answer.chunk()
        self.begun = True
        await self._send({"type": "http.response.start", "status": answer.status, "headers": passed_on(answer.headers)})
        while part:
            moved()
            await self._send({"type": "http.response.body", "body": part, "more_body": True})
            part = await answer.chunk()
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})


def comes_whole(headers: list[Header]) -> bool:
    """Whether an answer says how long it is, and is short enough to be held."""
    length = next((int(value) for name, value in headers if name == b"content-length"), None)
    return length is not None and length <= WHOLE_ANSWER_BYTES


def passed_on(headers: list[Header]) -> list[Header]:
    """What of the head of an answer the client gets to see."""
    return [pair for pair in headers if pair[0] not in _NOT_PASSED_ON]
