"""Which address this machine has for others, and which interface that belongs to.

Promises: found where it is asked, from what the machine has now; nothing is sent for it; what cannot be found is one line that
says what there is.
"""

from __future__ import annotations

import ipaddress
import platform
import socket
from collections.abc import Iterator, Mapping
from typing import Any

import psutil

from miles_async.config.loopback import is_loopback
from miles_async.config.rules import check_interface
from miles_async.config.schema import ConfigError

# nobody's (RFC 5737): the way to it is the way to everywhere
ANYWHERE = ("192.0.2.1", 9)
FAMILIES = (socket.AF_INET, socket.AF_INET6)


def own_address(interface: str | None, towards: tuple[str, int] = ANYWHERE) -> str:
    """The address of this machine on ``interface`` (its name, or a network that the address lies in); None: the one from which
    ``towards`` (host, port) is reached. Raises ConfigError: there is none."""
    if interface is None:
        return _towards(*towards)
    found = _in_network(interface) if "/" in interface else _of(interface)
    if found is None:
        there = ", ".join(f"{name} ({host})" for name, host in _addresses()) or "none"
        raise ConfigError(
            f'placement.interface = "{interface}": {platform.node()} has no address there; its own are {there}'
        )
    return found


def interface_of(host: str) -> str | None:
    """The name of the interface that has the address ``host``; None: none of this machine does."""
    return next((name for name, found in _addresses() if found == host), None)


def check_reached(variable: str, named: str, host: str) -> None:
    """Raises ConfigError: of the interfaces ``named`` (``variable`` has them, with commas between) one has no address here by
    which the machines that reach ``host`` reach this one."""
    others = [(name, own) for name, own in _addresses() if is_loopback(host) or not is_loopback(own)]
    if wrong := [name for name in named.split(",") if name not in {there for there, _ in others}]:
        there = ", ".join(f"{name} ({own})" for name, own in others) or "none"
        raise ConfigError(
            f'{variable} = "{named}": no other machine of the run gets to {platform.node()} by "{wrong[0]}"; unset it, or name '
            f"one of {there}"
        )


def is_within(host: str, network: str) -> bool:
    """Whether ``host`` is an address in ``network``."""
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(network, strict=False)
    except ValueError:
        return False


def is_network(interface: str) -> bool:
    """Whether it is one such as "10.0.0.0/8"."""
    try:
        ipaddress.ip_network(interface, strict=False)
    except ValueError:
        return False
    return "/" in interface


def _in_network(network: str) -> str | None:
    check_interface(network)
    wanted = ipaddress.ip_network(network, strict=False)
    return next((host for _, host in _addresses() if ipaddress.ip_address(host) in wanted), None)


def _of(interface: str) -> str | None:
    return next((host for name, host in _addresses() if name == interface), None)


def _addresses() -> Iterator[tuple[str, str]]:
    """Interface and address, IPv4 first; not those that are good for one link only."""
    every: Mapping[str, Any] = psutil.net_if_addrs()
    for family in FAMILIES:
        for name, ones in every.items():
            for one in ones:
                if one.family == family and not ipaddress.ip_address(one.address.partition("%")[0]).is_link_local:
                    yield name, one.address


def _towards(host: str, port: int) -> str:
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind, proto) as probe:
            probe.connect(address)  # UDP: picks the way, sends nothing
            return str(probe.getsockname()[0])
    except OSError as error:
        own = [found for _, found in _addresses() if not ipaddress.ip_address(found).is_loopback]
        if (host, port) == ANYWHERE and len(own) < 2:  # a network without a way out, or no network
            return own[0] if own else "127.0.0.1"
        whom = "other machines" if (host, port) == ANYWHERE else host
        raise ConfigError(
            f"{platform.node()} finds no way to {whom} ({error.strerror or error}): set placement.interface to the interface "
            "or the network on which the machines of the run reach each other"
        ) from None
