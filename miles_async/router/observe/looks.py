"""Looks at what the engines of a router do, has ``suspects.py`` judge it, and takes out and lets back accordingly.

Promises: an engine that is up is asked for its load and its version each ``interval_s``, over the router's own connections; one
that is out is sent a small request instead of the clients'; a look waits for nobody longer than ``ASK_TIMEOUT_S``; what an
engine says to a client in the place of an answer is judged at once.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Callable

from miles_async.http.client_connection import UpstreamError
from miles_async.router.engine import RoutedEngine
from miles_async.router.fleet import RouterFleet
from miles_async.router.observe.loads import LoadPoller
from miles_async.router.observe.suspects import Observation, Probe, Suspects, Verdict

ASK_TIMEOUT_S = 2.0
PROBE_TOKENS = 16


class EngineLooks:
    """Looks at the engines of one router. ``found`` hears of every verdict, after it was acted upon."""

    def __init__(
        self,
        app: RouterFleet,
        loads: LoadPoller,
        suspects: Suspects,
        found: Callable[[RoutedEngine, Verdict], None],
    ) -> None:
        self._app, self._loads, self._suspects, self._found = app, loads, suspects, found
        # what each engine counted, and when that was seen to change
        self._counts: dict[RoutedEngine, tuple[tuple[int, ...], float]] = {}
        self._numbers = itertools.count()
        app.on_garbage = self._garbage

    async def run(self, stop: asyncio.Event) -> None:
        """Look until ``stop`` is set."""
        while not stop.is_set():
            began = self._app.clock()
            await self.look()
            try:
                # engines that do not answer make a look long, and must not make looks rare
                async with asyncio.timeout(max(0.0, began + self._suspects.interval_s - self._app.clock())):
                    await stop.wait()
            except TimeoutError:
                pass

    async def look(self) -> None:
        """One look at all engines at once, and what follows from it."""
        engines = [engine for engine in self._app.engines.values() if not engine.dead and not engine.draining]
        self._counts = {engine: counts for engine, counts in self._counts.items() if engine in engines}
        seen = await asyncio.gather(*map(self._look_at, engines))
        by_name = {engine.name: engine for engine in engines}
        # what left meanwhile, or came back as another one, is not judged by what its name did before
        still = [o for o in seen if self._app.engines.get(o.engine) is by_name[o.engine]]
        for verdict in self._suspects.look(self._app.clock(), still):
            self._act(by_name[verdict.engine], verdict)

    def _garbage(self, engine: RoutedEngine, said: str) -> None:
        verdict = self._suspects.garbage(self._app.clock(), engine.name, said)
        if verdict is not None:
            self._act(engine, verdict)

    def _act(self, engine: RoutedEngine, verdict: Verdict) -> None:
        if verdict.kind is None:
            self._app.trust(engine.name)
        else:
            self._app.suspect(engine.name, f"{verdict.kind}: {verdict.why}")
        self._found(engine, verdict)

    async def _look_at(self, engine: RoutedEngine) -> Observation:
        announced = str(engine.version) if engine.version >= 0 else None
        out = self._suspects.is_out(engine.name)
        version, load, probe = await asyncio.gather(
            self._version(engine),
            self._loads.load(engine) if not out else _nothing(),  # also an idle one: what it did since is in its count
            self._probe(engine) if out else _nothing(),
        )
        now = self._app.clock()
        before, moved_at = self._counts.get(engine, ((), 0.0))
        if load is not None and load.running is not None and load.progress != before:
            self._counts[engine], moved_at = (load.progress, now), now
        return Observation(
            engine.name,
            excused=engine.updating or self._app.paused,
            inflight=engine.inflight,
            quiet_s=min(engine.quiet_seconds(now), now - moved_at),
            running=load and load.running,
            tokens=load and load.generated,
            throughput=load and load.throughput,
            announced=announced if engine.version >= 0 and announced == str(engine.version) else None,
            reported=version,
            probe=probe,
        )

    async def _version(self, engine: RoutedEngine) -> str | None:
        """The weight version that it says it serves. None: it does not say."""
        try:
            status, content = await engine.upstream.get(b"/model_info", ASK_TIMEOUT_S)
            return str(json.loads(content)["weight_version"]) if status == 200 else None
        except UpstreamError as error:
            if error.garbage:
                self._garbage(engine, f"GET /model_info: {error}")
            return None
        except (TimeoutError, LookupError, TypeError, ValueError, RecursionError):
            return None

    async def _probe(self, engine: RoutedEngine) -> Probe:
        """A request like a client's, of a token that every vocabulary has."""
        sampling = {"max_new_tokens": PROBE_TOKENS, "ignore_eos": True}
        rid = f"router-probe-{id(self):x}-{next(self._numbers)}"
        body = json.dumps({"rid": rid, "input_ids": [0], "sampling_params": sampling}).encode()
        began = self._app.clock()
        try:
            async with asyncio.timeout(ASK_TIMEOUT_S):
                headers = [(b"content-type", b"application/json")]
                status, content = await engine.upstream.ask(b"POST", b"/generate", headers, body)
            if status != 200:
                return Probe(f"HTTP {status}")
            tokens = len(json.loads(content)["output_ids"])
            return Probe("", tokens, max(self._app.clock() - began, 1e-6))
        except TimeoutError:
            return Probe(f"no answer within {ASK_TIMEOUT_S:g} s")
        except (UpstreamError, LookupError, TypeError, ValueError, RecursionError) as error:
            return Probe(f"{type(error).__name__}: {error}")


async def _nothing() -> None:
    return None
