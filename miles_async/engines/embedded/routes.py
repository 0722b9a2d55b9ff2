"""The experts of the running rows' tokens: what ``return_routed_experts`` gives back.

Promises: a position's route is that of the pass which first computed its keys and values, also where a retraction makes the
prefix be computed again: so it is of the pass that gave the log-prob of the token behind it. Nothing is allocated before
somebody asks.
"""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import numpy.typing as npt

Routes = npt.NDArray[np.integer[Any]]


class RowRoutes:
    """``store``: ``[rows, positions, layers, top_k]``, of the smallest type that numbers the experts; rows are the batch's."""

    def __init__(self) -> None:
        self.store: npt.NDArray[Any] = np.zeros((0, 0, 0, 0), np.uint8)

    def put(self, row: int, start: int, routes: Routes) -> None:
        """Of one row, those of its positions from ``start`` on: ``[positions, layers, top_k]``."""
        self._reserve(row + 1, start + len(routes), routes)
        self.store[row, start : start + len(routes)] = routes

    def put_one_each(self, positions: npt.NDArray[np.int64], routes: Routes) -> None:
        """Of the first rows, at least one, that of one position each: ``[rows, layers, top_k]``."""
        rows = len(positions)
        self._reserve(rows, int(positions.max()) + 1, routes)
        self.store[np.arange(rows), positions] = routes

    def of(self, row: int, count: int) -> Routes:
        """A copy of those of its first positions."""
        return self.store[row, :count].copy()

    def move(self, sources: npt.NDArray[np.int64], targets: npt.NDArray[np.int64], positions: int) -> None:
        """The first positions of rows go to the places of others, which stand before them."""
        known = sources < len(self.store)
        self.store[targets[known], :positions] = self.store[sources[known], :positions]

    def _reserve(self, rows: int, positions: int, like: Routes) -> None:
        has_rows, has_positions = self.store.shape[:2]
        if rows <= has_rows and positions <= has_positions:
            return
        rows = has_rows if rows <= has_rows else max(rows, 2 * has_rows)
        positions = has_positions if positions <= has_positions else max(positions, 2 * has_positions)
        store = np.zeros((rows, positions, *like.shape[-2:]), like.dtype)
        if self.store.size:
            store[:has_rows, :has_positions] = self.store
        self.store = store


def packed(chosen: npt.NDArray[np.int64], experts: int) -> Routes:
    """The same numbers, which are below ``experts``, in less memory."""
    return chosen.astype(np.min_scalar_type(experts - 1))


def base64_of(routes: Routes, start: int) -> str:
    """As SGLang writes those from position ``start`` on: base64 of int32 ``[positions, layers, top_k]``, row-major."""
    return base64.b64encode(np.ascontiguousarray(routes[start:], np.dtype("<i4")).tobytes()).decode()
