"""Invariant 8: nothing is unpickled or executed that came from outside, and everything listens on loopback only."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path
from typing import Any

import pytest
import redis

from actors.engine import EngineHost
from actors.router import bind
from actors.runtime.context import ActorContext
from actors.runtime.spec import ActorSpec
from bus import Bus
from bus.server import RedisServer
from miles_async.config.schema import Data, Model, RunConfig
from miles_async.config.schema import Router as RouterConfig
from miles_async.engines.embedded import server as engine_server

ROOT = Path(__file__).parents[2]
SOURCES = sorted(path for package in ("bus", "miles_async", "actors") for path in (ROOT / package).rglob("*.py"))
CHECKPOINT_READER = ROOT / "miles_async" / "train" / "checkpoint_contents.py"
UNPICKLERS = {"pickle", "_pickle", "cPickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"}


def executes(node: ast.AST) -> bool:
    """Whether ``node`` imports something that unpickles, or runs text as code, or loads a file that may hold a pickle."""
    if isinstance(node, ast.Import):
        return any(alias.name.partition(".")[0] in UNPICKLERS for alias in node.names)
    if isinstance(node, ast.ImportFrom):
        return (node.module or "").partition(".")[0] in UNPICKLERS
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        return node.func.id in ("eval", "exec", "compile", "__import__")
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        harmless = any(ast.unparse(keyword) == "weights_only=True" for keyword in node.keywords)
        return not harmless and ast.unparse(node.func) in ("torch.load", "np.load", "numpy.load", "yaml.load")
    return False


def test_no_module_of_ours_unpickles_or_runs_text() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if path != CHECKPOINT_READER and executes(node)
    ]
    assert found == []


def test_the_reader_of_checkpoints_unpickles_by_its_list_of_allowed_names_only() -> None:
    """What it lets through, tests/train/test_checkpoint_damage.py tries."""
    tree = ast.parse(CHECKPOINT_READER.read_text())
    used = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert {name for name in used if name.startswith("pickle.")} == {"pickle.Unpickler", "pickle.UnpicklingError"}
    (unpickler,) = [n for n in ast.walk(tree) if isinstance(n, ast.ClassDef) and "pickle" in ast.unparse(n.bases[0])]
    assert "find_class" in [node.name for node in unpickler.body if isinstance(node, ast.FunctionDef)]
    others = [node for node in ast.walk(tree) if not isinstance(node, ast.Import) and executes(node)]
    assert others == [], "torch.load without weights_only"


def test_the_bus_of_a_run_listens_on_no_port(tmp_path: Path) -> None:
    server = RedisServer(tmp_path)
    try:
        with redis.Redis.from_url(server.start(), protocol=2) as client:
            answer: Any = client.config_get("port")
        assert answer == {"port": "0"}
    finally:
        server.stop()


def test_the_router_listens_on_loopback() -> None:
    with bind(RouterConfig()) as listener:
        assert listener.getsockname()[0] == "127.0.0.1"


@pytest.mark.parametrize("device", ["cpu", "cuda"])
async def test_an_embedded_engine_listens_on_loopback_and_computes_where_the_configuration_says(
    device: Any, bus: Bus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    async def serve(model_path: str, **options: Any) -> None:
        asked.update(options)

    monkeypatch.setattr(engine_server, "serve", serve)
    config = RunConfig(model=Model(hf_checkpoint="none", device=device), data=Data(prompt_data="none"))
    spec = ActorSpec("engine-0", "engine", 0, "", config, tmp_path, "", "", bus.run_id, 1)
    await EngineHost(ActorContext(spec, bus)).run()
    assert (asked["host"], asked["device"]) == ("127.0.0.1", device)


def test_a_server_started_without_a_host_listens_on_loopback() -> None:
    from miles_async.engines.sglang.driver import SglangServer

    for start in (engine_server.serve, SglangServer.start):
        assert inspect.signature(start).parameters["host"].default == "127.0.0.1"
