"""Over which interface of this machine gloo and NCCL connect, which both take from the environment of their process.

Promises: what somebody has set stays as it is; what is set here is gone at the end of the block (``hooks/environment.py``).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from miles_async.hooks.environment import environment

GLOO, NCCL = "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"


@contextlib.contextmanager
def collectives_over(*, gloo: str | None = None, nccl: str | None = None) -> Iterator[None]:
    """Groups that are made inside the ``with`` use these interfaces (each as its variable has it; None: what they find)."""
    wanted = {name: value for name, value in ((GLOO, gloo), (NCCL, nccl)) if value and not os.environ.get(name)}
    with environment(wanted):
        yield
