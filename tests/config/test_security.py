"""Passwords and keys: asked for, never shown; a router that others can reach needs one; nothing of ours unpickles."""

from __future__ import annotations

import ast
import asyncio
import json
import os
import shutil
import socket
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from launching import environment, launch, summary, write_config

from actors.runtime.home import RunHome
from bus import NoRedisError, connect
from bus.password import without_password
from bus.server import RedisServer, find_redis
from miles_async.cli.load import parse
from miles_async.config.loopback import is_loopback
from miles_async.config.schema import ConfigError, RunConfig
from miles_async.config.secrets import masked, resolve
from miles_async.config.toml import dump
from miles_async.runs.state import STATE_FILE, RunStateError

ROOT = Path(__file__).parents[2]
MINIMAL = (
    '[model]\nhf_checkpoint = "builtin:digits"\n[data]\nprompt_data = "builtin:repeat"\n'
    '[algorithm]\ncorrection = "behaviour"\n'
)
PASSWORD = "correct-horse"
KEPT = ("router-secret-1", "engine-secret-2", PASSWORD)


def config(*overrides: str) -> RunConfig:
    return parse(MINIMAL, overrides)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """host:port of a Redis that asks for PASSWORD."""
    port = free_port()
    flags = {"requirepass": PASSWORD, "port": str(port), "bind": "127.0.0.1"}
    server = RedisServer(tmp_path_factory.mktemp("guarded"), flags=flags)
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop()


# the bus


async def test_a_redis_with_a_password_takes_it_from_the_url(guarded: str) -> None:
    bus = await connect(f"redis://:{PASSWORD}@{guarded}", "r")
    assert await bus.redis.ping()
    await bus.close()


@pytest.mark.parametrize("credentials", [":wrong-horse@", "user:wrong-horse@", ""])
async def test_a_wrong_or_missing_password_is_one_clear_line_at_once_and_without_it(
    guarded: str, credentials: str
) -> None:
    with pytest.raises(NoRedisError) as caught:
        await connect(f"redis://{credentials}{guarded}", "r", deadline_s=5.0)
    message = str(caught.value)
    assert ("refuses the password" if credentials else "asks for a password") in message and guarded in message
    assert "\n" not in message and "wrong-horse" not in message


async def test_a_password_that_makes_no_url_is_not_shown() -> None:
    with pytest.raises(NoRedisError) as caught:
        await connect("redis://:se/cret#x@127.0.0.1:1", "r", deadline_s=1.0)
    assert "se/cret" not in str(caught.value) and "cret" not in str(caught.value)


def test_a_url_for_people_to_read_has_no_password() -> None:
    assert without_password("redis://:p@ss@h:1/0") == "redis://:***@h:1/0"
    assert without_password("rediss://u:p@h") == "rediss://u:***@h"
    assert without_password("redis://h:1?password=p&db=1") == "redis://h:1?password=***&db=1"
    assert without_password("unix:///tmp/x") == "unix:///tmp/x"


async def test_a_bus_over_tls(tmp_path: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("no openssl to make a certificate with")
    program = os.environ.get("TLS_REDIS") or find_redis()
    key, cert, port = tmp_path / "key.pem", tmp_path / "cert.pem", free_port()
    make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    make += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(cert)]
    process = await asyncio.create_subprocess_exec(*make, stderr=subprocess.DEVNULL)
    assert await process.wait() == 0
    flags = {"tls-port": str(port), "tls-cert-file": str(cert), "tls-key-file": str(key), "tls-ca-cert-file": str(cert)}
    flags |= {"tls-auth-clients": "no", "bind": "127.0.0.1", "requirepass": PASSWORD}
    server = RedisServer(tmp_path / "redis", program=program, flags=flags)
    try:
        server.start()
    except NoRedisError:
        pytest.skip(f"{program} was built without TLS")
    try:
        bus = await connect(f"rediss://:{PASSWORD}@127.0.0.1:{port}?ssl_ca_certs={cert}", "r")
        assert await bus.redis.ping()
        await bus.close()
        with pytest.raises(NoRedisError, match="certificate"):  # of nobody that is trusted
            await connect(f"rediss://:{PASSWORD}@127.0.0.1:{port}", "r", deadline_s=2.0)
    finally:
        server.stop()


# the configuration


def test_a_secret_can_be_taken_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        ConfigError, match=r'router.api_key = "env:NO_SUCH": the environment variable NO_SUCH is not set'
    ):
        config("router.api_key=env:NO_SUCH")
    with pytest.raises(ConfigError, match=r"bus.url = .*NO_SUCH is not set"):
        config("bus.url=env:NO_SUCH")
    monkeypatch.setenv("THE_KEY", KEPT[0])
    loaded = config("router.api_key=env:THE_KEY")
    assert resolve("router.api_key", loaded.router.api_key) == KEPT[0]
    assert loaded.router.api_key == "env:THE_KEY" and 'api_key = "env:THE_KEY"' in dump(loaded)
    monkeypatch.setenv("THE_KEY", "two\nlines")
    with pytest.raises(ConfigError, match=r"router.api_key: expected printable") as caught:
        config("router.api_key=env:THE_KEY")
    assert "two" not in str(caught.value)


def test_what_is_written_or_printed_has_no_secret() -> None:
    keys = [f"router.api_key={KEPT[0]}", f"engine.api_key={KEPT[1]}", f"bus.url=redis://:{PASSWORD}@h:1/0"]
    loaded = config(*keys)
    for text in (dump(loaded), repr(masked(loaded))):
        assert not any(secret in text for secret in KEPT)
        assert "redis://:***@h:1/0" in text
    assert parse(dump(loaded)).router.api_key == "***"
    with pytest.raises(ConfigError) as caught:
        parse(MINIMAL + "[router]\napi_key = [1234567]")
    assert "1234567" not in str(caught.value)


def test_a_router_that_others_can_reach_needs_a_key() -> None:
    for host in ("0.0.0.0", "::", "192.168.1.5", "example.org", ""):
        assert not is_loopback(host)
        with pytest.raises(ConfigError, match=r"router.host = .* set router.api_key"):
            config(f'router.host="{host}"')
        assert config(f'router.host="{host}"', "router.api_key=k").router.host == host
    for host in ("127.0.0.1", "127.1.2.3", "::1", "localhost"):
        assert config(f'router.host="{host}"').router.host == host


def test_supervisor_json_is_for_its_owner_and_a_damaged_one_is_one_line(tmp_path: Path) -> None:
    home = RunHome(tmp_path / "run")
    home.enter()
    home.announce(f"redis://:{PASSWORD}@h", None)
    assert stat.S_IMODE((tmp_path / "run" / STATE_FILE).stat().st_mode) == 0o600
    home.leave()
    for damage in (b"[1]", b"{}", b"\xff", b'{"pid":"x"}', b"[" * 100_000):
        (tmp_path / "run" / STATE_FILE).write_bytes(damage)
        with pytest.raises(RunStateError, match="is damaged") as caught:
            RunHome(tmp_path / "run").enter()
        assert "\n" not in str(caught.value)


def test_a_run_with_keys_and_a_password_works_and_leaves_none_of_them_behind(guarded: str, tmp_path: Path) -> None:
    settings = {"api_key": "env:FUZZ_ROUTER"}
    path = write_config(
        tmp_path, router=settings, engine={"num_engines": 1, "api_key": KEPT[1]}, bus={"url": "env:FUZZ_BUS"}
    )
    secrets = {"FUZZ_ROUTER": KEPT[0], "FUZZ_BUS": f"redis://:{PASSWORD}@{guarded}"}
    result = launch(path, tmp_path / "run", env=environment(**secrets))
    assert result.returncode == 0, result.stderr
    assert summary(tmp_path / "run")["balanced"]
    for file in (tmp_path / "run").rglob("*"):
        if file.is_file():
            content = file.read_bytes()
            assert not any(secret.encode() in content for secret in KEPT), file
    assert not any(secret in result.stdout + result.stderr for secret in KEPT)
    dry = launch(path, tmp_path / "dry", "--dry-run", "--json", env=environment(**secrets))
    assert json.loads(dry.stdout)["config"]["engine"]["api_key"] == "***"


# no code from anybody


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(name.name.split(".")[0] for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").split(".")[0])
    return found


def calls(path: Path) -> set[str]:
    """Names called, ``eval`` for ``eval(...)`` and ``torch.load`` for ``torch.load(...)``."""
    nodes = (node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call))
    return {ast.unparse(node) for node in nodes if isinstance(node, ast.Name | ast.Attribute)}


def test_nothing_from_the_bus_or_http_is_unpickled_or_evaluated() -> None:
    sources = [path for package in ("bus", "miles_async", "actors") for path in (ROOT / package).rglob("*.py")]
    assert len(sources) > 50
    # reads checkpoints, of which parts are pickles; test_nothing_runs_what_it_receives.py holds it to its allow list
    sources.remove(ROOT / "miles_async" / "train" / "checkpoint_contents.py")
    for path in sources:
        assert not imports(path) & {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "jsonpickle"}, path
        assert not calls(path) & {"eval", "exec", "torch.load", "torch.distributed.broadcast_object_list"}, path
        # what a process is started with goes through a pipe of its parent's, not over the bus
        if "multiprocessing" in imports(path):
            assert path.parent == ROOT / "actors" / "runtime" / "placement" and path.stem in ("local", "fork_server"), (
                path
            )
