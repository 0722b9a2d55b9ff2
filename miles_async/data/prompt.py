"""What a prompt is, and the error of what cannot be one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt


class DataError(ValueError):
    """Prompts that cannot be used; one line with the file and, where there is one, the line number."""


@dataclass(frozen=True, slots=True, eq=False)
class Prompt:
    """One prompt.

    ``index``: its place in the list that ``load_prompts`` gave. ``tokens``: int32 [n], n >= 1. ``metadata``: what msgpack can
    carry; ``"messages"`` holds the messages of a prompt that was given as a list of them, ``"tools"`` its tools. ``source``:
    which of several sources it is of; they are numbered from 0 and lie one behind the other.
    """

    index: int
    text: str
    tokens: npt.NDArray[np.int32]
    label: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    source: int = 0
