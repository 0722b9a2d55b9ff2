"""What runs on one of the ``machines`` for a placement elsewhere: starts actors here as it is told, and tells how they end.

On standard input come pickled (call, arguments), on standard output go pickled (what, arguments): both of tests only.
"""

from __future__ import annotations

import asyncio
import os
import pickle
import sys
from typing import Any, BinaryIO

from actors.runtime.placement.local import LocalPlacement
from actors.runtime.spec import ActorSpec


def send(pipe: BinaryIO, what: str, *arguments: Any) -> None:
    pipe.write(pickle.dumps((what, *arguments)))
    pipe.flush()


async def serve(commands: BinaryIO, answers: BinaryIO) -> None:
    """Until the commands end."""
    local, tasks = LocalPlacement(), set[asyncio.Task[None]]()

    async def tell_end(spec: ActorSpec) -> None:
        send(answers, "ended", spec.id, await local.ended(spec.id))

    try:
        while command := await asyncio.to_thread(read, commands):
            call, *arguments = command
            if call == "start":
                local.start(arguments[0])
                tasks.add(asyncio.create_task(tell_end(arguments[0])))
            else:
                local.terminate(arguments[0], by_force=arguments[1])
    finally:
        local.end()
        local.close()


def read(pipe: BinaryIO) -> Any:
    try:
        return pickle.load(pipe)
    except EOFError:
        return None


if __name__ == "__main__":
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what others print is no answer
    asyncio.run(serve(sys.stdin.buffer, answers))
