"""The keys of ``[data]``: what they take, what their paths mean, and what is refused before a run starts."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from miles_async.cli.app import app
from miles_async.cli.load import load, parse
from miles_async.config.schema import ConfigError, RunConfig
from miles_async.config.toml import dump

HEAD = '[model]\nhf_checkpoint = "builtin:digits"\n[staleness]\nmax_lag = 0\n[data]\n'


def error(data: str, *overrides: str, base: Path | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(HEAD + data, overrides, base=base)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def same_after_dump(config: RunConfig) -> bool:
    return parse(dump(config), base=Path("/")) == config


@pytest.fixture
def here(tmp_path: Path) -> Path:
    (tmp_path / "a.jsonl").write_text('{"input": "1>", "label": "1"}\n{"input": "2>", "label": "2"}\n')
    (tmp_path / "b.jsonl").write_text('{"input": "3>", "label": "3"}\n')
    (tmp_path / "c.parquet").write_bytes(b"")
    (tmp_path / "mine.jinja").write_text("")
    (tmp_path / "tasks.py").write_text(
        "import numpy as np\nfrom miles_async.data import Prompt\n"
        "def load(config, tokenizer): return [Prompt(0, '1>', np.array(tokenizer.encode('1>'), np.int32), '1')]\n"
        "def broken(config, tokenizer): return [1]\n"
    )
    return tmp_path


def test_paths_of_sources_lie_beside_the_toml_and_keep_their_slices(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toml = here / "run.toml"
    toml.write_text(
        HEAD + 'prompt_data = ["a.jsonl@[1:]", "./b.jsonl", "builtin:repeat@[:9]"]\nprompt_weights = [2, 1, 0.5]\n'
        'chat_template_path = "mine.jinja"\napply_chat_template = true\n'
    )
    monkeypatch.chdir("/")
    config = load(toml)
    assert config.data.prompt_data == [f"{here}/a.jsonl@[1:]", f"{here}/b.jsonl", "builtin:repeat@[:9]"]
    assert config.data.prompt_weights == [2.0, 1.0, 0.5]
    assert config.data.chat_template_path == f"{here}/mine.jinja"
    assert same_after_dump(config)


def test_what_a_function_of_the_users_is_given_is_a_path_only_where_there_is_such_a_file(here: Path) -> None:
    config = parse(HEAD + 'data_source = "tasks.load"\nprompt_data = ["hub:gsm8k", "a.jsonl@[:1]"]\n', base=here)
    assert config.data.data_source == f"{here}/tasks.py:load"
    assert config.data.prompt_data == ["hub:gsm8k", f"{here}/a.jsonl@[:1]"]
    assert parse(HEAD + 'data_source = "tasks.load"\n', base=here).data.prompt_data == []


def test_variables_of_the_template_are_a_table() -> None:
    head = HEAD + 'prompt_data = "builtin:repeat"\napply_chat_template = true\n'
    text = head + "[data.apply_chat_template_kwargs]\nenable_thinking = false\n"
    more = '"a \\"key\\"" = [1, {b = "c"}]\nday = 2026-01-02\n'
    config = parse(text + more)
    assert config.data.apply_chat_template_kwargs["enable_thinking"] is False
    assert config.data.apply_chat_template_kwargs['a "key"'] == [1, {"b": "c"}]
    assert same_after_dump(config)
    config = parse(text, ["data.apply_chat_template_kwargs={enable_thinking = true}"])
    assert config.data.apply_chat_template_kwargs == {"enable_thinking": True}


def test_overrides_take_one_source_or_a_list(here: Path) -> None:
    def given(value: str) -> str | list[str]:
        return parse(HEAD, [f"data.prompt_data={value}"], base=here).data.prompt_data

    assert given("a.jsonl@[0:1]") == f"{here}/a.jsonl@[0:1]"
    assert given('["a.jsonl", "b.jsonl"]') == [f"{here}/a.jsonl", f"{here}/b.jsonl"]
    (here / "2024").write_text("")
    assert given("2024") == f"{here}/2024"


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("data.prompt_data=[]", "data.prompt_data is missing: a string or a list of strings"),
        ("data.prompt_data=[1]", "data.prompt_data = [1]: expected a string or a list of strings"),
        ('data.prompt_data=["a.jsonl", "d.jsonl"]', 'd.jsonl": no such file'),
        ("data.prompt_data=a.jsonl@[2:1]", '@[2:1]": this slice selects no row of any file'),
        ("data.prompt_data=builtin:repeat@[1]", 'data.prompt_data = "builtin:repeat@[1]": expected path@[a:b]'),
        ("data.prompt_data=builtin:repaet@[1:]", 'data.prompt_data = "builtin:repaet": there is no such built-in'),
        ("data.prompt_weights=[1]", "data.prompt_weights = [1.0]: expected one for each of 2 sources"),
        ("data.prompt_weights=[1, 0]", 'data.prompt_weights = [1, 0]: expected a list of numbers > 0 or "none"'),
        ("data.prompt_weights=[1, inf]", "data.prompt_weights = [1.0, inf]: expected a list of numbers > 0"),
        ("data.prompt_weights=2", 'data.prompt_weights = 2: expected a list of numbers > 0 or "none"'),
        ("data.apply_chat_template_kwargs=3", "data.apply_chat_template_kwargs = 3: expected a table"),
        ("data.apply_chat_template_kwargs={messages=[]}", '"messages" is set for each prompt'),
        ("data.chat_template_path=d.jinja", 'd.jinja": no such file'),
        ("data.data_source=file", 'data.data_source = "file": there is no such built-in; did you mean "files"?'),
        ("data.data_source=tasks.lod", 'has no function "lod"; did you mean "load"?'),
        ("data.tool_keys=x", 'unknown key "data.tool_keys"; did you mean "data.tool_key"?'),
    ],
)
def test_a_wrong_value_gets_one_line(here: Path, override: str, expected: str) -> None:
    assert expected in error('prompt_data = ["a.jsonl", "b.jsonl"]\n', override, base=here)


def test_parquet_is_refused_where_it_cannot_be_read(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parse(HEAD + 'prompt_data = "c.parquet"\n', base=here)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert 'c.parquet": a Parquet file needs the package pyarrow' in error('prompt_data = "c.parquet"\n', base=here)


def test_a_dry_run_asks_the_same_source_as_the_dealer(here: Path) -> None:
    toml = here / "run.toml"
    toml.write_text(HEAD + 'data_source = "tasks.load"\n')
    result = CliRunner().invoke(app, ["launch", str(toml), "--dry-run", "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.output)["config"]["data"]["data_source"] == f"{here}/tasks.py:load"
    result = CliRunner().invoke(app, ["launch", str(toml), "--dry-run", "--set", "data.data_source=tasks.broken"])
    assert result.exit_code == 2
    assert "prompt 0: it must be a miles_async.data.Prompt, not int" in result.output
