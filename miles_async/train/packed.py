"""A micro-batch as its different input tokens, one after the other, and where each lies in rows of one width.

    tokens [T]    p1 p2 p3 | a1 a2 | b1 b2 b3 | …      two responses to one prompt: its tokens are there once
    rows          p1 p2 p3 a1 a2 .   and   p1 p2 p3 b1 b2 b3

Promises: pure; whatever works on single tokens (products, norms, SwiGLU) computes no padding, and a prompt once, however many
responses to it there are: nothing that follows it changes what is computed of it. Whatever looks along a sequence (attention)
finds it in its row. Numbers of rows are rounded up (:func:`whole_rows`), so that few shapes occur.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from miles_async.train.batch import MicroBatch

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Spread:
    """Which row of a tensor [size, ...] lies at each place of another one. int64, on one device."""

    source: torch.Tensor  # [places]
    order: torch.Tensor  # the places of the first row, of the second, and so on; those without meaning are left out
    offsets: torch.Tensor  # [size]: from where in ``order`` on its places are


@dataclass(frozen=True)
class Packed:
    """T different input tokens in ``rows`` of ``columns``; behind U of them follow tokens to be computed, n of them. On one
    device."""

    rows: int
    columns: int
    tokens: torch.Tensor  # [T, rounded up] int64; those behind the T-th are no part of any sequence
    column: torch.Tensor  # as many, int64: where in its sequence
    in_rows: Spread  # of the tokens over [rows * columns]
    place: torch.Tensor  # [T, rounded up] int64: one of its places
    count: int  # T
    wanted: torch.Tensor  # [U, rounded up] int64: which of the T
    wanted_place: torch.Tensor  # as many, int64
    wanted_count: int  # U
    outputs: Spread  # of those over [n, rounded up]
    output_count: int  # n


def whole_rows(count: int) -> int:
    """``count`` rounded up by less than an eighth (or 16): oneDNN makes a program for every number of rows it has not seen,
    for half a millisecond."""
    unit = max(16, 1 << max(count - 1, 0).bit_length() >> 4)
    return -(-count // unit) * unit


def packed(micro: MicroBatch, device: torch.device) -> Packed:
    """``micro`` on ``device``."""
    rows, columns = micro.tokens.shape
    column = np.arange(columns)
    _, first, prompt = np.unique(micro.prompts, return_index=True, return_inverse=True)
    home, own = first[prompt], np.arange(rows)  # the row whose prompt stands for it
    in_prompt = column < micro.prompt_widths[:, None]
    real = column < micro.widths[:, None]
    here = real & (~in_prompt | (home == own)[:, None])
    number = np.cumsum(here).reshape(rows, columns) - 1
    source = np.where(real, number[np.where(in_prompt, home[:, None], own[:, None]), column], 0)
    place = np.flatnonzero(here)
    wanted_column, wanted_row = np.divmod(micro.positions, rows)
    wanted, of_output = np.unique(source[wanted_row, wanted_column], return_inverse=True)
    outputs = len(of_output)
    of_output = np.pad(of_output, (0, whole_rows(outputs) - outputs))
    size, wanted_size = whole_rows(len(place)), whole_rows(len(wanted))

    def there(array: Array, count: int | None = None) -> torch.Tensor:
        if count is not None:
            array = np.pad(array, (0, count - len(array)))
        return torch.from_numpy(array).to(device)

    def spread(source: Array, meant: Array, size: int) -> Spread:
        of_meant = source[meant]
        counts = np.bincount(of_meant, minlength=size)
        order = meant[np.argsort(of_meant, kind="stable")]
        return Spread(there(source), there(order), there(np.cumsum(counts) - counts))

    return Packed(
        rows=rows,
        columns=columns,
        tokens=there(micro.tokens.ravel()[place], size),
        column=there(place % columns, size),
        in_rows=spread(source.ravel(), np.flatnonzero(real), size),
        place=there(place, size),
        count=len(place),
        wanted=there(wanted, wanted_size),
        wanted_place=there(place[wanted], wanted_size),
        wanted_count=len(wanted),
        outputs=spread(of_output, np.arange(outputs), wanted_size),
        output_count=outputs,
    )
