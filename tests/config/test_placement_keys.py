"""What a configuration may ask of a placement, and the line that refuses the rest."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from miles_async.cli.load import parse
from miles_async.config import toml
from miles_async.config.schema import ConfigError, RunConfig
from miles_async.runs import placements
from miles_async.runs.places import cpus

MINIMAL = """
model = {hf_checkpoint = "builtin:digits"}
data = {prompt_data = "builtin:repeat"}
algorithm = {correction = "behaviour"}
"""
ON_RAY = "placement.kind=ray"
FEWER = "placement.elastic_learner.min_ranks=1"


def configured(*overrides: str, text: str = MINIMAL) -> RunConfig:
    return parse(text, overrides)


def refusal(*overrides: str, text: str = MINIMAL) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(text, overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_a_role_asks_for_is_a_table_of_its_own_in_the_file_and_on_the_command_line() -> None:
    text = MINIMAL + 'placement = {kind = "ray", learner = {num_gpus = 1, resources = {slot = 2}}}\n'
    config = configured("placement.engine.num_gpus=2", "placement.rollout={num_cpus=3}", text=text)
    assert config.placement.learner.num_gpus == 1 and config.placement.learner.resources == {"slot": 2}
    assert config.placement.engine.num_gpus == 2 and config.placement.rollout.num_cpus == 3
    assert [cpus(config, role) for role in ("learner", "rollout", "dealer")] == [1, 3, 0]
    assert toml.parse(toml.dump(config)) == config
    configured("model.device=cuda", text=text)  # where the learner is, not here


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["placement.learner.num_gpus=1"], ["placement.learner has no effect", 'placement.kind = "ray"']),
        (["placement.address=a:1"], ["placement.address = 'a:1' has no effect", 'placement.kind = "ray"']),
        ([ON_RAY, "placement.start_ray=true", "placement.address=a:1"], ["placement.address = 'a:1' has no effect"]),
        ([ON_RAY, "placement.evaluator.num_cpus=1"], ["placement.evaluator has no effect", "eval.eval_interval"]),
        (
            [ON_RAY, "placement.learner.num_gpu=1"],
            ['"placement.learner.num_gpu"; did you mean "placement.learner.num_gpus"?'],
        ),
        ([ON_RAY, "placement.learner=3"], ["placement.learner = 3: expected a table, [placement.learner]"]),
        ([ON_RAY, "placement.learner.num_cpus=-3"], ["placement.learner.num_cpus = -3: expected a number >= 0"]),
        ([ON_RAY, "placement.rollout.num_cpus=0"], ["placement.rollout.num_cpus = 0", "keeps no place"]),
        ([ON_RAY, "placement.address=ray://a:1"], ['"ray://a:1": expected "HOST:PORT"', "no Ray client"]),
        ([ON_RAY, "placement.address=http://a:8265"], ["ray job submit"]),
        ([ON_RAY, "placement.address=a"], ['placement.address = "a": expected "HOST:PORT"']),
        ([ON_RAY, "model.device=cuda"], ['model.device = "cuda" needs placement.learner.num_gpus']),
        (
            [ON_RAY, "placement.elastic.max_engines=1"],
            [
                "engine.num_engines = 2, with which the run begins",
                "min_engines = 2 to placement.elastic.max_engines = 1",
            ],
        ),
        (
            [ON_RAY, "placement.elastic={min_engines=3, max_engines=4}"],
            ["engine.num_engines = 2", "min_engines = 3 to"],
        ),
        ([ON_RAY, "placement.elastic.min_engines=1"], ["needs placement.elastic.max_engines"]),
        (["placement.elastic.max_engines=4"], ["placement.elastic has no effect", 'placement.kind = "ray"']),
        (
            [ON_RAY, "placement.elastic.max_engines=4", "engine.kind=external", 'engine.urls=["http://10.0.0.9:1"]'],
            ["placement.elastic.max_engines = 4", "their number is not ours to change"],
        ),
        ([FEWER, "learner.num_ranks=2"], ["placement.elastic_learner has no effect", 'placement.kind = "ray"']),
        ([ON_RAY, "placement.elastic_learner.wait_s=9"], ["wait_s = 9 needs placement.elastic_learner.min_ranks"]),
        (
            [ON_RAY, FEWER, "placement.elastic_learner.wait_s=120", "learner.num_ranks=2"],
            ["placement.elastic_learner.wait_s = 120 must be less than run.watchdog_s = 120"],
        ),
        ([ON_RAY, FEWER], ["min_ranks = 1 must be less than learner.num_ranks = 1"]),
        (
            [ON_RAY, "placement.elastic_learner.min_ranks=3", "learner.num_ranks=4", "rollout.rollout_batch_size=8"],
            ["min_ranks = 3: no number from it to 3", "rollout_batch_size = 8", "the nearest is 2"],
        ),
        (
            [ON_RAY, FEWER, "learner.num_ranks=2", "placement.broadcaster.num_cpus=1"],
            ["min_ranks = 1: placement.broadcaster must ask for nothing"],
        ),
        (["placement.kind=rey"], ['"local", "ray"; did you mean "ray"?']),
    ],
)
def test_a_place_that_cannot_be_had_is_refused_with_its_key(overrides: list[str], parts: list[str]) -> None:
    message = refusal(*overrides)
    assert [part for part in parts if part not in message] == [], message


def test_a_machine_without_the_package_says_what_is_to_be_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "ray" else found(name, *rest))
    assert refusal(ON_RAY) == (
        'placement.kind = "ray": the package ray is not installed (pip install "miles-async[ray]")'
    )
    configured()


def test_a_launch_knows_its_placement_before_it_looks_at_its_configuration(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    for text, overrides, kind in [
        ("", [], "local"),
        ('[placement]\nkind = "ray"', [], "ray"),
        ('[placement]\nkind = "ray"', ["placement.kind=local"], "local"),
        ("", ["placement.kind = 'ray'"], "ray"),
        ("placement = 3", [], "local"),
        ("not toml", [], "local"),
    ]:
        file.write_text(text)
        assert placements.kind_in(file, overrides) == kind, text
    assert placements.kind_in(tmp_path / "absent.toml", []) == "local"
