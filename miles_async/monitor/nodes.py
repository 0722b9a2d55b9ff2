"""A dead machine told from a dead process, by heartbeats. Pure: the caller brings the clock.

Promises: a node is suspected only when all of its actors that have not ended are silent, their last signs came as close
together as one blow leaves them, and somebody on another node was heard of since: else it is a process of its own, or the bus,
or the one who looks on, that was away. One whose only actor is silent is said to be so (``lone``): it cannot be told from a
process that died.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple


class Sign(NamedTuple):
    """The last sign of life of an actor that has not ended. ``heard``: seconds by the clock of whoever looks on, so that no
    machine's own clock matters. ``node`` "": it has not said where it is."""

    actor: str
    node: str
    heard: float


class SilentNode(NamedTuple):
    """A node of which nothing is heard. ``since``: its last sign. ``lone``: it has one actor, which may have died alone."""

    node: str
    since: float
    actors: tuple[str, ...]
    lone: bool


def silent_nodes(signs: Iterable[Sign], now: float, *, silent_s: float, together_s: float) -> list[SilentNode]:
    """The nodes that are suspected to be dead or cut off, in the order of their names.

    silent_s: how long all actors of a node have to be silent; longer than heartbeats are late on a machine that is busy.
    together_s: how far apart the last signs of actors that are lost together can be: one heartbeat interval and what is said
    late. Raises ValueError: one of the two is not positive.
    """
    if not (silent_s > 0 and together_s > 0):
        raise ValueError(f"silent_s = {silent_s}, together_s = {together_s}: both must be > 0")
    by_node: dict[str, list[Sign]] = {}
    for sign in signs:
        if sign.node:
            by_node.setdefault(sign.node, []).append(sign)
    last = {node: max(sign.heard for sign in there) for node, there in by_node.items()}
    found: list[SilentNode] = []
    for node, there in sorted(by_node.items()):
        others = [heard for other, heard in last.items() if other != node]
        is_silent = now - last[node] >= silent_s and bool(others) and max(others) > last[node] + together_s
        if is_silent and last[node] - min(sign.heard for sign in there) <= together_s:
            found.append(SilentNode(node, last[node], tuple(sorted(sign.actor for sign in there)), len(there) == 1))
    return found
