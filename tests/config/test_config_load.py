"""Configuration: what loads, what ``dump`` keeps, and the one line that each mistake gets."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from miles_async.cli.load import load, parse
from miles_async.config.schema import Algorithm, ConfigError, Data, Learner, Model, Rollout, RunConfig
from miles_async.config.toml import dump
from miles_async.models.support import SIZES

EXAMPLES = Path(__file__).parents[2] / "examples"
MINIMAL = (
    '[model]\nhf_checkpoint = "builtin:digits"\n[data]\nprompt_data = "builtin:repeat"\n'
    '[algorithm]\ncorrection = "behaviour"\n'
)


def write(directory: Path, text: str = MINIMAL) -> Path:
    path = directory / "run.toml"
    path.write_text(text)
    return path


def error(text: str, *overrides: str, base: Path | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(text, overrides, base=base)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_minimal_file_gives_the_defaults(tmp_path: Path) -> None:
    config = load(write(tmp_path))
    assert config == RunConfig(
        model=Model(hf_checkpoint="builtin:digits"),
        data=Data(prompt_data="builtin:repeat"),
        algorithm=Algorithm(correction="behaviour"),
    )


@pytest.mark.parametrize("name", ["quickstart.toml", "sync.toml"])
def test_the_examples_load(name: str) -> None:
    config = load(EXAMPLES / name)
    assert parse(dump(config)) == config


def test_the_reasoning_gym_example_loads_once_its_prompts_are_written(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text("")
    config = load(EXAMPLES / "reasoning_gym.toml", [f"data.prompt_data={path}"])
    assert config.reward.rm_type == f"{EXAMPLES / 'reasoning_gym_prompts.py'}:score"
    assert config.data.prompt_data == str(path)


def test_sync_is_quickstart_with_a_bound_of_zero() -> None:
    assert load(EXAMPLES / "sync.toml") == load(EXAMPLES / "quickstart.toml", ["staleness.max_lag=0"])


def test_an_override_is_a_toml_value_or_a_bare_word() -> None:
    config = parse(
        MINIMAL,
        [
            "learner.lr=1e-3",
            "run.num_steps = 7",
            "staleness.policy=drop",
            'engine.args=["--a", "b=c"]',
            "rollout.rollout_stop_token_ids=[1, 2]",
            "checkpoint.save_hf=false",
            "data.label_key=none",
            "data.input_key=2024",
            "model.hf_checkpoint='builtin:words'",
            "learner.lr_decay_steps=none",
        ],
        check=False,
    )
    assert (config.learner.lr, config.run.num_steps, config.staleness.policy) == (1e-3, 7, "drop")
    assert (config.engine.args, config.rollout.rollout_stop_token_ids) == (["--a", "b=c"], [1, 2])
    assert config.checkpoint.save_hf is False
    assert (config.data.label_key, config.data.input_key) == (None, "2024")
    assert (config.model.hf_checkpoint, config.learner.lr_decay_steps) == ("builtin:words", None)


def test_a_dumped_configuration_loads_back_equal() -> None:
    config = RunConfig(
        model=Model(hf_checkpoint="builtin:digits"),
        data=Data(prompt_data="builtin:repeat", label_key=None),
        learner=Learner(lr=1e-6, lr_decay_steps=5, adam_eps=1e-12),
        rollout=Rollout(rollout_stop=["a\n", 'b"\\', "é\x7f🙂"], rollout_stop_token_ids=[3]),
        algorithm=Algorithm(correction=["tis", "opsm"], tis_clip=3.0),
    )
    assert parse(dump(config), check=False) == config


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]))), st.floats(min_value=1e-300, allow_infinity=False))
def test_dump_keeps_any_text_and_number(texts: list[str], number: float) -> None:
    config = parse(MINIMAL)
    config = msgspec.structs.replace(
        config,
        rollout=msgspec.structs.replace(config.rollout, rollout_stop=texts),
        learner=msgspec.structs.replace(config.learner, lr=number),
    )
    assert parse(dump(config), check=False) == config


def test_relative_paths_mean_beside_the_toml_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model").mkdir()
    sizes = dict.fromkeys(SIZES, 8)
    (tmp_path / "model" / "config.json").write_text(json.dumps({"model_type": "qwen3", **sizes}))
    (tmp_path / "model" / "model.safetensors").write_bytes(b"")
    (tmp_path / "prompts.jsonl").write_text("")
    (tmp_path / "my_reward.py").write_text("def score(sample): return 1.0\n")
    path = write(
        tmp_path,
        '[model]\nhf_checkpoint = "model"\n[data]\nprompt_data = "./prompts.jsonl"\n'
        '[reward]\nrm_type = "my_reward.score"\n[weights]\nsnapshot_dir = "snapshots"\n'
        '[algorithm]\ncorrection = "behaviour"\n',
    )
    monkeypatch.chdir("/")
    config = load(path)
    assert config.model.hf_checkpoint == str(tmp_path / "model")
    assert config.data.prompt_data == str(tmp_path / "prompts.jsonl")
    assert config.reward.rm_type == f"{tmp_path / 'my_reward.py'}:score"
    assert config.weights.snapshot_dir == str(tmp_path / "snapshots")
    assert parse(dump(config), base=Path("/")) == config


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read configuration .*absent\.toml: No such file"):
        load(tmp_path / "absent.toml")


def test_a_syntax_error_names_file_and_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"run\.toml: .*line 2"):
        load(write(tmp_path, "[model]\nhf_checkpoint = \n"))


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("learner.Ir=1", 'unknown key "learner.Ir"; did you mean "learner.lr"?'),
        ("lr=1", 'unknown key "lr"; did you mean "learner.lr"?'),
        ("rollout.num_steps=1", 'unknown key "rollout.num_steps"; did you mean "run.num_steps"?'),
        ("rolout.x=1", 'unknown key "rolout.x"'),
        ("learner.lr=fast", 'learner.lr = "fast": expected a number > 0'),
        ("learner.lr=nan", "learner.lr = nan: expected a number > 0"),
        ("learner.lr=inf", "learner.lr = inf: expected a number > 0, finite"),
        ("learner.lr=0", "learner.lr = 0: expected a number > 0"),
        ("run.num_steps=2.5", "run.num_steps = 2.5: expected an integer >= 1"),
        ("run.num_steps=true", "run.num_steps = true: expected an integer >= 1"),
        ("router.port=70000", "router.port = 70000: expected an integer >= 0 and <= 65535"),
        ("checkpoint.save_hf=1", "checkpoint.save_hf = 1: expected true or false"),
        ("learner.lr_decay_steps=x", 'learner.lr_decay_steps = "x": expected an integer >= 1 or "none"'),
        ("engine.urls=x", 'engine.urls = "x": expected a list of strings'),
        ("engine.urls=[1]", "engine.urls = [1]: expected a list of strings"),
        ("staleness.policy=fif", 'staleness.policy = "fif": there is no such built-in; did you mean "fifo"?'),
        ("staleness.policy", "override 'staleness.policy': expected section.key=value"),
        (
            "model.hf_checkpoint=builtin:digit",
            'did you mean "builtin:digits"?; one of "builtin:digits", "builtin:guess", "builtin:words"',
        ),
        ("data.prompt_data=builtin:x", 'one of "builtin:repeat", "builtin:repeat9"'),
        ("model.hf_checkpoint=nowhere", "no such directory"),
        ("data.prompt_data=nowhere.jsonl", "no such file"),
        ("reward.rm_type=graded_mach", 'did you mean "graded_match"?'),
        ("rollout.rollout_batch_size=3 ", "must be a multiple"),
    ],
)
def test_a_wrong_value_gets_one_line_with_key_value_and_what_is_allowed(
    override: str, expected: str, tmp_path: Path
) -> None:
    assert expected in error(MINIMAL, override, "learner.num_ranks=2", base=tmp_path)


def test_unknown_and_malformed_sections_are_refused() -> None:
    assert error(MINIMAL + "[learnr]\nlr = 1\n") == 'unknown section "learnr"; did you mean "learner"?'
    assert error('model = "x"') == 'model = "x": expected a table, [model]'
    assert error("[model]\n") == "model.hf_checkpoint is missing: a string"
    no_data = '[model]\nhf_checkpoint = "builtin:digits"\n[staleness]\nmax_lag = 0\n'
    assert error(no_data) == "data.prompt_data is missing: a string or a list of strings"
    assert "expected a string" in error(MINIMAL + "[router]\nhost = 1979-05-27\n")


def test_an_incomplete_checkpoint_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    assert "it has no config.json" in error(MINIMAL, "model.hf_checkpoint=model", base=tmp_path)
    (tmp_path / "model" / "config.json").write_text("{}")
    assert "it has no *.safetensors file" in error(MINIMAL, "model.hf_checkpoint=model", base=tmp_path)


def test_loading_a_configuration_imports_no_torch() -> None:
    code = (
        "import sys, miles_async.cli.load as c; c.load(sys.argv[1]);"
        "sys.exit(any(m in sys.modules for m in ('torch', 'transformers', 'sympy', 'math_verify')))"
    )
    subprocess.run([sys.executable, "-c", code, str(EXAMPLES / "quickstart.toml")], check=True)


def test_updates_rarer_than_the_bound_allows_are_refused() -> None:
    parse(MINIMAL, ("staleness.max_lag=2", "weights.update_interval=3"))
    message = error(MINIMAL, "staleness.max_lag=2", "weights.update_interval=4")
    assert message == "weights.update_interval = 4 can never meet staleness.max_lag = 2: at most 3"
