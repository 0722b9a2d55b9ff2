"""The real SGLang server, driven by our own driver and weight plane, from start to stop."""

from __future__ import annotations

import asyncio
import os
import tempfile
from pathlib import Path

import aiohttp
import psutil
import pytest
from contract.checkpoint import log_probs, make_checkpoint
from contract.client import LONG, PROMPT, Engine, sampled
from safetensors.torch import load_file

from actors.runtime.own_address import interface_of, own_address
from miles_async.config.schema import Data, Model, RunConfig, Weights
from miles_async.engines.client import EngineClient
from miles_async.engines.sglang.driver import SglangError, SglangServer
from miles_async.engines.sglang.observer import Observer
from miles_async.weights.snapshot import write_snapshot
from miles_async.weights.transports.collective import Collective
from miles_async.weights.update import Receiver

pytestmark = pytest.mark.sglang

TOLERANCE = 1e-4  # log-probs, float32 against float32


def shared_files() -> set[Path]:
    """SGLang's files in shared memory."""
    return set(Path("/dev/shm").glob("sglang_*"))


def left_behind(session: int) -> list[psutil.Process]:
    """Processes of a session that have not exited."""
    found = []
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue
    return found


async def is_seen_as_it_is(server: SglangServer, client: EngineClient) -> None:
    """Pause the server, stop its scheduler, kill it: each is seen as what it is. The server is dead afterwards."""
    observer = Observer(client, hang_s=6.0)
    assert (await observer.look(server.alive())).state == "serving"
    await client.pause("retract")
    assert (await observer.look(server.alive())).state == "paused"
    await client.resume()
    assert (await observer.look(server.alive())).state == "serving"
    (scheduler,) = [p for p in left_behind(server.pid) if "scheduler" in " ".join(p.cmdline())]
    scheduler.suspend()
    async with asyncio.timeout(60.0):
        while (found := await observer.look(server.alive())).state == "serving":
            pass
    assert found.state == "hung"
    assert "its scheduler has not answered" in found.reason
    scheduler.resume()
    async with asyncio.timeout(60.0):
        while (await observer.look(server.alive())).state != "serving":
            pass
    os.kill(server.pid, 9)
    await server.wait()
    assert (await observer.look()).reason == "nobody listens at its address"
    assert (await observer.look(server.alive())).state == "dead"


async def test_a_server_starts_generates_takes_weights_in_flight_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = Path(tempfile.mkdtemp())  # its sockets lie there, whose paths may have 107 characters
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    shared = shared_files()
    host = own_address(None)  # as on several machines, where there is another one than loopback
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", interface_of(host) or "")
    old, new = make_checkpoint(tmp_path / "old", seed=1), make_checkpoint(tmp_path / "new", seed=2)
    snapshot = write_snapshot(tmp_path / "snapshots", 7, 0, load_file(new / "model.safetensors"), str(new))

    server = await SglangServer.start(
        str(old),
        host=host,
        log_file=tmp_path / "log.txt",
        device="cpu",
        weight_version="6",
        api_key="it's secret",
        timeout_s=400.0,
    )
    try:
        assert server.alive() and server.url.startswith(f"http://{host}:")
        assert server.suspicious == ()
        assert len(left_behind(server.pid)) > 2, "the server's processes share its session"
        async with aiohttp.ClientSession(headers={"Authorization": "Bearer it's secret"}) as session:
            async with aiohttp.ClientSession() as stranger, stranger.get(server.url + "/model_info") as answer:
                assert answer.status == 401
            engine = Engine("sglang", server.url, old, new, session)
            receiver = Receiver("engine-0", EngineClient(server.url, session, name="engine-0"))
            config = RunConfig(model=Model(hf_checkpoint=str(old)), data=Data(), weights=Weights(backend="gloo"))
            transport = Collective(config, tmp_path)
            update = await transport.prepare(snapshot, (0, 7))
            await transport.groups.get([receiver], 60.0)  # so that the push pauses at once
            running = engine.watch(LONG)
            await running.until_tokens(10)
            report = await transport.push([receiver], update)
            await transport.close()
            assert (report.served, report.failed) == (("engine-0",), {})
            await engine.generate(sampling_params={"max_new_tokens": 30, "ignore_eos": True})  # they decode in step
            await engine.ok("/abort_request", abort_all=True)
            answer = await running.finished()
            spans = answer["meta_info"]["weight_versions"]
            assert [span["version"] for span in spans] == ["6", "7"]
            assert (spans[0]["start"], spans[0]["end"]) == (0, spans[1]["start"])
            assert spans[1]["end"] == len(answer["output_ids"]) < LONG
            for span, model in zip(spans, (old, new), strict=True):
                part = slice(span["start"], span["end"])
                expected = log_probs(model, PROMPT, answer["output_ids"])[part]
                assert sampled(answer)[part] == pytest.approx(expected, abs=TOLERANCE)
            await is_seen_as_it_is(server, EngineClient(server.url, session))
    finally:
        await server.stop()
    assert not server.alive()
    assert left_behind(server.pid) == []
    assert os.listdir(scratch) == []
    os.rmdir(scratch)
    assert shared_files() <= shared


async def test_a_server_that_cannot_start_says_why_at_once(tmp_path: Path) -> None:
    with pytest.raises(SglangError, match=r"exited with status [1-9]\d* before it answered.*(?s:.*)missing"):
        await SglangServer.start(str(tmp_path / "missing"), log_file=tmp_path / "log.txt", device="cpu")


async def test_a_server_that_is_too_slow_or_given_up_leaves_nothing(tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / "model", seed=1)
    before = set(psutil.pids())
    with pytest.raises(SglangError, match="did not answer /health within 1 s"):
        await SglangServer.start(str(model), log_file=tmp_path / "log.txt", device="cpu", timeout_s=1.0)
    start = asyncio.create_task(SglangServer.start(str(model), log_file=tmp_path / "log.txt", device="cpu"))
    await asyncio.wait({start}, timeout=2.0)
    started = [child for child in psutil.Process().children(recursive=True) if child.pid not in before]
    start.cancel()
    with pytest.raises(asyncio.CancelledError):
        await start
    assert started, "it had not started anything"
    assert not [child for child in started if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
