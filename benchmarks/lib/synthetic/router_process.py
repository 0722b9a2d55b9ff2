"""The real router actor in a process of its own, on somebody's bus: ``python -m benchmarks.lib.synthetic.router_process``.

Its one argument is JSON: bus_url, run_id, directory, config (a RunConfig). Nothing of a synthetic engine is imported, so
that the process's memory is the router's.
"""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec
import uvloop

from actors.router import Router
from actors.runtime.context import run_actor
from actors.runtime.spec import ActorSpec
from miles_async.config.schema import RunConfig


class Arguments(msgspec.Struct):
    bus_url: str
    run_id: str
    directory: str
    config: RunConfig


def main() -> None:
    given = msgspec.json.decode(sys.argv[1], type=Arguments)
    directory = Path(given.directory)
    spec = ActorSpec("router", "router", 0, "", given.config, directory, "", given.bus_url, given.run_id, 1)
    uvloop.run(run_actor(spec, Router))


if __name__ == "__main__":
    main()
