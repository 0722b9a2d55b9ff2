"""A live run under malformed messages: over every topic and hash of its bus, and every endpoint of its router and engines.

Afterwards: no actor may have died, the run must have gone on and stop in order with a balanced ledger, and the counters of
refusals must account for everything that was sent where somebody reads. Seeded: ``FUZZ_MESSAGES`` (default 100000) and
``FUZZ_SEED``. ``miles-async bench fuzz``; exit by exception if a promise is broken.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.lib.fuzz_http import Client, HttpFuzz, Target
from benchmarks.lib.fuzz_messages import Fuzz
from bus import Bus, connect
from bus.topics import KINDS
from miles_async.monitor.record_lines import read_events, read_metrics
from miles_async.runs.state import living

HTTP_SHARE = 0.25  # of all messages
DAMAGE_SHARE = 0.002  # of the bus's: fields that the run owns, which are written again
CLIENTS = 2  # connections to each server
CHUNK = 400  # messages on the bus in one pipeline
STEPS_BEFORE, STEPS_AFTER = 2, 3
START_S, DRAIN_S, STOP_S = 240.0, 240.0, 60.0  # of a machine with other things to do
TROUBLE = ("died", "restarted", "stalled", "engine_down", "overdue")

CONFIG = """
[model]
hf_checkpoint = "builtin:digits"
[data]
prompt_data = "builtin:repeat"
[algorithm]
correction = "behaviour"
[run]
num_steps = 100000
max_restarts = 0
[rollout]
rollout_batch_size = 8
n_samples_per_prompt = 4
rollout_max_response_len = 10
[learner]
lr = 1e-4
[checkpoint]
save_interval = 50
save_hf = false
[engine]
api_key = "env:FUZZ_ENGINE_KEY"
[router]
api_key = "env:FUZZ_CLIENT_KEY"
admin_key = "env:FUZZ_ROUTER_KEY"
[monitor]
live = "off"
tensorboard = false
heartbeat_s = 0.5
"""


class BrokenPromiseError(AssertionError):
    """Something died, was lost, or was not counted."""


class FuzzedRun:
    """One run and what is thrown at it."""

    def __init__(self, directory: Path, seed: int) -> None:
        self.seed, self.run_dir = seed, directory / "run"
        self.keys: dict[Target, str] = {"router": secrets.token_hex(8), "engine": secrets.token_hex(8)}
        self.sent: Counter[str] = Counter()
        self.statuses: Counter[int] = Counter()
        config = directory / "run.toml"
        config.write_text(CONFIG)
        self.log = (directory / "launch.log").open("w+")
        command = [sys.executable, "-m", "miles_async.cli.app", "launch", str(config), "--run-dir", str(self.run_dir)]
        keys = {"FUZZ_ROUTER_KEY": self.keys["router"], "FUZZ_ENGINE_KEY": self.keys["engine"], "OMP_NUM_THREADS": "1"}
        keys["FUZZ_CLIENT_KEY"] = secrets.token_hex(8)
        self.process = subprocess.Popen(command, stdout=self.log, stderr=self.log, env={**os.environ, **keys})

    async def play(self, messages: int) -> dict[str, Any]:
        await self._until(lambda: self._steps() >= STEPS_BEFORE, START_S, "a first step")
        state = living(self.run_dir)
        assert state is not None and state.bus_url is not None
        bus = await connect(state.bus_url, state.run_id)
        bus.read_only = True
        targets = await self._targets(bus)
        before, began = self._steps(), time.monotonic()
        try:
            n_http = int(messages * HTTP_SHARE)
            await asyncio.gather(self._over_bus(bus, messages - n_http), self._over_http(targets, n_http))
            sending_s = time.monotonic() - began
            await self._until(lambda: not self._uncounted(), DRAIN_S, "count of every refusal")
            during = self._steps()
            await self._until(lambda: self._steps() >= during + STEPS_AFTER, DRAIN_S, "step after the last message")
            left = {topic: int(await bus.redis.xlen(bus.key(topic))) for topic in KINDS}
        finally:
            await bus.close()
        self.process.send_signal(signal.SIGINT)
        code = await asyncio.to_thread(self.process.wait, STOP_S)
        return {"exit_code": code, "sending_s": round(sending_s, 1), "steps": during - before, "entries_left": left}

    # what is sent

    async def _over_bus(self, bus: Bus, count: int) -> None:
        fuzz = Fuzz(self.seed)
        streams, tables = tuple(KINDS), ("heartbeats", "engines")
        while count > 0:
            pipe = bus.redis.pipeline(transaction=False)
            for _ in range(min(CHUNK, count)):
                if fuzz.rng.random() < DAMAGE_SHARE:
                    table = fuzz.rng.choice((*tables, "addresses"))
                    pipe.hset(bus.key(table), *fuzz.damage(table))
                    self.sent["damaged fields"] += 1
                    continue
                place = fuzz.rng.choice((*streams, *tables, "addresses"))
                if place in streams:
                    pipe.xadd(bus.key(place), fuzz.entry(place))
                else:
                    pipe.hset(bus.key(place), *fuzz.field(place))
                self.sent[place] += 1
            count -= CHUNK
            await pipe.execute()
            await asyncio.sleep(0)

    async def _targets(self, bus: Bus) -> list[tuple[Target, str]]:
        engines = [engine.url for engine in (await bus.engines()).values()]
        router = await bus.address("router", deadline_s=5.0)
        return [("router", router), *(("engine", url) for url in engines)]

    async def _over_http(self, targets: list[tuple[Target, str]], count: int) -> None:
        share = -(-count // (len(targets) * CLIENTS))
        tasks = [
            self._requests(target, url, share, self.seed * 1000 + number * CLIENTS + client)
            for number, (target, url) in enumerate(targets)
            for client in range(CLIENTS)
        ]
        await asyncio.gather(*tasks)

    async def _requests(self, target: Target, url: str, count: int, seed: int) -> None:
        fuzz, client = HttpFuzz(seed, self.keys[target]), Client(url)
        for _ in range(count):
            request = fuzz.request(target)
            status = await client.send(request)
            if status and not 400 <= status < 500:
                raise BrokenPromiseError(f"HTTP {status} for {request[:300]!r} at the {target}")
            self.statuses[status] += 1
            self.sent["http"] += 1
        await client.close()

    # what came of it

    def refused(self) -> Counter[str]:
        """What the actors and the supervisor say that they refused, by topic."""
        last: dict[str, float] = {}
        with contextlib.suppress(FileNotFoundError):
            for line in read_metrics(self.run_dir):
                last.update({k: v or 0.0 for k, v in line.values.items() if k.startswith("refused/")})
        found: Counter[str] = Counter()
        for name, count in last.items():
            what = name.split("/", 2)[2]
            found["http" if what.startswith("http ") else what] += int(count)
        return found

    def logged(self) -> int:
        """The lines about a refusal in the logs of the run."""
        return sum(log.read_bytes().count(b" WARNING refused ") for log in (self.run_dir / "logs").iterdir())

    def _uncounted(self) -> dict[str, tuple[int, int]]:
        """Topic to (sent, refused) where fewer were refused than sent."""
        refused = self.refused()
        expected = Counter({topic: n for topic, n in self.sent.items() if topic != "damaged fields"})
        expected["http"] -= self.statuses[0]  # closed while it was being sent: maybe no request at all
        return {topic: (n, refused[topic]) for topic, n in expected.items() if refused[topic] < n}

    def _steps(self) -> int:
        with contextlib.suppress(FileNotFoundError):
            return max((line.step for line in read_metrics(self.run_dir) if "raw_reward" in line.values), default=0)
        return 0

    async def _until(self, holds: Any, seconds: float, what: str) -> None:
        deadline = time.monotonic() + seconds
        while not holds():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.log.seek(0)
                raise BrokenPromiseError(
                    f"no {what} within {seconds:g} s; exit code {self.process.poll()}; not counted: {self._uncounted()}; "
                    f"{self.log.read()[-1500:]}"
                )
            await asyncio.sleep(0.5)

    def verdict(self, played: dict[str, Any]) -> dict[str, Any]:
        """The report. Raises BrokenPromiseError naming the promise."""
        summary = json.loads((self.run_dir / "summary.json").read_text())
        troubles = [f"{e.actor}: {e.kind} {e.data}" for e in read_events(self.run_dir) if e.kind in TROUBLE]
        promises = {
            "stopped in order": played["exit_code"] == 130 and summary["status"] == "stopped",
            "nothing died": not troubles and summary["starts"] == 1,
            "the ledger balances": summary["balanced"],
            "every refusal is counted": not self._uncounted(),
            "every refusal is logged": self.logged() >= self.refused().total(),
            "nothing was dropped but what junk made late": set(summary["ledger"]["dropped"]) <= {"stale"},
        }
        report = {
            "messages": self.sent.total(),
            "seed": self.seed,
            **played,
            "crashes": len(troubles),
            "sent": dict(sorted(self.sent.items())),
            "refused": dict(sorted(self.refused().items())),
            "logged": self.logged(),
            "http_statuses": {str(status): n for status, n in sorted(self.statuses.items())},
            "ledger": summary["ledger"],
            "balanced": summary["balanced"],
        }
        if broken := [promise for promise, kept in promises.items() if not kept]:
            raise BrokenPromiseError(f"not kept: {broken}; {troubles}; {summary['reason']}; {report}")
        return report

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.log.close()


def run(messages: int | None = None, seed: int | None = None) -> dict[str, Any]:
    """The report of one fuzzed run. Raises BrokenPromiseError."""
    messages = messages or int(os.environ.get("FUZZ_MESSAGES", "100000"))
    seed = seed or int(os.environ.get("FUZZ_SEED", "1"))
    with tempfile.TemporaryDirectory(prefix="fuzz-", ignore_cleanup_errors=True) as directory:
        fuzzed = FuzzedRun(Path(directory), seed)
        try:
            return fuzzed.verdict(asyncio.run(fuzzed.play(messages)))
        finally:
            fuzzed.close()


if __name__ == "__main__":
    print(json.dumps(run(), indent=2))
