"""Who may look, and what a browser may do with what it gets: in front of every page.

Promises: with a key nothing but the way to give it is answered without it; the key is compared in constant time, and no cookie
holds it; without one the page answers to names of this machine only, so that no site can have a browser read it by a name of
its own; every answer forbids scripts and styles that are not the package's files, frames, and guesses at types.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import MutableMapping
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs

from miles_async.config.loopback import is_loopback
from miles_async.http.asgi import Receive, Scope, Send
from miles_async.http.limits import BodyTooLongError, bounded, has_key, read_body, say, send_whole

COOKIE = "miles_async_web"
LOGIN = "/login"
OPEN = frozenset((LOGIN, "/static/login.html", "/static/style.css"))  # what is needed to give the key
LOGIN_BYTES = 4096  # of the form
POLICY = "; ".join(
    (
        "default-src 'none'",
        *("script-src 'self'", "style-src 'self'", "img-src 'self'", "connect-src 'self'"),
        *("form-action 'self'", "base-uri 'none'", "frame-ancestors 'none'"),
    )
)
HEADERS = (
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
)


class Guarded:
    """``app`` behind the key; None: whoever is on this machine may look."""

    def __init__(self, app: Any, key: str | None) -> None:
        self._app, self._key = app, key
        # what a browser keeps: of this start only, and no key
        self._ticket = (
            None if key is None else hmac.new(secrets.token_bytes(32), key.encode(), hashlib.sha256).hexdigest()
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        send = _with_headers(send)
        path, method = scope["path"], scope["method"]
        if self._key is None:
            if not is_local(header(scope, b"host")):
                return await say(send, 421, "without a key this page answers to names of this machine only")
        elif path == LOGIN and method == "POST":
            return await self._log_in(scope, receive, send)
        elif path not in OPEN and not self._may(scope):
            if "text/html" in header(scope, b"accept"):
                return await _redirect(send, LOGIN)
            return await say(send, 401, "the page asks for its key: Authorization: Bearer KEY, or /login")
        if method not in ("GET", "HEAD"):
            return await say(send, 405, "nothing here changes a run")
        await self._app(scope, receive, send)

    def _may(self, scope: Scope) -> bool:
        assert self._key is not None and self._ticket is not None
        return has_key(scope, self._key) or hmac.compare_digest(_cookie(scope).encode(), self._ticket.encode())

    async def _log_in(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert self._key is not None and self._ticket is not None
        try:
            body = await read_body(bounded(scope, receive, LOGIN_BYTES))
        except BodyTooLongError as error:
            return await say(send, 413, str(error), close=True)
        given = parse_qs((body or b"").decode(errors="replace")).get("key", [""])[0]
        if not hmac.compare_digest(given.encode(), self._key.encode()):
            return await _redirect(send, LOGIN + "?wrong")
        cookie = f"{COOKIE}={self._ticket}; HttpOnly; SameSite=Strict; Path=/"
        await _redirect(send, "/", (b"set-cookie", cookie.encode()))


def is_local(host: str) -> bool:
    """Whether the name that a browser used for this server can only be this machine's."""
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdecimal() else host
    return is_loopback(name.strip("[]").lower())


def header(scope: Scope, name: bytes) -> str:
    """The first of that name, "" where there is none."""
    return next((value.decode("latin-1") for key, value in scope["headers"] if key == name), "")


def _cookie(scope: Scope) -> str:
    try:
        found = SimpleCookie(header(scope, b"cookie")).get(COOKIE)
    except CookieError:
        return ""
    return found.value if found is not None else ""


def _with_headers(send: Send) -> Send:
    async def sending(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            ours = {name for name, _ in HEADERS}
            kept = [(name, value) for name, value in message.get("headers", ()) if name.lower() not in ours]
            message = {**message, "headers": [*kept, *HEADERS]}
        await send(message)

    return sending


async def _redirect(send: Send, to: str, *more: tuple[bytes, bytes]) -> None:
    await send_whole(send, 303, [(b"location", to.encode()), *more], b"")
