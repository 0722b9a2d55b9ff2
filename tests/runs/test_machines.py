"""Machines that have nothing in common but a network and a directory: what the runs on them are tested with, and the runs."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from launching import events, metrics, summary, write_config
from machines import ROUTE, Machine, environment, machines, why_not

from bus.server import find_redis


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[str, Machine]]:
    if reason := why_not():
        pytest.skip(reason)
    with machines(("one", "two", "three"), shared=(tmp_path_factory.getbasetemp(),)) as made:
        yield made


def test_machines_reach_each_other_by_address_and_share_only_what_they_are_told_to(
    net: Mapping[str, Machine], tmp_path: Path
) -> None:
    one, two = net["one"], net["two"]
    serve = "import socket; s = socket.create_server(('', 4711)); print('up', flush=True); s.accept()[0].send(b'hello')"
    ask = "import socket, sys; print(socket.create_connection((sys.argv[1], 4711), 5).recv(5).decode())"
    server = one.popen([sys.executable, "-c", serve], stdout=subprocess.PIPE)
    try:
        assert server.stdout is not None and server.stdout.readline() == "up\n"
        assert "refused" in two.run([sys.executable, "-c", ask, "127.0.0.1"]).stderr
        assert two.run([sys.executable, "-c", ask, one.address]).stdout == "hello\n"
    finally:
        server.kill()
        server.communicate()
    for place, seen in ((tmp_path, "x\n"), (Path("/tmp"), ""), (Path("/dev/shm"), "")):
        assert one.run(["sh", "-c", f"echo x > {place}/there"]).returncode == 0
        assert two.run(["cat", f"{place}/there"]).stdout == seen
    assert [m.run(["hostname"]).stdout for m in (one, two)] == ["one\n", "two\n"]


def test_a_machine_whose_network_has_no_way_out_has_its_address_all_the_same(net: Mapping[str, Machine]) -> None:
    ask = [sys.executable, "-c", "from actors.runtime.own_address import own_address; print(own_address(None))"]
    one = net["one"]
    assert one.run(ask).stdout == f"{one.address}\n"
    assert one.run(["sh", "-c", "ip route del default"]).returncode == 0
    assert one.run(ask).stdout == f"{one.address}\n"
    assert one.run(["sh", "-c", ROUTE]).returncode == 0


SPLIT = {"num_ranks": 2, "tensor_parallel_size": 2}


def launch_over(
    net: Mapping[str, Machine], config: Path, run_dir: Path, roles: Mapping[str, str], **env: str
) -> subprocess.CompletedProcess[str]:
    """A run whose launch is on machine three, and its actors, by role, on others, or there."""
    places = {role: net[name].command([]) for role, name in {**roles, "": "three"}.items()}
    words = [sys.executable, "-m", "over_machines", str(config), str(run_dir), json.dumps(places)]
    return net["three"].run(words, timeout=600, env=environment(**env))


@contextlib.contextmanager
def redis_on(machine: Machine) -> Iterator[str]:
    """The URL of somebody's Redis there, which asks for a password."""
    program = find_redis()
    assert program is not None
    words = [program, "-", "--bind", machine.address, "--port", "6390", "--save", "", "--logfile", ""]
    server = machine.popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert server.stdin is not None and server.stdout is not None
    try:
        with server.stdin:
            server.stdin.write("requirepass somebodys\n")
        while "Ready to accept" not in (line := server.stdout.readline()):
            assert line, "it ended"
        yield f"redis://:somebodys@{machine.address}:6390"
    finally:
        server.kill()
        server.wait()
        server.stdout.close()


def assert_is_one_run(net: Mapping[str, Machine], run_dir: Path) -> None:
    """With its engines on machine two, all of whose updates came through; and no machine has weights in its memory still."""
    found = summary(run_dir)
    assert found["status"] == "finished" and found["steps"] == 4 and found["balanced"]
    urls = {up["data"]["url"].rpartition(":")[0] for up in events(run_dir, "engine_up")}
    assert urls == {f"http://{net['two'].address}"}
    served = metrics(run_dir, "broadcaster")
    assert served and all(line["values"]["weights/failed_engines"] == 0 for line in served)
    assert not events(run_dir, "snapshot_refused") and not events(run_dir, "snapshot_gone")
    assert [m.run(["sh", "-c", "ls /dev/shm | grep miles_async"]).stdout for m in net.values()] == [""] * len(net)


def test_a_learner_of_two_ranks_engines_and_workers_on_three_machines_are_one_run(
    net: Mapping[str, Machine], tmp_path: Path
) -> None:
    config = write_config(tmp_path, learner=SPLIT, bus={"url": "env:SOMEBODYS"})
    run_dir = tmp_path / "run"
    with redis_on(net["two"]) as url:
        roles = {"learner": "one", "broadcaster": "one", "engine": "two"}
        done = launch_over(net, config, run_dir, roles, SOMEBODYS=url)
    assert done.returncode == 0, (done.stdout[-2000:], done.stderr[-2000:])
    assert_is_one_run(net, run_dir)
    assert not (
        run_dir / "snapshots"
    ).exists()  # they were in the memory of machine one, or the run would have cleared them
    assert [m.name for m in net.values() if any(one.pid != m.holder for one in m.processes())] == []


def test_a_broadcaster_and_an_evaluation_away_from_the_learner_find_weights_where_all_machines_share_them(
    net: Mapping[str, Machine], tmp_path: Path
) -> None:
    shared = tmp_path / "shared"
    config = write_config(
        tmp_path,
        learner=SPLIT,
        weights={"transport": "disk_delta"},
        placement={"shared_dir": str(shared)},
        eval={"eval_interval": 2, "num_engines": 1, "keep_snapshots": 3},  # of all points: none is skipped
        **{"eval.datasets.seen": {"prompt_data": "builtin:repeat@[:4]", "n_samples_per_eval_prompt": 1}},
    )
    run_dir = tmp_path / "run"
    done = launch_over(net, config, run_dir, {"learner": "one", "engine": "two", "eval_engine": "two"})
    assert done.returncode == 0, (done.stdout[-2000:], done.stderr[-2000:])
    assert_is_one_run(net, run_dir)
    assert list(summary(run_dir)["eval"]["seen"]) == ["0", "2", "4"]
    deltas = [line["values"]["weights/delta_bytes"] for line in metrics(run_dir, "broadcaster")]
    assert min(deltas) > 0
    assert not shared.exists() or not any(shared.iterdir())
