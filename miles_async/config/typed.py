"""The typed configuration in a TOML table, each key checked by itself so that the error can name it. Pure."""

from __future__ import annotations

import difflib
import math
import re
from typing import Any, TypeVar, get_args, get_origin

import msgspec

from miles_async.config import secrets
from miles_async.config.schema import ConfigError, RunConfig, Section
from miles_async.config.words import NONE, allowed, choices, nearest, optional, show

ANY_NAME = "NAME"
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")

Whole = TypeVar("Whole", bound=Section)  # a structure of sections: a run's, a simulation's


def build(table: dict[str, Any], whole: type[Whole]) -> Whole:
    """The typed configuration in a TOML table, each key checked by itself so that the error can name it."""
    sections = {section.encode_name: section for section in msgspec.structs.fields(whole)}
    built: dict[str, Any] = {}
    for name, values in table.items():
        if name not in sections:
            raise unknown(name, whole)
        if not isinstance(values, dict):
            raise ConfigError(f"{name} = {show(values)}: expected a table, [{name}]")
        built[name] = _build_section(name, sections[name].type, values, whole)
    for name, section in sections.items():
        if name not in built and section.required:
            built[name] = _build_section(name, section.type, {}, whole)
    return whole(**built)


def _build_section(section: str, kind: Any, values: dict[str, Any], whole: type[Section]) -> Any:
    keys = {key.encode_name: key for key in msgspec.structs.fields(kind)}
    built = {}
    for name, value in values.items():
        if name not in keys:
            raise unknown(f"{section}.{name}", whole)
        built[name] = _convert(f"{section}.{name}", keys[name].type, value, whole)
    for name, key in keys.items():
        if key.required and name not in built:
            raise ConfigError(f"{section}.{name} is missing: {allowed(key.type)}")
    return kind(**built)


def _build_tables(key: str, kind: Any, value: Any, whole: type[Section]) -> dict[str, Any]:
    """Named tables of one kind: ``[eval.datasets.NAME]``."""
    if not isinstance(value, dict):
        raise ConfigError(f"{key} = {show(value)}: expected tables, [{key}.{ANY_NAME}]")
    for name, values in value.items():
        if not _NAME.fullmatch(name):
            raise ConfigError(f"{key}: {show(name)} is no name: at most 64 letters, digits, - and _")
        if not isinstance(values, dict):
            raise ConfigError(f"{key}.{name} = {show(values)}: expected a table, [{key}.{name}]")
    return {name: _build_section(f"{key}.{name}", kind, values, whole) for name, values in value.items()}


def _convert(key: str, kind: Any, value: Any, whole: type[Section]) -> Any:
    if (table := table_of(kind)) is not None:
        return _build_tables(key, table, value, whole)
    if is_section(kind):
        if not isinstance(value, dict):
            raise ConfigError(f"{key} = {show(value)}: expected a table, [{key}]")
        return _build_section(key, kind, value, whole)
    if value == NONE and optional(kind):
        return None
    try:
        converted = msgspec.convert(value, type=kind, strict=True)
    except msgspec.ValidationError:
        names = [choice for choice in choices(kind) if isinstance(choice, str)]
        near = nearest(value, names) if isinstance(value, str) else ""
        shown = secrets.MASK if key in secrets.KEYS else show(value)
        raise ConfigError(f"{key} = {shown}: expected {allowed(kind)}{near}") from None
    many = converted.values() if isinstance(converted, dict) else converted
    numbers = many if isinstance(converted, list | dict) else [converted]
    if any(isinstance(number, float) and not math.isfinite(number) for number in numbers):
        raise ConfigError(f"{key} = {show(converted)}: expected {allowed(kind)}, finite")
    return converted


def key_types(whole: type[Section] = RunConfig) -> dict[str, Any]:
    """Every key's type; those of named tables as ``eval.datasets.NAME.key``, of its own tables as ``placement.ROLE.key``."""
    kinds: dict[str, Any] = {}
    for section in msgspec.structs.fields(whole):
        for key in msgspec.structs.fields(section.type):
            name = f"{section.encode_name}.{key.encode_name}"
            kinds[name] = key.type
            if is_section(key.type):
                kinds |= {f"{name}.{sub.encode_name}": sub.type for sub in msgspec.structs.fields(key.type)}
            if (table := table_of(key.type)) is not None:
                kinds |= {f"{name}.{ANY_NAME}.{sub.encode_name}": sub.type for sub in msgspec.structs.fields(table)}
    return kinds


def any_name(key: str) -> str:
    """``key`` of a named table as :func:`_key_types` has it."""
    parts = key.split(".")
    return ".".join([*parts[:-2], ANY_NAME, parts[-1]]) if len(parts) > 3 else key


def is_section(kind: Any) -> bool:
    """Whether such a key is a table with keys of its own: ``[placement.learner]``."""
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


def table_of(kind: Any) -> Any:
    """The section that the named tables of such a key hold; None: it is a plain key."""
    held = get_args(kind)[1] if get_origin(kind) is dict else None
    return held if is_section(held) else None


def unknown(name: str, whole: type[Section] = RunConfig) -> ConfigError:
    """The error for a key that does not exist, with the nearest of all keys by full name, else by last part."""
    keys = list(key_types(whole))
    sections = [section.encode_name for section in msgspec.structs.fields(whole)]
    if "." not in name and difflib.get_close_matches(name, sections, 1):
        return ConfigError(f'unknown section "{name}"{nearest(name, sections)}')
    leaf = name.rpartition(".")[2]
    same_leaf = [key for key in keys if key.rpartition(".")[2] == leaf]
    near = same_leaf[:1] or difflib.get_close_matches(name, keys, 1)
    if not near:
        leaves = {key.rpartition(".")[2]: key for key in keys}
        near = [leaves[match] for match in difflib.get_close_matches(leaf, list(leaves), 1)]
    hint = f'; did you mean "{near[0]}"?' if near else f"; sections: {', '.join(sections)}"
    return ConfigError(f'unknown key "{name}"{hint}')
