"""What is imported once for all actors but the learner: torch, aiohttp, fastapi and redis come along. Imported by the fork
server, and by nobody else; nothing here touches CUDA, which does not survive a fork."""

from __future__ import annotations

from actors.runtime.placement.preloaded import for_good, import_all

with for_good("miles-async fork server"):
    import_all(
        (
            "uvloop",
            "actors.runtime.placement.local",
            "safetensors.torch",
            "actors.dealer",
            "actors.rollout",
            "actors.router",
            "actors.engine",
            "actors.broadcaster",
        )
    )
