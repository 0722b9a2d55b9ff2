"""The servers that a run needs and does not start: engines and teachers. Is anybody there?

Promises: an address where nobody listens is one line, with its key, before anything starts; one that is only slow to answer is
left to those who check what answers. Engines of an evaluation are not looked for: no training waits for them, or ends without.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from urllib.parse import urlsplit

from miles_async.config.schema import ConfigError, RunConfig
from miles_async.engines.kinds.table import addresses_of

ABSENT_S = 10.0  # who begins to listen by then was only started a little later
CONNECT_S = 5.0
PAUSE_S = 0.2


async def refuse_absent(config: RunConfig) -> None:
    """Raises ConfigError naming the keys and addresses where nobody has listened for ``ABSENT_S``."""
    places = list(_places(config))
    causes = await asyncio.gather(*(_absent(url) for _, url in places))
    if absent := [f"{key} = {url} ({cause})" for (key, url), cause in zip(places, causes, strict=True) if cause]:
        raise ConfigError(f"nobody listens at {', '.join(absent)}: start what is to serve there first")


def _places(config: RunConfig) -> Iterator[tuple[str, str]]:
    yield from (("engine.urls", url) for url in addresses_of(config.engine))
    if config.algorithm.use_opd:
        yield from ((f"rollout.opd_teacher_urls.{name}", url) for name, url in config.rollout.opd_teacher_urls.items())


async def _absent(url: str) -> str:
    """Why nobody was reached there, empty if somebody was."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + ABSENT_S
    while True:
        try:
            parts = urlsplit(url)
            port = parts.port or (443 if parts.scheme == "https" else 80)
            async with asyncio.timeout(CONNECT_S):
                _, writer = await asyncio.open_connection(parts.hostname, port)
            writer.close()
            return ""
        except TimeoutError:
            cause = f"no connection within {CONNECT_S:g} s"
        except (OSError, ValueError, UnicodeError) as error:
            number = getattr(error, "errno", None) or 0  # negative: of a name that cannot be resolved
            cause = os.strerror(number) if number > 0 else str(error)
        if loop.time() >= deadline:
            return cause
        await asyncio.sleep(PAUSE_S)
