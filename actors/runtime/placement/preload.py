"""What the fork server imports once, so that every actor forked from it has it: what engines, workers and the learner need.

Promises: nothing here touches CUDA, which does not survive a fork; what a learner alone needs comes along where torch is
built for the CPU only; a fork server whose launch is gone ends at once. Imported by the fork server, and by nobody else.
"""

from __future__ import annotations

import gc
import importlib
import os
import signal

import setproctitle

from actors.runtime.placement.fork_server import LAUNCH_PID
from bus.server import die_with_parent

gc.disable()  # what is imported stays: looking for garbage among it again and again took a fifth of the time
die_with_parent(signal.SIGKILL)()  # by itself it would look for its launch only when all is imported
if os.environ.get(LAUNCH_PID, str(os.getppid())) != str(os.getppid()):
    os._exit(1)  # it was gone before that
setproctitle.setproctitle("miles-async fork server")

FOR_ALL = (  # torch, aiohttp, fastapi and redis come along
    "uvloop",
    "actors.runtime.placement.local",
    "safetensors.torch",
    "actors.dealer",
    "actors.rollout",
    "actors.router",
    "actors.engine",
    "actors.broadcaster",
)
FOR_A_LEARNER = (
    "actors.learner",
    "miles_async.train.trainer",
    "miles_async.train.attention",
    "megatron.core.optimizer",
    "transformers.models.auto.configuration_auto",
)

for module in FOR_ALL:
    importlib.import_module(module)

import torch  # noqa: E402

if torch.version.cuda is None and torch.version.hip is None:
    from miles_async.train import cpu_shim
    from miles_async.train.quiet_megatron import quiet_megatron

    quiet_megatron()
    cpu_shim.install(torch.device("cpu"))  # Megatron cannot be imported before
    for module in FOR_A_LEARNER:
        importlib.import_module(module)

# the collector of a forked process leaves alone what is here: looking at it would copy it, and take a tenth of a second
gc.freeze()
gc.enable()
