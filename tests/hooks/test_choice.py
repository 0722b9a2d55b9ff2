"""A key that names a class takes one of ours or one from outside the package, and refuses everything else in one line."""

from __future__ import annotations

from pathlib import Path

import pytest
from launching import write_config

from miles_async.cli.hook_points import CHOICES
from miles_async.cli.load import load
from miles_async.config.schema import ConfigError
from miles_async.hooks.choice import Choice

MINE = """
from miles_async.engines.kinds.embedded import Embedded
from miles_async.weights.transports.disk import Disk

class Kind(Embedded): ...
class Transport(Disk): ...
class Other: ...
def function(): ...
"""


@pytest.mark.parametrize("choice", CHOICES, ids=lambda choice: choice.hook.key)
def test_what_a_choice_cannot_mean_is_refused_with_what_it_can(choice: Choice[object], tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    names = ", ".join(f'"{name}"' for name in choice.ours)
    first = next(iter(choice.ours))
    said = {
        first + "x": f'expected one of {names}, or "package.module.Class" or "file.py:Class"; did you mean "{first}"?',
        "mine.py:Other": "it must",
        "mine.py:function": "it must",
        "mine.py:Absent": 'has no function "Absent"',
        "no_module.Class": 'there is no module "no_module"',
    }
    for value, words in said.items():
        with pytest.raises(ConfigError) as caught:
            load(write_config(tmp_path), [f"{choice.hook.key}={value}"])
        line = str(caught.value)
        assert line.startswith(f"{choice.hook.key} = ") and words in line and "\n" not in line, line


def test_a_class_from_beside_the_configuration_is_taken_and_its_keys_with_it(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    overrides = ["engine.kind=mine.py:Kind", "engine.args=['--of', 'mine']", "weights.transport=mine.Transport"]
    config = load(write_config(tmp_path), [*overrides, "weights.bucket_mb=1"])
    assert config.engine.kind == f"{tmp_path / 'mine.py'}:Kind"
    assert config.weights.transport == f"{tmp_path / 'mine.py'}:Transport"


@pytest.mark.parametrize("choice", CHOICES, ids=lambda choice: choice.hook.key)
def test_each_of_ours_is_a_file_of_its_own_beside_its_base(choice: Choice[object]) -> None:
    files = [kind.__module__ for kind in choice.all_ours().values()]
    room = choice.base.__module__.rpartition(".")[0]
    assert len(set(files)) == len(files) and {file.rpartition(".")[0] for file in files} == {room}


FAILING = """
from miles_async.config.schema import ConfigError
from miles_async.engines.kinds.embedded import Embedded
from miles_async.weights.transports.disk import Disk

class Made(Embedded):
    def __init__(self):
        raise RuntimeError("not made")

class Asked(Embedded):
    def check_use(self, config):
        return {}["key"]

class Sent(Disk):
    @classmethod
    def check(cls, config):
        raise SystemExit(3)

class Refusing(Disk):
    @classmethod
    def check(cls, config):
        raise ConfigError("weights.bucket_mb = 1 is not mine")
"""


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("engine.kind=mine.py:Made", "engine.kind, mine.py:Made: RuntimeError: not made (mine.py:8 in __init__)"),
        (
            "engine.kind=mine.py:Asked",
            "engine.kind, mine.py:Asked.check_use: KeyError: 'key' (mine.py:12 in check_use)",
        ),
        (
            "weights.transport=mine.py:Sent",
            "weights.transport, mine.py:Sent.check: SystemExit: 3 (mine.py:17 in check)",
        ),
        ("weights.transport=mine.py:Refusing", "weights.bucket_mb = 1 is not mine"),
    ],
)
def test_a_class_that_fails_before_the_start_is_one_line_with_its_key_and_its_place(
    override: str, said: str, tmp_path: Path
) -> None:
    (tmp_path / "mine.py").write_text(FAILING)
    with pytest.raises(ConfigError) as caught:
        load(write_config(tmp_path), [override])
    assert str(caught.value).replace(f"{tmp_path}/", "") == said


NONSENSE = """
from miles_async.engines.kinds.base import EngineKind
from miles_async.engines.kinds.embedded import Embedded
from miles_async.train.backend import LearnerBackend
from miles_async.weights.transports.base import Transport

class Counted(Embedded):
    def number(self, engine): return None
class NoneAtAll(Embedded):
    def number(self, engine): return 0
class Elsewhere(Embedded):
    def addresses(self, engine): return "http://127.0.0.1:1"
class Hostless(EngineKind): ...
class Still(Transport): ...
class Untaught(LearnerBackend):
    def __init__(self, config, model_path, ranks): ...
"""


@pytest.mark.parametrize(
    ("key", "name", "words"),
    [
        ("engine.kind", "Counted", "it gave None, not how many engines there are"),
        ("engine.kind", "NoneAtAll", "it gave 0, not how many engines there are"),
        ("engine.kind", "Elsewhere", "not a list of URLs"),
        ("engine.kind", "Hostless", "it needs a method host of its own"),
        ("weights.transport", "Still", "it needs a method carry or push of its own"),
        ("learner.train_backend", "Untaught", "it needs a method step of its own"),
    ],
)
def test_a_class_that_lacks_a_method_or_gives_nonsense_before_the_start_is_refused_in_one_line(
    key: str, name: str, words: str, tmp_path: Path
) -> None:
    (tmp_path / "mine.py").write_text(NONSENSE)
    with pytest.raises(ConfigError) as caught:
        load(write_config(tmp_path), [f"{key}=mine.py:{name}"])
    line = str(caught.value)
    assert line.startswith(key) and name in line and words in line and "\n" not in line, line
