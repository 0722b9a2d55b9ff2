"""``external``: somebody's servers, at the addresses of ``engine.urls``.

Promises: a server is checked before it is announced; that it hangs, dies or comes back is on record, and nothing is done to it.
"""

from __future__ import annotations

from bus.waits import WaitKind
from miles_async.config.schema import ConfigError, Engine, RunConfig
from miles_async.engines.kinds.base import EngineHost, EngineKind, refuse_tp_size
from miles_async.engines.sglang.check import check_server, until_it_answers
from miles_async.engines.sglang.observer import hang_timeout, looks


class External(EngineKind):
    """One for each URL; the host only watches it."""

    KEYS = ("engine.urls",)
    OURS = False
    FIXED = 'engine.kind = "external": these engines are somebody\'s (engine.urls), their number is not ours to change'
    RETURNS_ROUTES = True  # each is asked for it when it is attached

    def number(self, engine: Engine) -> int:
        return len(engine.urls)

    def addresses(self, engine: Engine) -> list[str]:
        return engine.urls

    def check(self, config: RunConfig) -> None:
        if not config.engine.urls:
            raise ConfigError('engine.urls is empty: engine.kind = "external" needs at least one URL')
        refuse_tp_size(config.engine)

    def check_use(self, config: RunConfig) -> None:
        if config.eval.eval_interval is not None and not config.eval.urls:
            raise ConfigError('eval.urls is empty: with engine.kind = "external" the run has no engine to evaluate on')

    async def host(self, host: EngineHost) -> None:
        await host.until_stopped(_attach(host, host.engine.urls[host.index].rstrip("/")))


async def _attach(host: EngineHost, url: str) -> None:
    """Check and announce somebody's server, and from then on record when it hangs, dies and comes back.

    Raises UnfitServerError: it cannot be an engine of this run; EngineError: it does not answer.
    """
    async with host.client(url) as client:
        with host.waiting(WaitKind.SERVER, url=url):
            await until_it_answers(client, host.engine.start_timeout_s)
            routes, dtype = host.config.rollout.routing_replay, host.config.model.dtype
            suspicious = await check_server(client, host.model_path, dtype, routes=routes)
        for line in suspicious:
            await host.event("engine_suspicious", what=line)
        await host.announce(url)
        gone = False
        async for health in looks(client, hang_timeout(host.config)):
            if gone != (gone := health.state in ("hung", "dead")):
                await host.event(f"engine_{health.state}", engine=host.name, url=url, reason=health.reason)
