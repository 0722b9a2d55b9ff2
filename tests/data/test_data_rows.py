"""Rows of prompt files: slices of them, JSONL and Parquet, and the one line that names a row that cannot be used."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from miles_async.config.schema import ConfigError, Data, Model, Reward, RunConfig
from miles_async.data import DataError, load_prompts
from miles_async.data.files import files
from miles_async.data.rows import rows, split_slice
from miles_async.text.tokenizer import Tokenizer

N = 7
bound = st.none() | st.integers(-N - 3, N + 3)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same rows in both formats; blank lines in the one, several row groups in the other."""
    directory = tmp_path_factory.mktemp("rows")
    table = [{"input": f"{i}>", "label": str(i)} for i in range(N)]
    (directory / "a.jsonl").write_text("\n\n".join(json.dumps(row) for row in table) + "\n  \n")
    parquet.write_table(pa.Table.from_pylist(table), directory / "a.parquet", row_group_size=3)
    return directory


def write_parquet(path: Path, table: list[dict[str, Any]]) -> Path:
    parquet.write_table(pa.Table.from_pylist(table), path)
    return path


def load(path: Path | str, model: Path, **data: Any) -> Any:
    # a reward that needs no label
    config = RunConfig(
        model=Model(hf_checkpoint="x"), data=Data(prompt_data=str(path), **data), reward=Reward(rm_type="random")
    )
    return load_prompts(config, Tokenizer(model))


def text(bound: int | None) -> str:
    return "" if bound is None else str(bound)


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
@given(start=bound, stop=bound)
def test_a_slice_selects_what_it_does_in_python(
    directory: Path, name: str, start: int | None, stop: int | None
) -> None:
    source = f"{directory / name}@[{text(start)}:{text(stop)}]"
    expected = list(range(N))[start:stop]
    if expected:
        found = list(rows(source))
        assert [int(row["label"]) for _, row in found] == expected
        places = [f"{directory / name}:" + (f"row {i + 1}" if "parquet" in name else f"{2 * i + 1}") for i in expected]
        assert [place for place, _ in found] == places
    else:
        with pytest.raises((ConfigError, DataError), match="selects no row") as caught:
            list(rows(source))
        assert source in str(caught.value)


@pytest.mark.parametrize(
    "part",
    ["@[1:2:3]", "@[a:b]", "@[]", "@[1]", "@[1:2", "@[1.5:2]", "@[--1:]", f"@[{10**20}:]", "@[-:]", "@[ 1:2]", "@["],
)
def test_what_is_no_slice_is_refused(part: str) -> None:
    with pytest.raises(ConfigError) as caught:
        split_slice(f"a.jsonl{part}")
    assert f'data.prompt_data = "a.jsonl{part}": expected path@[a:b]' in str(caught.value)


@pytest.mark.parametrize("part", ["@[2:2]", "@[3:1]", "@[-1:-2]", "@[:0]"])
def test_a_slice_that_is_empty_in_any_file_is_refused_without_one(part: str) -> None:
    with pytest.raises(ConfigError, match="selects no row of any file"):
        split_slice(f"absent.jsonl{part}")


def test_a_slice_of_a_built_in_set() -> None:
    assert [row["input"] for _, row in rows("builtin:repeat@[2:4]")] == ["0>3>", "0>4>"]


def test_a_bad_line_is_named_by_its_place_in_the_file_and_only_if_it_is_wanted(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"input": "a"}\n\nnonsense\n{"input": "b"}\n')
    with pytest.raises(DataError, match=rf"{path}:3: not a JSON line"):
        list(rows(f"{path}@[1:]"))
    assert [row["input"] for _, row in rows(f"{path}@[2:]")] == ["b"]


def test_both_formats_give_the_same_prompts(directory: Path, digits_model: Path) -> None:
    config = RunConfig(model=Model(hf_checkpoint="x"), data=Data(prompt_data=str(directory / "a.jsonl")))
    ours = files(config, Tokenizer(digits_model))
    theirs = load(directory / "a.parquet", digits_model)
    assert [(p.index, p.text, p.tokens.tolist(), p.label, p.metadata) for p in ours] == [
        (p.index, p.text, p.tokens.tolist(), p.label, p.metadata) for p in theirs
    ]


def test_parquet_keeps_token_ids_numbers_as_labels_and_metadata_without_nulls(
    tmp_path: Path, digits_model: Path
) -> None:
    table = [
        {"input": [3, 2], "label": 5, "metadata": {"a": 1, "b": [{"c": None, "d": 1}]}},
        {"input": [4], "label": None, "metadata": {"a": None, "b": [{"c": 2, "d": None}]}},
        {"input": [5], "label": 6, "metadata": None},
    ]
    prompts = load(write_parquet(tmp_path / "a.parquet", table), digits_model)
    assert [prompt.tokens.tolist() for prompt in prompts] == [[3, 2], [4], [5]]
    assert [prompt.label for prompt in prompts] == ["5", None, "6"]
    assert [prompt.metadata for prompt in prompts] == [{"a": 1, "b": [{"d": 1}]}, {"b": [{"c": 2}]}, {}]


@pytest.mark.parametrize(
    ("bad", "expected"),
    [
        ({"input": None, "label": "x"}, '"input" must be text, a list of token ids or a list of messages, not null'),
        ({"input": "", "label": "x"}, '"input" is an empty prompt'),
        ({"input": "3>", "label": "x", "metadata": "y"}, '"metadata" must be an object, not text'),
    ],
)
def test_a_bad_row_of_a_parquet_file_is_named(
    tmp_path: Path, digits_model: Path, bad: dict[str, Any], expected: str
) -> None:
    fine = {"input": "3>", "label": "x"} | {key: None for key in bad if key == "metadata"}
    path = write_parquet(tmp_path / "a.parquet", [fine, fine, bad])
    with pytest.raises(DataError) as caught:
        load(path, digits_model)
    assert f"{path}:row 3: {expected}" in str(caught.value)


def test_a_parquet_value_that_python_cannot_hold_is_named(tmp_path: Path, digits_model: Path) -> None:
    texts = pa.array([b"3>", b"4>", b"\xff\xfe"], pa.binary()).view(pa.string())
    path = tmp_path / "a.parquet"
    parquet.write_table(pa.table({"input": texts, "label": ["a", "b", "c"]}), path)
    with pytest.raises(DataError, match=rf"{path}:row 3: 'utf-8' codec can't decode"):
        load(path, digits_model)
    assert len(load(f"{path}@[:2]", digits_model)) == 2


@pytest.mark.parametrize("content", [b"", b"PAR1 and nothing else PAR1", b'{"input": "a"}'])
def test_what_is_no_parquet_file_is_named(tmp_path: Path, digits_model: Path, content: bytes) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"{path}: .*Parquet") as caught:
        load(path, digits_model)
    assert "\n" not in str(caught.value)


def test_a_damaged_parquet_file_is_named(tmp_path: Path, digits_model: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", [{"input": f"{i}>", "label": f"{i * i * i}"} for i in range(5000)])
    content = path.read_bytes()
    path.write_bytes(content[:400] + bytes(2000) + content[2400:])
    with pytest.raises(DataError, match=str(path)):
        load(path, digits_model)


def test_an_absent_parquet_file_and_an_absent_pyarrow_are_named(
    directory: Path, tmp_path: Path, digits_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DataError, match=r"absent\.parquet: No such file"):
        load(tmp_path / "absent.parquet", digits_model)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DataError, match="needs the package pyarrow"):
        load(directory / "a.parquet", digits_model)
    assert len(load(directory / "a.jsonl", digits_model)) == N


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[{"input": "a"}, {"input": "b"}]\n', "it holds one JSON array"),
        ('\n[\n  {"input": "a"}\n]\n', "it holds one JSON array"),
        ('{\n  "input": "a"\n}\n', "one JSON object over several lines"),
    ],
)
def test_a_file_that_is_one_json_value_is_told_what_is_expected(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "prompts.json"
    file.write_text(text)
    with pytest.raises(DataError, match=rf"{file}: .*{words}.*JSON Lines"):
        list(rows(str(file)))
