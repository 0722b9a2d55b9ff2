"""What every HTTP server of ours refuses before it looks at a request: heads and bodies that are too long, and what is no
HTTP. Each refusal is counted (``miles_async.http.refusals``).

Promises: a head is held up to ``MAX_HEAD_BYTES`` (and one read), a body up to its server's limit, whatever the client
announces; whoever sends more gets 431 or 413; nothing that a client sends ends the server.
"""

from __future__ import annotations

import json
import secrets
import socket
from collections.abc import Iterable, MutableMapping
from typing import Any

from fastapi import FastAPI, Request, Response
from starlette.requests import ClientDisconnect

from miles_async.http.asgi import Receive, Scope, Send

MAX_HEAD_BYTES = 64 * 1024


class BodyTooLongError(ValueError):
    """A request's body is longer than its server takes."""


def announced_length(headers: Iterable[tuple[bytes, bytes]]) -> int:
    """What the content-length says, 0 where there is none."""
    return next((int(value[:20]) for name, value in headers if name == b"content-length" and value.isdigit()), 0)


def bounded(scope: Scope, receive: Receive, limit: int) -> Receive:
    """``receive`` for one request. Raises BodyTooLongError once, at the first read or later."""
    taken, announced = 0, announced_length(scope["headers"])

    async def counted() -> MutableMapping[str, Any]:
        nonlocal taken
        if announced <= limit:
            message = await receive()
            taken += len(message.get("body", b""))
            if taken <= limit:
                return message
        raise BodyTooLongError(f"the body of a request may have {limit} bytes")

    return counted


async def read_body(receive: Receive) -> bytes | None:
    """The whole body; None if the client left. Raises what ``receive`` raises."""
    parts: list[bytes] = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return parts[0] if len(parts) == 1 else b"".join(parts)


def refuse_in(app: FastAPI) -> None:
    """The same for a FastAPI application: a body that is too long is a 413, a client that left gets nothing."""

    async def too_long(_: Request, error: Exception) -> Response:
        content = json.dumps({"error": {"message": str(error)}})
        return Response(content, 413, {"connection": "close"}, "application/json")

    async def gone(_: Request, error: Exception) -> Response:
        return Response(status_code=499)  # that nobody hears

    app.add_exception_handler(BodyTooLongError, too_long)
    app.add_exception_handler(ClientDisconnect, gone)


def has_key(scope: Scope, key: str) -> bool:
    """Whether the request brings ``key`` as its bearer token. Takes the same time for any wrong key of its length."""
    given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
    scheme, _, token = given.partition(b" ")
    return secrets.compare_digest(scheme.lower() + b" " + token.strip(), b"bearer " + key.encode())


async def say(send: Send, status: int, message: str, *, close: bool = False) -> None:
    """A JSON answer ``{"error": {"message": ...}}``. ``close``: the rest of the request is not waited for."""
    headers = [(b"content-type", b"application/json")]
    if close:
        headers.append((b"connection", b"close"))
    await send_whole(send, status, headers, json.dumps({"error": {"message": message}}).encode())


async def send_whole(send: Send, status: int, headers: list[tuple[bytes, bytes]], content: bytes) -> None:
    headers = [*headers, (b"content-length", b"%d" % len(content))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": content, "more_body": False})


def answer_at_once(listener: socket.socket) -> None:
    """The two writes of an answer do not wait for each other (40 ms, under asyncio's own loop)."""
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # what is accepted inherits it
