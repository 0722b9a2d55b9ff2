"""What the pages tell a reader to write and to type is taken: configurations, commands, keys, targets, code, messages."""

from __future__ import annotations

import ast
import json
import re
import shutil
import tomllib
from pathlib import Path
from typing import Any

import pytest
from pages import PAGES, ROOT, SHELL, Block, blocks, commands, spans, write_files
from typer.main import get_command

from miles_async.cli.app import app
from miles_async.cli.load import parse
from miles_async.config.schema import RunConfig
from miles_async.config.typed import any_name, key_types
from miles_async.monitor.metrics.table import TABLE
from miles_async.simulation.settings import SimulationConfig
from miles_async.sweeping import grid

COMMANDS: dict[str, Any] = get_command(app).commands  # type: ignore[attr-defined]
KEYS = {*key_types(RunConfig), *key_types(SimulationConfig)}
METRICS = {metric.name for _, _, found in TABLE for metric in found}
TOML = [block for page in PAGES for block in blocks(page, "toml")]
WHOLE = ("recipes.md", "staleness.md")  # pages whose tables are looked at as a launch looks at them
CODE = ("bus", "miles_async", "actors")


def place(block: Block) -> str:
    return f"{block.page}:{block.line}"


def lacking(block: Block) -> list[str]:
    """What a configuration needs beside what is in ``block``."""
    given = tomllib.loads(block.text)
    algorithm = given.get("algorithm", {})
    has = {"model.hf_checkpoint": "hf_checkpoint" in given.get("model", {})}
    has["data.prompt_data"] = "prompt_data" in given.get("data", {})
    has["algorithm.correction"] = "correction" in algorithm or algorithm.get("loss_type") == "sft_loss"
    values = {"model.hf_checkpoint": "builtin:words", "data.prompt_data": "builtin:repeat"}
    return [f"{key}={values.get(key, 'behaviour')}" for key, is_there in has.items() if not is_there]


@pytest.mark.parametrize("block", TOML, ids=place)
def test_a_configuration_in_a_page_is_one(block: Block, tmp_path: Path) -> None:
    given = tomllib.loads(block.text)
    if "sweep" in given:
        grid.parse(block.text, place(block), ROOT)
    else:
        parse(block.text, lacking(block), check=False)


@pytest.mark.parametrize("block", [block for block in TOML if block.page in WHOLE], ids=place)
def test_what_a_recipe_adds_is_what_a_launch_takes(block: Block, tmp_path: Path) -> None:
    write_files(ROOT / "docs" / block.page, tmp_path)
    shutil.copy(ROOT / "examples" / "guess_number.py", tmp_path)
    for name in re.findall(r'"([\w.]+\.(?:jsonl|parquet))[@"]', block.text):
        (tmp_path / name).touch()
    parse(block.text, lacking(block), base=tmp_path)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_that_a_page_names_is_there_with_its_options(page: Path) -> None:
    for said in commands(page):
        name, _, rest = said.partition(" ")
        assert name in COMMANDS or name.startswith("--"), said
        if name not in COMMANDS:
            continue
        known = {option for parameter in COMMANDS[name].params for option in (*parameter.opts, "--help")}
        options = re.findall(r"(?<![\w-])--?[a-z][\w-]*", rest.partition(" -- ")[0])
        assert not [option for option in options if option not in known], said
        keys = [key for key in re.findall(r"--set ([a-z_]+\.[\w.]+)=", rest) if key != "section.key"]
        assert not [key for key in keys if key not in KEYS and any_name(key) not in KEYS], said
        if name == "bench" and (asked := re.match(r"[a-z]\w*", rest)):
            assert (ROOT / "benchmarks" / f"bench_{asked[0]}.py").exists(), said


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_target_of_make_that_a_page_names_is_there(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    code = [*spans(page), *(block.text for block in blocks(page, *SHELL))]
    named = {target for text in code for target in re.findall(r"^make ([a-z-]+)", text, re.MULTILINE)}
    assert named <= targets


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_key_that_a_page_names_is_there(page: Path) -> None:
    sections = {key.partition(".")[0] for key in KEYS}
    named = [re.fullmatch(r"([a-z_]+\.[a-z_0-9.]+)(?: = .*)?", span) for span in spans(page)]
    keys = {match[1] for match in named if match and match[1].partition(".")[0] in sections and ".." not in match[1]}
    unknown = {key for key in keys if key not in KEYS and any_name(key) not in KEYS and key not in METRICS}
    files = (".toml", ".png", ".md", ".py", ".json", ".jsonl", ".sh")
    assert {key for key in unknown if not key.endswith(files) and not is_module(key)} == set()


def is_module(name: str) -> bool:
    """A file of the code, or a name in it, as pages call them."""
    path, above = name.replace(".", "/"), name.rpartition(".")[0].replace(".", "/")
    return any((ROOT / room / f"{way}.py").exists() for room in ("", "miles_async") for way in (path, above) if way)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_code_in_a_page_is_code(page: Path) -> None:
    for block in blocks(page, "python"):
        ast.parse(block.text, place(block))
    for block in blocks(page, "json"):
        assert all(json.loads(line) for line in block.text.splitlines()), place(block)


def test_every_message_that_is_explained_is_said_by_the_code() -> None:
    files = [file for room in CODE for file in (ROOT / room).rglob("*.py")]
    source = "\n".join(re.sub(r"""["']\s*\n\s*f?["']""", "", file.read_text()) for file in files)
    cells = re.findall(r"^\| (`[^|]*) \|", (ROOT / "docs" / "troubleshooting.md").read_text(), re.MULTILINE)
    messages = [message for cell in cells for message in re.findall(r"`([^`]+)`", cell)]
    assert len(messages) > 30
    pieces = {piece.strip() for message in messages for piece in message.split("…") if len(piece.strip()) > 3}
    assert {piece for piece in pieces if piece not in source} == set()
