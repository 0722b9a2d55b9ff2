"""From the flags of a launch script to a configuration: every flag is a key, or it is named with the reason why it is none.

Promises: pure; what is given is of the type that its key takes; a key that nothing in such a run would look at is left out and
named; the TOML that is written says of itself what was left out.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable
from typing import Any, NamedTuple, get_args, get_origin

import msgspec

from miles_async.config.effect import Rule
from miles_async.config.schema import ConfigError, RunConfig
from miles_async.config.typed import build, key_types
from miles_async.config.words import NONE, plain, toml
from miles_async.migration import together
from miles_async.migration.script import UNKNOWN, Script
from miles_async.migration.table import KEYS, SETS, WITHOUT


class Translation(NamedTuple):
    """``keys``: by ``section.key``. ``without``: flags, with their words, that have no key here, and why."""

    keys: dict[str, Any]
    without: dict[str, str]


def translate(script: Script, rules: Iterable[Rule] = ()) -> Translation:
    """``rules``: which keys have an effect only sometimes. Raises ConfigError: there are no flags of a training."""
    flags = script.flags
    if not any(flag in KEYS for flag in flags):
        raise ConfigError("no flags of Miles or slime: expected arrays of them, or a command with train.py")
    keys, of_flag, without = together.defaults(flags), dict[str, str](), dict[str, str]()
    for name in script.missing:
        without[f"${{{name}[@]}}"] = "these flags are in another file: put them into the script, if they are no model's"
    for part in together.PARTS:
        more, why = part(flags, script.is_async or "--fully-async" in flags)
        keys |= more
        without |= {_shown(flag, flags[flag]): reason for flag, reason in why.items()}
    for flag, words in flags.items():
        found, reason = _one(flag, words)
        if reason and _shown(flag, words) not in without and not (together.is_looked_at(flag)):
            without[_shown(flag, words)] = reason
        keys |= found
        of_flag |= dict.fromkeys(found, _shown(flag, words))
    return Translation(_with_effect(keys, of_flag, without, rules), without)


def render(found: Translation, source: str) -> str:
    """The TOML, with what was left out as comments at its end."""
    lines = [f"# From {source}. Look at it with: miles-async launch THIS --dry-run"]
    for section in [field.encode_name for field in msgspec.structs.fields(RunConfig)]:
        inside = {key.split(".", 1)[1]: value for key, value in found.keys.items() if key.startswith(f"{section}.")}
        if inside:
            lines += ["", f"[{section}]"]
            lines += [
                f"{key} = {toml(value)}" for key, value in sorted(inside.items(), key=lambda item: "." in item[0])
            ]
    if found.without:
        lines += ["", "# Without a key here:"]
        lines += [f"#   {flag}: {reason}".replace("\n", " ") for flag, reason in found.without.items()]
    return "\n".join(lines) + "\n"


def _one(flag: str, words: list[str]) -> tuple[dict[str, Any], str]:
    """The keys of one flag, or why there are none."""
    word = " ".join(words)
    sets = SETS.get(flag, {})
    if "" in sets or word in sets:
        return sets.get(word, sets.get("", {})), ""
    if (key := KEYS.get(flag)) is not None:
        if UNKNOWN in word:
            return {}, f"{key}: only the running script knows its value"
        try:
            return {key: _value(key, words)}, ""
        except ValueError as error:  # of JSON, too
            return {}, str(error)
    for known, reason in WITHOUT.items():
        if flag == known or (known.endswith("*") and flag.startswith(known[:-1])):
            return {}, reason
    near = difflib.get_close_matches(flag, [*KEYS, *SETS, *WITHOUT], 1)
    return {}, "not known" + (f"; did you mean {near[0]}?" if near else "")


def _value(key: str, words: list[str]) -> Any:
    """The words of a flag as its key takes them. Raises ConfigError."""
    kinds = plain(key_types()[key])
    lists = [kind for kind in kinds if get_origin(kind) is list]
    if lists and (len(words) > 1 or len(kinds) == 1):
        value: Any = [_scalar(word, {get_args(lists[0])[0]}) for word in words]
    elif not words:
        value = True
    elif any(get_origin(kind) is dict for kind in kinds):
        value = json.loads(" ".join(words))
    else:
        value = _scalar(" ".join(words), kinds)
    _check(key, value)
    return value


def _scalar(word: str, kinds: set[Any]) -> Any:
    for kind in (int, float):
        if kind in kinds:
            try:
                return kind(word)
            except ValueError:
                continue
    if bool in kinds and word.lower() in ("true", "false", "1", "0"):
        return word.lower() in ("true", "1")
    return NONE if word == "None" else word


def _check(key: str, value: Any) -> None:
    build(_table({"model.hf_checkpoint": "here", key: value}), RunConfig)


def _table(keys: dict[str, Any]) -> dict[str, Any]:
    table: dict[str, Any] = {}
    for key, value in {"data.prompt_data": [], **keys}.items():
        *sections, name = key.split(".")
        inside = table
        for section in sections:
            inside = inside.setdefault(section, {})
        inside[name] = value
    return table


def _with_effect(
    keys: dict[str, Any], of_flag: dict[str, str], without: dict[str, str], rules: Iterable[Rule]
) -> dict[str, Any]:
    """``keys`` without those that nothing would look at; the flags that they are of are put into ``without``."""
    config = build(_table({"model.hf_checkpoint": "here", **keys}), RunConfig)
    useless = {key: rule.needs for rule in rules if not rule.holds(config) for key in rule.keys}
    for key, flag in of_flag.items():
        if key in useless:
            without[flag] = f"{key} would have no effect: it needs {useless[key]}"
    return {key: value for key, value in keys.items() if key not in useless}


def _shown(flag: str, words: list[str]) -> str:
    return " ".join([flag, *words])
