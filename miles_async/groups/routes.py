"""The experts that an engine's pass chose for each token, as a sample carries them to the learner (R3, arXiv 2510.11370).

Promises: pure (numpy only). Of a sequence of n tokens there are n - 1 rows: the last token is no input of the pass that gave
its log-prob. The first row is that of the prompt's first token. Layers without experts have entries, which nobody reads.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class RouteShape:
    """layers: all of the model. top_k: experts of a token. experts: how many a layer has; their numbers are 0..experts-1.
    dense: how many of the layers, the first ones, have no experts."""

    layers: int
    top_k: int
    experts: int
    dense: int = 0

    @property
    def dtype(self) -> np.dtype[Any]:
        """The smallest that numbers all experts."""
        return np.dtype("u1") if self.experts <= 256 else np.dtype("<u2")

    @property
    def row_bytes(self) -> int:
        """Bytes of one token."""
        return self.layers * self.top_k * self.dtype.itemsize

    def pack(self, routes: npt.NDArray[Any]) -> bytes:
        """routes: integers [rows, layers, top_k]. Raises ValueError: another shape, or an expert that there is not."""
        if routes.shape[1:] != (self.layers, self.top_k):
            raise ValueError(f"routes of shape {list(routes.shape)}, expected [rows, {self.layers}, {self.top_k}]")
        if routes.size and not (routes.min() >= 0 and routes.max() < self.experts):
            raise ValueError(f"an expert's number is not in 0..{self.experts - 1}: {routes.min()}..{routes.max()}")
        return np.ascontiguousarray(routes, dtype=self.dtype).tobytes()

    def unpack(self, data: bytes) -> npt.NDArray[Any]:
        """[rows, layers, top_k], read-only. Raises ValueError: no whole number of rows."""
        if len(data) % self.row_bytes:
            raise ValueError(f"{len(data)} bytes of routes, {self.row_bytes} a token")
        return np.frombuffer(data, self.dtype).reshape(-1, self.layers, self.top_k)

    def check_size(self, data: bytes, tokens: int) -> None:
        """Whether ``data`` is of a sequence of so many tokens. Raises ValueError."""
        if not data:
            raise ValueError("no experts came with it")
        if len(data) != (tokens - 1) * self.row_bytes:
            raise ValueError(f"{len(data)} bytes of experts, expected {tokens - 1} tokens of {self.row_bytes}")

    def check(self, data: bytes, tokens: int) -> None:
        """:meth:`check_size`, and whether these are experts. Raises ValueError: one that there is not, or one that a token has
        twice in a layer with experts."""
        self.check_size(data, tokens)
        chosen = self.unpack(data)[:, self.dense :]
        if chosen.size and chosen.max() >= self.experts:
            raise ValueError(f"an expert's number is not in 0..{self.experts - 1}: {chosen.max()}")
        for one, other in itertools.combinations(range(self.top_k), 2):
            if (chosen[..., one] == chosen[..., other]).any():
                raise ValueError("a token has an expert twice in one layer")
