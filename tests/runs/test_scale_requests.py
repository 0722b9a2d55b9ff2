"""``miles-async scale``: what is asked is a number for each kind, and what cannot be done is one line within the deadline."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from actors.runtime.scaler import Scaler
from actors.runtime.tasks import end
from bus import Bus, Roster
from bus.messages import Scale, Scaled
from miles_async.cli import app as cli
from miles_async.cli.scale import ScaleError, parse
from miles_async.config.schema import Data, Elastic, Engine, Model, Placement, RunConfig
from miles_async.runs.lock import RunLock, holder
from miles_async.runs.state import RunState, write


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [(["engines=3"], {"engines": 3}), (["workers=1", "engines=1024"], {"workers": 1, "engines": 1024})],
)
def test_what_is_asked_is_a_number_for_each_kind(changes: list[str], wanted: dict[str, int]) -> None:
    assert parse(changes) == wanted


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ([], "nothing to scale"),
        (["engine=2"], 'no "engine" can be scaled; did you mean "engines"?'),
        (["learners=2"], 'no "learners" can be scaled'),
        (["engines=0"], 'engines = "0": expected a whole number from 1 to 1024'),
        (["workers=-1"], 'workers = "-1"'),
        (["workers=two"], 'workers = "two"'),
        (["engines=1025"], 'engines = "1025"'),
        (["engines=99999999999999999999"], 'engines = "99999999999999999999"'),
        (["engines=²"], 'engines = "²"'),
        (["engines"], 'engines = ""'),
        (["engines=1", "engines=2"], "engines is given twice"),
    ],
)
def test_a_request_that_means_nothing_is_one_line(changes: list[str], words: str) -> None:
    with pytest.raises(ScaleError) as raised:
        parse(changes)
    assert words in str(raised.value) and "\n" not in str(raised.value)


def supervised(run_dir: Path, url: str | None) -> Path:
    """A run directory whose supervisor is this process."""
    write(run_dir, RunState("scale", 1, os.getpid(), bus_url=url))
    if holder(run_dir) is None:
        RunLock(run_dir).take()
    return run_dir


def test_a_run_that_does_not_answer_is_one_line_within_the_deadline(
    tmp_path: Path, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("miles_async.cli.scale.ANSWER_S", 0.3)
    cases = [
        (None, 10.0, 2, "only starting"),
        (redis_url, 10.0, 1, "supervisor did not answer within 0.3 s"),  # a busy Redis answers later than an absent one
        ("unix:///no", 0.3, 3, "/no"),
    ]
    for url, bus_deadline_s, code, words in cases:
        monkeypatch.setattr("miles_async.cli.scale.BUS_DEADLINE_S", bus_deadline_s)
        result = CliRunner().invoke(cli.app, ["scale", str(supervised(tmp_path, url)), "engines=2"])
        assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (code, "", 1)
        assert words in result.stderr


@pytest.mark.parametrize(
    ("changed", "words", "names"),
    [
        ({"engine": Engine(kind="external", urls=["http://h"])}, 'engine.kind = "external"', {"engine-0"}),
        (
            {"placement": Placement(kind="ray", elastic=Elastic(max_engines=4))},
            "by the room that the cluster has, from 2 to 4",
            {"engine-0", "engine-1"},
        ),
    ],
)
async def test_engines_that_somebody_else_counts_are_not_scaled_by_number(
    bus: Bus, changed: dict[str, Any], words: str, names: set[str]
) -> None:
    crew: Any = SimpleNamespace(members=lambda role: [])
    watch: Any = None
    config = RunConfig(model=Model(hf_checkpoint="none"), data=Data(prompt_data="none"), **changed)
    scaler = asyncio.create_task(Scaler(bus, crew, watch, config, lambda: 2).run())
    await bus.publish("control", Scale(request="one", engines=2))
    answers: list[Scaled] = []
    async with asyncio.timeout(10):
        while not answers:
            answers, _ = await bus.read("control", Scaled, "0", block_ms=100)
    await end([scaler])
    assert answers[0].request == "one" and words in answers[0].refusal
    assert await bus.roster() == Roster(frozenset(names))
