"""Where engines may be: those of the run by its configuration, those that somebody adds by ``router.allowed_engines``.

Promises: pure; engines are added by hand only at addresses that the configuration names; the run's own engines are where it
lets them be.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from urllib.parse import urlsplit

from miles_async.config.loopback import is_loopback
from miles_async.config.schema import ConfigError, RunConfig


def host_and_port(url: str) -> tuple[str, int] | None:
    """The host and the port of an engine's ``http://host:port``; None: it is no such URL."""
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


def is_of_run(url: str, addresses: Iterable[str], is_ours: Callable[[str], bool] = is_loopback) -> bool:
    """Whether an engine of the run can be there: one that the run starts is at a host that ``is_ours``, somebody's is one of
    ``addresses`` (``kinds.base.EngineKind.addresses``). Only there does its key go."""
    named = {one.rstrip("/") for one in addresses}
    if named:
        return url.rstrip("/") in named
    where = host_and_port(url)
    return where is not None and is_ours(where[0])
