"""What several test files share: a real Redis server, a bus on it, tiny checkpoints."""

from __future__ import annotations

import gc
import itertools
import os
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
# a shell's `&` has it ignored, and all that is started from here would not hear it either
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

import pytest
from hypothesis import HealthCheck, settings

from bus import Bus, connect
from bus.server import RedisServer

_run_ids = itertools.count()

LONGEST = (
    *("sglang", "test_faults", "test_runs", "test_ray_placement", "test_fault_campaign", "test_layouts", "test_wedges"),
    *("test_replay", "test_mixture_layouts", "test_sweep", "test_ledger_machine", "test_layout_faults"),
    *("test_lost_machine", "test_killed_saves", "test_layout_checkpoints", "test_routing_replay"),
)

# what a launch, or what it starts, takes for the word of whoever has set it
WORDS = (
    "GLOO_",
    "NCCL_",
    "MILES_",
    "OMP_",
    "RAY_ADDRESS",
    "RAY_AUTH_",
    "RAY_USAGE_",
    "PYTHONPATH",
    "PATH",
    "HOME",
    "TMPDIR",
)

# how fast a machine is, or what else it does, is nothing that a test of ours is about
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With several workers: a file's tests share one, for their fixtures; so do all that start the real SGLang server. The
    groups that take longest come first."""
    groups = {item: "sglang" if "sglang" in item.path.name else item.path.stem for item in items}
    order = {group: place for place, group in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(groups[item], len(order)))
    for item in items:
        item.add_marker(pytest.mark.xdist_group(groups[item]))


def pytest_collection_finish() -> None:
    gc.freeze()  # every module is there now, torch too: to look for garbage among them takes half a second each time


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    yield server.start()
    server.stop()


@pytest.fixture
async def bus(redis_url: str) -> AsyncIterator[Bus]:
    """A bus with a prefix of its own on the session's Redis."""
    bus = await connect(redis_url, f"test-{next(_run_ids)}")
    yield bus
    await bus.close()


@pytest.fixture(scope="session")
def digits_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The quickstart's 75k-parameter Qwen3 checkpoint, seed 1."""
    from miles_async.models.builtin import make_model

    directory = tmp_path_factory.mktemp("digits")
    make_model("builtin:digits", directory, seed=1)
    return directory


@pytest.fixture
def as_a_launch() -> Iterator[None]:
    """A supervisor runs in this process, and nothing of it stays."""
    from actors.runtime.placement import fork_server

    for server in fork_server.BOTH.values():
        server.end()  # of another test
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.fixture(autouse=True, scope="module")
def same_environment_as_before() -> Iterator[None]:
    """Launches of later tests have this process's: one that finds an interface there, say, takes it for the user's."""
    before = _words()
    yield
    left = _words()
    for name in left:
        del os.environ[name]
    os.environ.update(before)
    assert left == before, "a test of this file leaves its process another environment than it found"


def _words() -> dict[str, str]:
    return {
        name: value for name, value in os.environ.items() if name.startswith(WORDS) or name.upper().endswith("_PROXY")
    }


@pytest.fixture(params=[0, 8], ids=["no-connection", "idle-connections"])
def with_and_without_connections(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fleets whose router has no connection to an engine yet, or idle ones."""
    from fake_engines import FakeEngine

    monkeypatch.setattr(FakeEngine, "idle_connections", request.param)
