"""Who may ask the router what: every path is open, a client's, or control; one that is not named here is control.

Promises: pure; what changes engines, their weights, their requests or who they are needs the key for control, and so does what
shows how an engine was started (SGLang's ``/server_info`` holds its key); engines are added by hand only at the addresses of
``router.allowed_engines``; the run's own engines are where its configuration lets them be.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Literal
from urllib.parse import urlsplit

import msgspec

from miles_async.config.loopback import is_loopback
from miles_async.config.schema import ConfigError, Engine, RunConfig

Access = Literal["open", "client", "control"]

# the router's own pages, as its application names them
OWN: dict[tuple[str, str], Access] = {
    ("GET", "/health"): "open",
    ("GET", "/workers"): "client",
    ("GET", "/workers/{name:path}"): "client",
    ("GET", "/list_workers"): "client",
    ("GET", "/loads"): "client",
    ("GET", "/metrics"): "client",
    ("GET", "/openapi.json"): "client",
    ("POST", "/workers"): "control",
    ("DELETE", "/workers/{name:path}"): "control",
    ("POST", "/add_worker"): "control",
    ("POST", "/remove_worker"): "control",
}
# what is passed on to engines for whoever may generate: it changes nothing that outlives the request
CLIENTS: frozenset[tuple[str, str]] = frozenset(
    {
        *((method, "/generate") for method in ("POST", "PUT")),
        *(("POST", f"/v1/{name}") for name in ("completions", "chat/completions", "embeddings", "score", "responses")),
        *(("POST", path) for path in ("/tokenize", "/detokenize", "/v1/tokenize", "/v1/detokenize")),
        *(("GET", path) for path in ("/v1/models", "/model_info", "/get_model_info", "/health_generate")),
        ("POST", "/abort_request"),  # of one request: all of them are for who controls (one_request)
    }
)


class _Abort(msgspec.Struct):
    rid: str = ""
    abort_all: bool = False


def is_own(path: str) -> bool:
    """Whether a path is a page of the router, and not passed on to engines."""
    return path.startswith("/workers/") or any(path == known for _, known in OWN)


def access(method: str, path: str) -> Access:
    """What a request has to bring: nothing, the key of clients, or that for control."""
    template = "/workers/{name:path}" if path.startswith("/workers/") else path
    if (method, path) in CLIENTS:
        return "client"
    return OWN.get((method, template), "control")


def one_request(body: bytes) -> bytes | None:
    """The body of an ``/abort_request`` that ends one request, as an engine may get it; None: it is none, or ends all."""
    try:
        asked = msgspec.json.decode(body, type=_Abort)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return None if asked.abort_all or not asked.rid else msgspec.json.encode(asked)


def host_and_port(url: str) -> tuple[str, int] | None:
    """Of an engine's ``http://host:port``; None: it is no such URL."""
    try:
        parts = urlsplit(url)
        port = parts.port or 80
    except ValueError:
        return None
    if parts.scheme != "http" or not parts.hostname or parts.username or parts.password:
        return None
    return parts.hostname, port


def is_allowed(url: str, patterns: Iterable[str]) -> bool:
    """Whether one of ``router.allowed_engines`` names the address: ``HOST:PORT``, each exactly or ``*`` (in a host for one
    part between dots), or ``NETWORK/BITS:PORT``."""
    where = host_and_port(url)
    return where is not None and any(_fits(*where, pattern) for pattern in patterns)


def _fits(host: str, port: int, pattern: str) -> bool:
    wanted, _, wanted_port = pattern.rpartition(":")
    wanted = wanted.strip("[]")
    if wanted_port not in ("*", str(port)):
        return False
    if "/" in wanted:
        try:
            return ipaddress.ip_address(host) in ipaddress.ip_network(wanted.replace("]", ""), strict=False)
        except ValueError:
            return False
    parts, wanted_parts = host.lower().split("."), wanted.lower().split(".")
    return len(parts) == len(wanted_parts) and all(map(fnmatchcase, parts, wanted_parts))


def check(config: RunConfig) -> None:
    """Refuse patterns of ``router.allowed_engines`` that can name nothing. Raises ConfigError."""
    for pattern in config.router.allowed_engines:
        if not is_pattern(pattern):
            raise ConfigError(
                f'router.allowed_engines: "{pattern}" is no address: expected "HOST:PORT", where "*" is any port and '
                'any part of a host, or "NETWORK/BITS:PORT"'
            )


def is_pattern(pattern: str) -> bool:
    """Whether it can name anything."""
    host, _, port = pattern.rpartition(":")
    if "/" in host:
        try:
            ipaddress.ip_network(host.strip("[]").replace("]", ""), strict=False)
        except ValueError:
            return False
    return bool(host) and (port == "*" or (port.isdecimal() and 0 < int(port) < 65536))


def is_of_run(url: str, engine: Engine, urls: Iterable[str] = ()) -> bool:
    """Whether an engine of the run can be there: one that the run starts is on this machine, somebody's is one of
    ``engine.urls`` (or of ``urls``, where those are given). Only there does its key go."""
    named = list(urls) or (engine.urls if engine.kind == "external" else [])
    if named:
        return url.rstrip("/") in {one.rstrip("/") for one in named}
    where = host_and_port(url)
    return where is not None and is_loopback(where[0])
