"""What a record says of itself: of which model, prompts, configuration and code it is; and that it is nobody else's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from miles_async.config.schema import Data, Model, RunConfig, Staleness
from miles_async.models.builtin import make_model
from miles_async.models.fingerprint import fingerprint
from miles_async.monitor.record_lines import RecordError
from miles_async.recording import manifest
from miles_async.runs import launches


@pytest.fixture
def run(digits_model: Path, tmp_path: Path) -> Path:
    """The directory of a run of the model ``digits_model``, built-in, of seed 1."""
    config = RunConfig(
        model=Model(hf_checkpoint="builtin:digits"),
        data=Data(prompt_data="builtin:repeat"),
        staleness=Staleness(max_lag=3),
    )
    launches.add(tmp_path, config, "r-1", 1)
    manifest.write(tmp_path, "r-1", config, digits_model, "0123")
    return tmp_path


def test_it_says_what_the_record_is_of(run: Path, digits_model: Path) -> None:
    said = manifest.read(run)
    assert said is not None and said.run_id == "r-1"
    assert said.model == manifest.Fingerprint("builtin:digits", fingerprint(digits_model))
    assert said.prompts == manifest.Fingerprint("builtin:repeat", "0123")
    launched = next(launches.provenances(run))
    assert (said.packages, said.commit) == (launched.packages, launched.commit) and "msgspec" in said.packages
    assert said.configuration["staleness"]["max_lag"] == 3
    text = (run / "record" / "manifest.json").read_text()
    assert json.loads(text)["parts"].keys() == {"configuration", "workload", "outcomes"}
    manifest.write(run, "r-1", RunConfig(model=Model(hf_checkpoint="x"), data=Data(prompt_data="y")), run, "4567")
    assert (run / "record" / "manifest.json").read_text() == text  # the run goes on: it is of what it began with


def test_another_model_is_refused_with_both_names(run: Path, digits_model: Path, tmp_path: Path) -> None:
    manifest.check_model(run, "builtin:digits", seed=1)
    manifest.check_model(run, "moved/elsewhere", seed=2, directory=digits_model)
    make_model("builtin:digits", tmp_path / "trained", seed=2)  # the same sizes, other weights
    for name, seed in ((str(tmp_path / "trained"), 1), ("builtin:digits", 2), ("builtin:words", 1)):
        with pytest.raises(RecordError, match="record is of the model") as found:
            manifest.check_model(run, name, seed)
        said = f'"{name}"' + (f" with run.seed = {seed}" if name == "builtin:digits" else "")
        assert f"{said} is another one" in str(found.value) and "\n" not in str(found.value)


def test_a_record_that_says_nothing_is_taken_and_one_that_is_damaged_refused(run: Path) -> None:
    (run / "record" / "manifest.json").write_text('{"run_id": "r-1"}')
    with pytest.raises(RecordError, match=r"manifest\.json is damaged: .*model"):
        manifest.check_model(run, "builtin:digits", seed=1)
    (run / "record" / "manifest.json").unlink()
    manifest.check_model(run, "builtin:words", seed=1)
