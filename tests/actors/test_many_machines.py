"""The site of several machines: what each actor finds out in its own process, and what it tells the others."""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path

import psutil
import pytest
from apart import address_or_skip
from msgspec.structs import replace as with_sections

from actors.runtime import many_machines as sites
from actors.runtime.many_machines import ManyMachines, many_machines
from actors.runtime.own_address import interface_of, own_address
from actors.runtime.site import ONE_MACHINE, Rank
from bus import Bus
from bus.whereabouts import MEETINGS, meeting, see_memory, tell_meeting, tell_memory
from miles_async.cli.load import parse
from miles_async.config.schema import ConfigError, Data, Engine, Model, Placement, Router, RunConfig
from miles_async.config.toml import dump
from miles_async.runs import state
from miles_async.runs.state import RunState
from miles_async.weights import place as places
from miles_async.weights.interface import GLOO, NCCL

CONFIG = RunConfig(model=Model(hf_checkpoint="builtin:digits"), data=Data(prompt_data="builtin:repeat"))
LOOPBACK = interface_of("127.0.0.1")


# addresses


def test_the_address_is_that_of_the_interface_or_network_that_is_named_else_the_one_towards_the_bus() -> None:
    assert own_address(LOOPBACK) == own_address("127.0.0.0/8") == own_address(None, ("127.0.0.1", 6379)) == "127.0.0.1"
    host = address_or_skip()
    name = interface_of(host)
    assert name is not None and own_address(f"{host}/32") == host and own_address(None, (host, 6379)) == host
    assert ManyMachines(interface=f"{host}/32", bus_host="127.0.0.1").host == host


def test_an_interface_that_is_not_there_is_one_line_that_names_those_that_are() -> None:
    for wrong in ("nosuch7", "203.0.113.0/24"):
        with pytest.raises(
            ConfigError, match=f'placement.interface = "{wrong}": .* no address there; .* \\(127.0.0.1\\)'
        ):
            own_address(wrong)
    for look in (own_address, lambda wrong: parse(dump(with_sections(CONFIG, placement=Placement(interface=wrong))))):
        with pytest.raises(ConfigError, match="expected the name of an interface, or a network such as"):
            look("10.0.0.0/99")


def test_a_site_is_a_value_that_knows_where_the_bus_is_and_no_address_of_its_own() -> None:
    site = many_machines(CONFIG, "redis://:secret@10.1.2.3:7000/0")
    assert site == ManyMachines(None, "10.1.2.3", 7000) and "secret" not in repr(site)
    assert many_machines(CONFIG, "unix:///x.sock") == many_machines(CONFIG) == ManyMachines()


def test_what_the_configuration_has_on_loopback_listens_where_others_reach_it_and_what_it_names_stays() -> None:
    site = ManyMachines(interface="127.0.0.0/8")
    assert site.listens("localhost") == site.listens("::1") == "127.0.0.1"
    assert site.listens("0.0.0.0") == "0.0.0.0" and site.listens("10.0.0.7") == "10.0.0.7"
    assert site.announced("0.0.0.0") == site.announced("::") == "127.0.0.1" and site.announced("10.0.0.7") == "10.0.0.7"


def test_keys_go_to_the_network_that_is_named_only_and_to_no_loopback() -> None:
    host = address_or_skip()
    named, anywhere = ManyMachines(interface=f"{host}/32"), ManyMachines(bus_host=host)
    assert named.is_ours(host) and not named.is_ours("198.51.100.1") and not named.is_ours("a.example")
    assert anywhere.is_ours("198.51.100.1") and not anywhere.is_ours("127.0.0.1") and not anywhere.is_ours("localhost")
    assert ManyMachines(bus_host="127.0.0.1").is_ours("127.0.0.1")  # machines that are all one


# what is entered


async def test_all_actors_of_a_run_draw_the_same_keys_and_nobody_else_finds_them(bus: Bus, tmp_path: Path) -> None:
    state.write(tmp_path, RunState(bus.run_id, 1))
    found: list[RunConfig] = []
    site = ManyMachines(interface=LOOPBACK)
    for _ in range(2):
        async with site.entered("engine-0", CONFIG, tmp_path, bus) as config:
            found.append(config)
    first, second = found
    assert first == second and first.router.api_key != first.engine.api_key and len(first.engine.api_key or "") > 20
    assert str(first.router.api_key) not in dump(first) and str(first.engine.api_key) not in dump(first)
    await bus.forget_processes()  # another launch
    ours = with_sections(CONFIG, router=Router(api_key="router-key"), engine=Engine(api_key="env:ENGINE"))
    async with (
        site.entered("engine-0", CONFIG, tmp_path, bus) as third,
        site.entered("engine-0", ours, tmp_path, bus) as kept,
    ):
        assert third.engine.api_key != first.engine.api_key
        assert (kept.router.api_key, kept.engine.api_key) == ("router-key", "env:ENGINE")
    theirs = with_sections(CONFIG, engine=Engine(kind="external", urls=["http://a:1"]))
    async with site.entered("engine-0", theirs, tmp_path, bus) as config:
        assert config.engine.api_key is None  # somebody's servers ask for what they ask for


async def test_a_machine_that_does_not_see_the_run_directory_is_told_so(
    bus: Bus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sites, "SEEN_S", 0.0)
    site = ManyMachines(interface=LOOPBACK)
    for there, found in ((None, "nothing"), (RunState("another", 1), "run another")):
        if there is not None:
            state.write(tmp_path, there)
        with pytest.raises(
            ConfigError, match=f"has {found} in {tmp_path}, where run {bus.run_id} is: .* storage that all"
        ):
            async with site.entered("engine-0", CONFIG, tmp_path, bus):
                raise AssertionError("it was let in")


async def test_collectives_go_over_the_interface_of_the_address_while_the_actor_lives(
    bus: Bus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state.write(tmp_path, RunState(bus.run_id, 1))
    monkeypatch.setenv(GLOO, "")  # as good as nothing
    monkeypatch.setenv(NCCL, "ib0")
    async with ManyMachines(interface=LOOPBACK).entered("engine-0", CONFIG, tmp_path, bus):
        assert os.environ[GLOO] == LOOPBACK and os.environ[NCCL] == "ib0"  # somebody knew
    assert os.environ[GLOO] == "" and os.environ[NCCL] == "ib0"


async def test_an_interface_for_gloo_by_which_no_other_machine_gets_here_is_one_line(
    bus: Bus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = address_or_skip()
    name = interface_of(host)
    state.write(tmp_path, RunState(bus.run_id, 1))
    for named, wrong in ((LOOPBACK, LOOPBACK), (f"{name},nosuch7", "nosuch7")):
        monkeypatch.setenv(GLOO, named or "")
        with pytest.raises(
            ConfigError, match=f'{GLOO} = "{named}": .* by "{wrong}"; unset it, or name one of .*{name} \\({host}\\)'
        ):
            async with ManyMachines(interface=f"{host}/32").entered("engine-0", CONFIG, tmp_path, bus):
                raise AssertionError("it was let in")
        async with ManyMachines(interface=f"{host}/32").entered("rollout-0", CONFIG, tmp_path, bus):
            pass  # which is in no collective
    monkeypatch.setenv(GLOO, name or "")
    async with ManyMachines(interface=f"{host}/32").entered("engine-0", CONFIG, tmp_path, bus):
        assert os.environ[GLOO] == name


async def test_on_one_machine_gloo_listens_on_loopback_unless_engines_are_somebody_elses(
    bus: Bus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By itself it listens where the machine's name points to, which is often an address that others reach."""
    monkeypatch.delenv(GLOO, raising=False)
    theirs = with_sections(CONFIG, engine=Engine(kind="external", urls=["http://a:1"]))
    for config, over in ((CONFIG, LOOPBACK), (theirs, None)):
        async with ONE_MACHINE.entered("broadcaster", config, tmp_path, bus):
            assert os.environ.get(GLOO) == over
    assert GLOO not in os.environ


# where ranks meet


async def test_ranks_meet_at_a_port_that_only_the_address_of_rank_0_listens_on(bus: Bus, tmp_path: Path) -> None:
    host = address_or_skip()
    site = ManyMachines(interface=f"{host}/32")
    async with site.rendezvous(tmp_path, Rank(0, 3, 20.0), bus) as where:
        async with site.rendezvous(tmp_path, Rank(1, 3, 20.0), bus) as found:
            assert found == where and where.startswith(f"tcp://{host}:")
        port = int(where.rpartition(":")[2])
        listening = [one.laddr for one in psutil.Process().net_connections() if one.status == psutil.CONN_LISTEN]
        assert [one.ip for one in listening if one.port == port] == [host]
        socket.create_connection((host, port), 5.0).close()


async def test_a_rank_is_never_told_where_the_ranks_of_another_incarnation_meet(bus: Bus) -> None:
    await tell_meeting(bus, 1, "tcp://10.0.0.1:1")
    waiting = asyncio.create_task(meeting(bus, 2, 30.0, "learner-0"))
    with pytest.raises(TimeoutError, match=r"waited 0\.1 s for learner-0 to say where the ranks of incarnation 2 meet"):
        await meeting(bus, 2, 0.1, "learner-0")
    await bus.redis.hset(bus.key(MEETINGS), "2", "file:///etc/passwd")  # junk is refused, and waited past
    with pytest.raises(TimeoutError):
        await meeting(bus, 2, 0.0, "learner-0")
    assert bus.refused[MEETINGS] and not waiting.done()
    await tell_meeting(bus, 2, "tcp://10.0.0.2:2")
    assert await waiting == "tcp://10.0.0.2:2"
    await bus.forget_processes()
    with pytest.raises(TimeoutError):
        await meeting(bus, 1, 0.0, "learner-0")


# memory


async def test_snapshots_lie_in_memory_only_while_all_who_read_them_say_that_they_see_it(
    bus: Bus, tmp_path: Path
) -> None:
    shared = with_sections(CONFIG, placement=Placement(shared_dir=str(tmp_path / "shared")))
    readers, site = ("broadcaster", "evaluator"), ManyMachines()
    assert not await site.memory_reaches(readers, bus)  # nobody has said anything yet
    here = places.memory_here()
    for reader in readers:
        await tell_memory(bus, reader, here)
    assert await site.memory_reaches(readers, bus) and here
    await tell_memory(bus, "broadcaster", "another boot:27")  # its successor is elsewhere
    assert not await site.memory_reaches(readers, bus) and not await see_memory(bus, readers, "")
    roots = [site.snapshot_root(shared, tmp_path / "run", 0, in_memory=seen) for seen in (True, False)]
    assert roots == [places.in_memory(tmp_path / "run"), places.shared_root(shared, tmp_path / "run")]
    assert site.snapshot_root(CONFIG, tmp_path / "run", 0, in_memory=False) == tmp_path / "run" / "snapshots"
    roots[0].rmdir()


async def test_who_leaves_a_machine_last_takes_along_what_the_run_has_in_its_memory(
    bus: Bus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(places, "MEMORY_ROOT", tmp_path)
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    state.write(run_dir, RunState(bus.run_id, 1))
    site = ManyMachines(interface=LOOPBACK)
    killed = places.claim(tmp_path / "of-another-run")
    assert killed is not None
    killed.let_go()
    async with site.entered("engine-0", CONFIG, run_dir, bus):
        assert not killed.root.exists()
        async with site.entered("broadcaster", CONFIG, run_dir, bus):
            (places.in_memory(run_dir) / "i0001-v00000001").mkdir()
            assert places.hold(places.in_memory(run_dir)) is None  # nobody sweeps it away
            assert await site.memory_reaches(("engine-0", "broadcaster"), bus)
        assert (places.in_memory(run_dir) / "i0001-v00000001").is_dir()
    assert os.listdir(tmp_path) == ["run"]
