"""The experts in engines' answers: asked for, read, and of which tokens they are not those of the pass that gave the log-prob.

    position   0 .. known-1      known .. tokens of prompt and response - 2      the last token
    route      kept as it is     of this answer                                  none: no pass has read it yet

Promises: pure; a token whose log-prob is of an earlier pass than the routes that came with it is found, whatever weights its
engine had, as far as the engine says that it computed a sequence again. The embedded engine keeps the routes of the first pass
(``routed_experts_kept``); SGLang returns those of the last one.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from miles_async.groups.routes import RouteShape

ANSWER = np.dtype("<i4")


def routes_asked(known: Sequence[int]) -> dict[str, Any]:
    """What a request asks for of sequences of which so many rows are known: it has one beginning for all of them."""
    return {"return_routed_experts": True, "routed_experts_start_len": min(known)}


def has_routes(meta: Mapping[str, Any]) -> bool:
    """Whether an answer has any: of a sequence that is aborted while it waits to be computed again SGLang returns none."""
    return meta.get("routed_experts") is not None


def read_routes(meta: Mapping[str, Any], shape: RouteShape, start: int, rows: int, known: int) -> list[bytes]:
    """The packed rows from ``known`` on of an answer for a sequence that has ``rows``; the answer begins at row ``start``.

    Raises ValueError: it has none, another number of them, or an expert that there is not.
    """
    if not has_routes(meta):
        raise ValueError(
            "no routed_experts in the answer, which rollout.routing_replay = true needs: an SGLang server returns them if it "
            "was started with --enable-return-routed-experts"
        )
    try:
        found = np.frombuffer(base64.b64decode(meta["routed_experts"], validate=True), ANSWER)
    except (binascii.Error, TypeError, ValueError) as error:
        raise ValueError(f"routed_experts is no base64 of int32: {error}") from None
    wanted = (rows - start, shape.layers, shape.top_k)
    if found.size != int(np.prod(wanted)):
        raise ValueError(f"routed_experts has {found.size} numbers, {' x '.join(map(str, wanted))} were expected")
    packed, size = shape.pack(found.reshape(wanted)[known - start :]), shape.row_bytes
    return [packed[place : place + size] for place in range(0, len(packed), size)]


def unpaired(versions: Sequence[int], retractions: int, *, updates_retract: bool) -> int:
    """How many of the first tokens of an answer have log-probs of an earlier pass than the routes that came with it.

    versions: the weights that sampled each token. retractions: how often the sequence was computed again, for want of room in
    its engine or, with updates_retract (``weights.pause_mode``), where the weights change. Where that cannot be told: all.
    """
    if not retractions:
        return 0
    changes = [place for place in range(1, len(versions)) if versions[place] != versions[place - 1]]
    return changes[-1] if updates_retract and len(changes) == retractions else len(versions)


def unpaired_in(meta: Mapping[str, Any], versions: Sequence[int], *, updates_retract: bool) -> int:
    """The same of an answer's ``meta_info``. Raises ValueError, TypeError: its number of retractions is none."""
    if meta.get("routed_experts_kept"):
        return 0
    return unpaired(versions, int(meta.get("num_retractions") or 0), updates_retract=updates_retract)
