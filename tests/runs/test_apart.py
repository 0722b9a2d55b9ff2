"""A run whose actors take each other for strangers on other machines: nothing in it works by loopback, a socket in a file
or the memory of one machine."""

from __future__ import annotations

import io
import json
import os
import threading
from pathlib import Path

import psutil
import pytest
from apart import Alone, Apart, address_or_skip
from launching import events, left_behind, metrics, summary, write_config

from actors.runtime.supervisor import OK, Supervisor
from miles_async.cli.load import load
from miles_async.config.loopback import is_loopback
from miles_async.monitor import Monitor
from miles_async.runs import state
from miles_async.weights.place import in_memory


class Looker(threading.Thread):
    """Sees where the processes of this one listen, what they call themselves, and where the bus is, until it is over."""

    def __init__(self, run_dir: Path) -> None:
        super().__init__(daemon=True)
        self.run_dir, self.over = run_dir, threading.Event()
        self.hosts: dict[str, list[str]] = {}  # and who listens there
        self.lines: set[str] = set()
        self.bus_urls: set[str] = set()
        self.in_memory: set[str] = set()
        self.strangers = set(psutil.Process().children(recursive=True))  # what other tests have left running

    def run(self) -> None:
        while not self.over.wait(0.05):
            # what listens here, for another test, is of a child too until it has become another program
            ours = {one.laddr for one in psutil.Process().net_connections() if one.status == psutil.CONN_LISTEN}
            for process in set(psutil.Process().children(recursive=True)) - self.strangers:
                try:
                    line = process.cmdline()
                    self.lines.add(" ".join(line))
                    found = process.net_connections()
                except psutil.Error:
                    continue
                listening = (one.laddr for one in found if one.status == psutil.CONN_LISTEN)
                self.hosts |= {place.ip: line for place in listening if place not in ours}
            there = state.read(self.run_dir) if self.run_dir.is_dir() else None
            self.bus_urls |= {there.bus_url} if there is not None and there.bus_url else set()
            if in_memory(self.run_dir).is_dir():
                self.in_memory |= set(os.listdir(in_memory(self.run_dir)))


@pytest.mark.usefixtures("as_a_launch")
def test_a_run_on_several_machines_uses_no_loopback_no_socket_in_a_file_and_no_memory_of_one_of_them(
    tmp_path: Path,
) -> None:
    host = address_or_skip()
    config = load(write_config(tmp_path, learner={"num_ranks": 2}), [])
    run_dir = tmp_path / "run"
    placement, looker = Apart(Alone(interface=f"{host}/32")), Looker(run_dir)
    looker.start()
    try:
        assert Supervisor(config, run_dir, Monitor(stream=io.StringIO()), placement).run() == OK
    finally:
        looker.over.set()
        looker.join()
    found = summary(run_dir)
    assert found["status"] == "finished" and found["steps"] == 4 and found["balanced"]
    assert not {one: who for one, who in looker.hosts.items() if is_loopback(one) or one in ("0.0.0.0", "::")}
    assert looker.hosts.keys() == {host}
    urls = [up["data"]["url"] for up in events(run_dir, "engine_up")]
    assert urls and all(url.startswith(f"http://{host}:") for url in urls)
    assert looker.in_memory <= {"run"} and not in_memory(run_dir).exists()
    assert not (run_dir / "snapshots").exists() and not list(run_dir.glob("rendezvous-*"))
    assert metrics(run_dir, "broadcaster")[-1]["values"]["weights/bytes"] > 0
    # the password of the bus is with its URL, for its owner's eyes, and nowhere else
    [url] = looker.bus_urls
    assert url.startswith("redis://:") and f"@{host}:" in url
    password = url.removeprefix("redis://:").partition("@")[0]
    assert len(password) > 20 and not any(password in line for line in looker.lines)
    files = [path for path in run_dir.rglob("*") if path.is_file()]
    assert not [path for path in files if password.encode() in path.read_bytes()]
    assert "api_key" not in json.dumps([path.read_text() for path in run_dir.glob("logs/*.log")])
    assert left_behind(run_dir) == []
