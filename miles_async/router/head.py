"""What of a request's head goes to the engine, what the router itself is told there, and what of an answer's head is shown."""

from __future__ import annotations

from dataclasses import dataclass

from miles_async.http.asgi import Scope
from miles_async.http.client_connection import Header
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


def comes_whole(headers: list[Header]) -> bool:
    """Whether an answer says how long it is, and is short enough to be held."""
    length = next((int(value) for name, value in headers if name == b"content-length"), None)
    return length is not None and length <= WHOLE_ANSWER_BYTES


def passed_on(headers: list[Header]) -> list[Header]:
    """What of the head of an answer the client gets to see."""
    return [pair for pair in headers if pair[0] not in _NOT_PASSED_ON]
