"""The keys that a request to the router brings, what they are good for, and what of control is looked at before it goes on.

Promises: the key of clients opens what ``router/access.py`` calls a client's, that for control everything; the key of the run's
own processes is good from this machine only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from miles_async.config.loopback import is_loopback
from miles_async.engines.weight_paths import is_place
from miles_async.http.asgi import Scope
from miles_async.http.limits import has_key
from miles_async.router.access import Access

WEIGHTS = ("/update_weights_from_disk",)  # whose body names a directory


@dataclass
class RouterKeys:
    """``client``: None asks clients for nothing. ``admin``, ``own``: None is no key at all."""

    client: str | None = None
    admin: str | None = None
    own: str | None = None

    def may(self, scope: Scope) -> Access | None:
        """What the keys of a request are good for; None: for nothing."""
        if self.admin is not None and has_key(scope, self.admin):
            return "control"
        if self.own is not None and has_key(scope, self.own) and _is_from_here(scope):
            return "control"
        return "client" if self.client is None or has_key(scope, self.client) else None

    def what_controls(self) -> str:
        """The key that controls, in words for who is refused."""
        return "it takes router.admin_key" + ("" if self.admin is not None else ", which is not set")

    def checked(self, path: str, body: bytes, may: Access | None, roots: Sequence[Path]) -> bytes:
        """The body that engines may get. Raises PermissionError: not by this key, or weights from elsewhere than ``roots``."""
        if path == "/abort_request" and may != "control":
            if (one := one_request(body)) is None:
                raise PermissionError(f"a client aborts one request, by its rid; all of them: {self.what_controls()}")
            return one
        if path in WEIGHTS and not is_place(body, roots):
            known = ", ".join(map(str, roots)) or "none"
            raise PermissionError(f"weights are loaded from the run's own directories only: {known}")
        return body


def _is_from_here(scope: Scope) -> bool:
    client = scope.get("client")
    return client is not None and is_loopback(client[0])


class _Abort(msgspec.Struct):
    rid: str = ""
    abort_all: bool = False


def one_request(body: bytes) -> bytes | None:
    """The body of an ``/abort_request`` that ends one request, as an engine may get it; None: it is none, or ends all."""
    try:
        asked = msgspec.json.decode(body, type=_Abort)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return None if asked.abort_all or not asked.rid else msgspec.json.encode(asked)
