"""A run's TOML to a ``RunConfig`` and back. Pure, but for :func:`read`.

Promises: whatever is wrong with the text or an override comes back as one ``ConfigError`` line that names the key, its
value and what is allowed (and the nearest valid name); ``dump`` writes TOML that :func:`parse` gives an equal
configuration of, but for secrets, which it masks. What the files and functions named in it are worth is looked at in
``cli/load.py``.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from miles_async.config import secrets
from miles_async.config.schema import ConfigError, RunConfig, Section
from miles_async.config.typed import Whole, any_name, build, is_section, key_types, table_of, unknown
from miles_async.config.words import NONE, plain, show, toml


def read(path: Path) -> RunConfig:
    """The configuration in the TOML file ``path``, unchecked, its paths as they stand. Raises ConfigError, one line."""
    return parse(text_of(path), source=str(path))


def text_of(path: Path) -> str:
    """What is in the file. Raises ConfigError: it cannot be read, or is no UTF-8."""
    try:
        return path.read_bytes().decode("utf-8")
    except OSError as error:
        raise ConfigError(f"cannot read configuration {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 at byte {error.start}") from None


def parse(text: str, overrides: Sequence[str] = (), *, source: str = "configuration") -> RunConfig:
    """The configuration in TOML text, with ``section.key=value`` overrides on top; ``source``: what it is called.

    Raises ConfigError, one line.
    """
    return parse_as(RunConfig, text, overrides, source=source)


def parse_as(whole: type[Whole], text: str, overrides: Sequence[str] = (), *, source: str) -> Whole:
    """As :func:`parse`, into a structure of other sections than a run's."""
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{source}: {error}") from None
    for override in overrides:
        _apply_override(table, override, whole)
    return build(table, whole)


def of_table(table: Mapping[str, Any], overrides: Sequence[str] = ()) -> RunConfig:
    """The configuration in a table that was read from a file. Raises ConfigError, one line."""
    return with_overrides(table, overrides, RunConfig)


def with_overrides(table: Mapping[str, Any], overrides: Sequence[str], whole: type[Whole]) -> Whole:
    """As :func:`of_table`, into a structure of other sections than a run's."""
    table = {name: dict(section) if isinstance(section, dict) else section for name, section in table.items()}
    for override in overrides:
        _apply_override(table, override, whole)
    return build(table, whole)


def dump(config: RunConfig) -> str:
    """TOML with every key of ``config``, unset ones as comments; :func:`parse` of it gives an equal configuration, its secrets
    masked."""
    config = secrets.masked(config)
    lines: list[str] = []
    for section in msgspec.structs.fields(RunConfig):
        lines += _dump_table(section.encode_name, getattr(config, section.name))
    return "\n".join(lines[1:]) + "\n"


def _dump_table(name: str, values: msgspec.Struct) -> list[str]:
    lines, tables = ["", f"[{name}]"], []
    for key in msgspec.structs.fields(type(values)):
        value = getattr(values, key.name)
        if table_of(key.type) is not None:
            tables += [line for sub in value for line in _dump_table(f"{name}.{key.encode_name}.{sub}", value[sub])]
        elif is_section(key.type):
            tables += _dump_table(f"{name}.{key.encode_name}", value)
        else:
            unset = "# " if value is None and key.default is None else ""
            lines.append(f"{unset}{key.encode_name} = {toml(NONE if value is None else value)}")
    return lines + tables


def _apply_override(table: dict[str, Any], override: str, whole: type[Section]) -> None:
    """Put ``section.key=value`` into ``table``; a value that is no TOML value is a string (a bare word)."""
    name, equals, raw = override.partition("=")
    name, raw = name.strip(), raw.strip()
    if not equals or not name:
        raise ConfigError(f"override {override!r}: expected section.key=value")
    *tables, key = name.split(".")
    kind = key_types(whole).get(name) or key_types(whole).get(any_name(name))
    if not tables or kind is None:
        raise unknown(name, whole)
    try:
        parsed = tomllib.loads(f"value = {raw}")
        value = parsed["value"] if len(parsed) == 1 else raw
    except tomllib.TOMLDecodeError:
        value = raw
    takes = plain(kind)
    if str in takes and not isinstance(value, str) and not (isinstance(value, list) and len(takes) > 1):
        value = raw  # --set data.label_key=2024: the key takes text only
    values = table
    for depth, part in enumerate(tables, 1):
        values = values.setdefault(part, {})
        if not isinstance(values, dict):
            above = ".".join(tables[:depth])
            raise ConfigError(f"{above} = {show(values)}: expected a table, [{above}]")
    values[key] = value
