"""What does not fit into the model's context is refused, or left out and counted, before anything starts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from miles_async.cli.app import app
from miles_async.cli.load import parse
from miles_async.config.schema import ConfigError
from miles_async.models.context_length import context_length, fitted

MINIMAL = (
    '[model]\nhf_checkpoint = "builtin:digits"\n[data]\nprompt_data = "builtin:repeat"\n'
    '[algorithm]\ncorrection = "behaviour"\n'
)  # a context of 256
EVAL = '[eval]\neval_interval = 2\n[eval.datasets.seen]\nprompt_data = "builtin:repeat"\n'


@pytest.mark.parametrize(
    ("override", "words"),
    [
        (
            "rollout.rollout_max_response_len=256",
            ["rollout.rollout_max_response_len = 256", "256 tokens", "at most 255"],
        ),
        ("eval.eval_max_response_len=999", ["eval.eval_max_response_len = 999", "at most 255"]),
        ("eval.datasets.seen.max_response_len=256", ["eval.datasets.seen.max_response_len = 256"]),
        ("engine.context_length=100", ["rollout.rollout_max_response_len = 128", "engine.context_length = 100"]),
        ("engine.context_length=300", ["engine.context_length = 300", "context of 256 tokens"]),
    ],
)
def test_a_response_as_long_as_the_context_is_refused(override: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(MINIMAL + EVAL, [override])
    assert all(word in str(caught.value) for word in words), caught.value


def test_scaled_positions_are_not_taken_for_the_whole_context(digits_model: Path) -> None:
    scaled = digits_model.parent / "scaled"
    scaled.mkdir()
    config = json.loads((digits_model / "config.json").read_text())
    (scaled / "config.json").write_text(json.dumps(config | {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}))
    made = parse(MINIMAL)
    assert context_length(made, digits_model) == 256
    assert context_length(made, scaled) is None


def prompts(path: Path, lengths: list[int]) -> Path:
    path.write_text("".join(json.dumps({"input": "3" * length, "label": "3"}) + "\n" for length in lengths))
    return path


def dry_run(path: Path, data: Path, *args: str) -> tuple[int, str, str]:
    path.write_text(MINIMAL.replace("builtin:repeat", str(data)))
    done = CliRunner().invoke(app, ["launch", str(path), "--dry-run", *args])
    return done.exit_code, done.stdout, done.stderr


def test_a_dry_run_says_how_many_prompts_were_read_and_left_out(tmp_path: Path) -> None:
    data = prompts(tmp_path / "p.jsonl", [2, 255, 256, 300])
    code, out, _ = dry_run(tmp_path / "run.toml", data)
    assert code == 0 and "# data.prompt_data: 4 prompts read, 2 left out as too long" in out
    code, out, _ = dry_run(tmp_path / "run.toml", data, "--json")
    assert json.loads(out)["prompts"] == {"data.prompt_data": {"read": 4, "left_out": 2}}


def test_a_file_in_which_every_prompt_is_too_long_is_refused(tmp_path: Path) -> None:
    code, out, err = dry_run(tmp_path / "run.toml", prompts(tmp_path / "p.jsonl", [256, 400]))
    assert (code, out) == (2, "")
    assert "p.jsonl: all 2 prompts exceed 255 tokens, which leave room for a response in a context of 256" in err


def test_a_dry_run_prints_every_key_unset_ones_as_comments(tmp_path: Path) -> None:
    _, out, _ = dry_run(tmp_path / "run.toml", prompts(tmp_path / "p.jsonl", [3]))
    assert '# ref_load = "none"' in out and '\n# rm_url = "none"\n' in out and "\neps_clip = 0.2\n" in out
    uncommented = "\n".join(line.removeprefix("# ") if ' = "none"' in line else line for line in out.splitlines())
    assert parse(uncommented) == parse(out)


@pytest.mark.parametrize(
    ("asked", "sent"),
    [
        ({"input_ids": [[1] * 200, [1] * 3], "sampling_params": [{"max_new_tokens": 99}] * 2}, [56, 99]),
        ({"input_ids": [[1] * 200, [1] * 3], "sampling_params": {"max_new_tokens": 99}}, [56, 99]),
        ({"input_ids": [1] * 200, "sampling_params": {"max_new_tokens": 99}}, [56]),
        ({"input_ids": [1] * 200}, [56]),  # 128 otherwise
        ({"input_ids": [1] * 10, "sampling_params": {"max_new_tokens": 246}}, [246]),
        # the engine's to refuse, or to choose
        ({"input_ids": [1] * 256, "sampling_params": {"max_new_tokens": 9}}, [9]),
        ({"input_ids": [1] * 200, "sampling_params": {"max_new_tokens": None}}, [None]),
        ({"input_ids": [1] * 200, "sampling_params": {"max_new_tokens": "9"}}, ["9"]),
    ],
)
def test_a_request_of_a_users_function_is_cut_to_the_context_too(asked: dict[str, Any], sent: list[Any]) -> None:
    before = json.dumps(asked)
    body = fitted(asked, 256)
    params = body["sampling_params"]
    assert [part["max_new_tokens"] for part in (params if isinstance(params, list) else [params])] == sent
    assert json.dumps(asked) == before and body["input_ids"] == asked["input_ids"]


@pytest.mark.parametrize("body", [{}, {"text": "a"}, {"input_ids": []}, {"input_ids": [1], "sampling_params": 3}])
def test_a_request_of_another_form_is_left_to_the_engine(body: dict[str, Any]) -> None:
    assert fitted(body, 256) == body
