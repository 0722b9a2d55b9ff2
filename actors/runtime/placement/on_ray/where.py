"""A process of a machine of a Ray cluster as the place of an actor: how a heartbeat names it, and what another process sees.

Promises: the number of a process is looked up on its own machine only; of one elsewhere nothing is said.
"""

from __future__ import annotations

import ipaddress
import socket

import psutil

from actors.runtime.placement import process
from miles_async.monitor.diagnosis import Process
from miles_async.runs.placements import RAY


def place(host: str, pid: int) -> str:
    """What an actor says of where it runs; ``host``: the address of its machine, as Ray has it."""
    return f"{RAY} {pid}@{host}"


def look(rest: str) -> Process:
    """The process, as it was read from a heartbeat, from any machine."""
    pid, _, host = rest.partition("@")
    where = f"{RAY} {rest}"
    return Process(where, process.look(pid).state) if is_here(host) else Process(where)


def is_here(host: str) -> bool:
    """Whether it is an address of this machine."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    own = {found.address for of_one in psutil.net_if_addrs().values() for found in of_one if found.family in _FAMILIES}
    return address.is_loopback or host in own


_FAMILIES = (socket.AF_INET, socket.AF_INET6)
