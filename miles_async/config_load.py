"""A run's TOML file to a ``RunConfig`` and back.

Promises: whatever is wrong with the file or an override comes back as one ``ConfigError`` line that names the key, its
value and what is allowed (and the nearest valid name); relative paths mean "beside the TOML file", so the loaded
configuration means the same in every process; ``dump`` writes TOML that loads back equal, but for secrets, which it
masks.

TOML has no null: the string ``"none"`` stands for it wherever a key may be unset.
"""

from __future__ import annotations

import difflib
import importlib.util
import json
import math
import re
import tomllib
import types
from collections.abc import Callable, Iterable, Sequence
from datetime import date, time
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import msgspec
from msgspec import Meta

from miles_async import builtin, hook_points, secret
from miles_async.config import ConfigError, Data, Eval, EvalDataset, RunConfig
from miles_async.config_effect import check_effect
from miles_async.config_learnable import check_learnable
from miles_async.context_length import check_lengths
from miles_async.data.rows import PARQUET, partition_slice, sources, split_slice
from miles_async.data.source import FILES
from miles_async.model_support import check_models

NONE = "none"
ANY_NAME = "NAME"
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


def load(path: str | Path, overrides: Sequence[str] = (), *, check: bool = True) -> RunConfig:
    """The configuration in the TOML file ``path``, with ``section.key=value`` overrides on top.

    Relative paths inside are resolved against the file's directory; with ``check``, the files and the reward function
    named in it are looked for and ``RunConfig.check`` is applied. Raises ConfigError, one line.
    """
    path = Path(path)
    try:
        text = path.read_bytes().decode("utf-8")
    except OSError as error:
        raise ConfigError(f"cannot read configuration {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 at byte {error.start}") from None
    return parse(text, overrides, source=str(path), base=path.resolve().parent, check=check)


def parse(
    text: str,
    overrides: Sequence[str] = (),
    *,
    source: str = "configuration",
    base: Path | None = None,
    check: bool = True,
) -> RunConfig:
    """Like :func:`load`, for TOML text; ``base`` is the directory of relative paths (None: the working directory)."""
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{source}: {error}") from None
    for override in overrides:
        _apply_override(table, override)
    config = resolve_paths(_build(table), base or Path.cwd())
    if check:
        check_all(config)
    return config


def check_all(config: RunConfig) -> None:
    """Whatever can be known to be wrong before anything starts. Raises ConfigError, one line."""
    config.check()
    secret.check(config)
    check_files(config)
    hook_points.check(config)
    check_effect(config)
    check_learnable(config)
    check_lengths(config)


def dump(config: RunConfig) -> str:
    """TOML with every key of ``config``, unset ones as comments; :func:`parse` of it gives an equal configuration, its secrets
    masked."""
    config = secret.masked(config)
    lines: list[str] = []
    for section in msgspec.structs.fields(RunConfig):
        lines += _dump_table(section.encode_name, getattr(config, section.name))
    return "\n".join(lines[1:]) + "\n"


def _dump_table(name: str, values: msgspec.Struct) -> list[str]:
    lines, tables = ["", f"[{name}]"], []
    for key in msgspec.structs.fields(type(values)):
        value = getattr(values, key.name)
        if _table_of(key.type) is not None:
            tables += [line for sub in value for line in _dump_table(f"{name}.{key.encode_name}.{sub}", value[sub])]
        else:
            unset = "# " if value is None and key.default is None else ""
            lines.append(f"{unset}{key.encode_name} = {_toml(NONE if value is None else value)}")
    return lines + tables


def resolve_paths(config: RunConfig, base: Path) -> RunConfig:
    """``config`` with the paths of files and directories (and of hooks in a file beside the TOML) made absolute."""
    replace = msgspec.structs.replace

    def absolute(value: str) -> str:
        return value if builtin.is_builtin(value) else str((base / Path(value).expanduser()).resolve())

    def optional(value: str | None) -> str | None:
        return None if value is None else absolute(value)

    config = hook_points.resolve_paths(config, base)
    return replace(
        config,
        model=replace(config.model, hf_checkpoint=absolute(config.model.hf_checkpoint)),
        algorithm=replace(config.algorithm, ref_load=optional(config.algorithm.ref_load)),
        critic=replace(config.critic, critic_load=optional(config.critic.critic_load)),
        data=_resolve_data(config.data, base, absolute),
        eval=replace(config.eval, datasets=_resolve_datasets(config.eval, absolute)),
        weights=replace(
            config.weights,
            snapshot_dir=optional(config.weights.snapshot_dir),
            delta_dir=optional(config.weights.delta_dir),
            mirror_dir=optional(config.weights.mirror_dir),
        ),
    )


def _resolve_data(data: Data, base: Path, absolute: Callable[[str], str]) -> Data:
    """What a data source of the user's is given is a path only where a file of that name lies beside the TOML."""

    def resolved(source: str) -> str:
        path, part = partition_slice(source)
        return absolute(path) + part if data.data_source == FILES or (base / path).is_file() else source

    given, template = data.prompt_data, data.chat_template_path
    return msgspec.structs.replace(
        data,
        prompt_data=resolved(given) if isinstance(given, str) else [resolved(source) for source in given],
        chat_template_path=None if template is None else absolute(template),
    )


def _resolve_datasets(section: Eval, absolute: Callable[[str], str]) -> dict[str, EvalDataset]:
    parts = {name: (data, *partition_slice(data.prompt_data)) for name, data in section.datasets.items()}
    return {
        name: msgspec.structs.replace(data, prompt_data=absolute(path) + part)
        for name, (data, path, part) in parts.items()
    }


def check_files(config: RunConfig) -> None:
    """Refuse a checkpoint or prompt file that is not there. Raises ConfigError naming key, path and what is missing."""
    checkpoint = config.model.hf_checkpoint
    if builtin.is_builtin(checkpoint):
        _check_builtin("model.hf_checkpoint", checkpoint, builtin.MODELS)
    else:
        _check_checkpoint("model.hf_checkpoint", checkpoint)
    others = ("algorithm.ref_load", config.algorithm.ref_load), ("critic.critic_load", config.critic.critic_load)
    for key, other in others:
        if other is not None:
            _check_checkpoint(key, other)
    check_models(config)
    _check_data(config.data)
    if config.eval.eval_interval is not None:
        for name, dataset in config.eval.datasets.items():
            check_prompt_file(f"eval.datasets.{name}.prompt_data", dataset.prompt_data)


def _check_checkpoint(key: str, checkpoint: str) -> None:
    directory = Path(checkpoint)
    if not directory.is_dir():
        raise ConfigError(f'{key} = "{checkpoint}": no such directory')
    if not (directory / "config.json").is_file():
        raise ConfigError(f'{key} = "{checkpoint}": it has no config.json')
    if not any(directory.glob("*.safetensors")):
        raise ConfigError(f'{key} = "{checkpoint}": it has no *.safetensors file')


def _check_data(data: Data) -> None:
    given, template = sources(data), data.chat_template_path
    if data.data_source == FILES:
        if not given:
            raise ConfigError("data.prompt_data is missing: a string or a list of strings")
        if data.prompt_weights is not None and len(data.prompt_weights) != len(given):
            raise ConfigError(
                f"data.prompt_weights = {data.prompt_weights}: expected one for each of {len(given)} sources"
            )
        for source in given:
            check_prompt_file("data.prompt_data", source)
    if template is not None and not Path(template).is_file():
        raise ConfigError(f'data.chat_template_path = "{template}": no such file')
    if taken := {"messages", "add_generation_prompt"} & set(data.apply_chat_template_kwargs):
        raise ConfigError(f'data.apply_chat_template_kwargs: "{min(taken)}" is set for each prompt and cannot be given')


def check_prompt_file(key: str, source: str) -> None:
    """Raises ConfigError naming ``key``: no slice, no such built-in, no such file, or Parquet that cannot be read here."""
    path, _ = split_slice(source, key)
    if builtin.is_builtin(path):
        _check_builtin(key, path, builtin.PROMPTS)
    elif not Path(path).is_file():
        raise ConfigError(f'{key} = "{path}": no such file')
    elif path.endswith(PARQUET) and importlib.util.find_spec("pyarrow") is None:
        raise ConfigError(f'{key} = "{path}": a Parquet file needs the package pyarrow')


def _check_builtin(key: str, value: str, names: Iterable[str]) -> None:
    allowed = list(names)
    if value not in allowed:
        raise ConfigError(f'{key} = "{value}": there is no such built-in{_nearest(value, allowed)}; {_one_of(allowed)}')


def _build(table: dict[str, Any]) -> RunConfig:
    """The typed configuration in a TOML table, each key checked by itself so that the error can name it."""
    sections = {section.encode_name: section for section in msgspec.structs.fields(RunConfig)}
    built: dict[str, Any] = {}
    for name, values in table.items():
        if name not in sections:
            raise _unknown(name)
        if not isinstance(values, dict):
            raise ConfigError(f"{name} = {_show(values)}: expected a table, [{name}]")
        built[name] = _build_section(name, sections[name].type, values)
    for name, section in sections.items():
        if name not in built and section.required:
            built[name] = _build_section(name, section.type, {})
    return RunConfig(**built)


def _build_section(section: str, kind: Any, values: dict[str, Any]) -> Any:
    keys = {key.encode_name: key for key in msgspec.structs.fields(kind)}
    built = {}
    for name, value in values.items():
        if name not in keys:
            raise _unknown(f"{section}.{name}")
        built[name] = _convert(f"{section}.{name}", keys[name].type, value)
    for name, key in keys.items():
        if key.required and name not in built:
            raise ConfigError(f"{section}.{name} is missing: {_allowed(key.type)}")
    return kind(**built)


def _build_tables(key: str, kind: Any, value: Any) -> dict[str, Any]:
    """Named tables of one kind: ``[eval.datasets.NAME]``."""
    if not isinstance(value, dict):
        raise ConfigError(f"{key} = {_show(value)}: expected tables, [{key}.{ANY_NAME}]")
    for name, values in value.items():
        if not _NAME.fullmatch(name):
            raise ConfigError(f"{key}: {_show(name)} is no name: at most 64 letters, digits, - and _")
        if not isinstance(values, dict):
            raise ConfigError(f"{key}.{name} = {_show(values)}: expected a table, [{key}.{name}]")
    return {name: _build_section(f"{key}.{name}", kind, values) for name, values in value.items()}


def _convert(key: str, kind: Any, value: Any) -> Any:
    if (table := _table_of(kind)) is not None:
        return _build_tables(key, table, value)
    if value == NONE and _optional(kind):
        return None
    try:
        converted = msgspec.convert(value, type=kind, strict=True)
    except msgspec.ValidationError:
        choices = [choice for choice in _choices(kind) if isinstance(choice, str)]
        near = _nearest(value, choices) if isinstance(value, str) else ""
        shown = secret.MASK if key in secret.KEYS else _show(value)
        raise ConfigError(f"{key} = {shown}: expected {_allowed(kind)}{near}") from None
    many = converted.values() if isinstance(converted, dict) else converted
    numbers = many if isinstance(converted, list | dict) else [converted]
    if any(isinstance(number, float) and not math.isfinite(number) for number in numbers):
        raise ConfigError(f"{key} = {_show(converted)}: expected {_allowed(kind)}, finite")
    return converted


def _apply_override(table: dict[str, Any], override: str) -> None:
    """Put ``section.key=value`` into ``table``; a value that is no TOML value is a string (a bare word)."""
    name, equals, raw = override.partition("=")
    name, raw = name.strip(), raw.strip()
    if not equals or not name:
        raise ConfigError(f"override {override!r}: expected section.key=value")
    *tables, key = name.split(".")
    kind = _key_types().get(name) or _key_types().get(_any_name(name))
    if not tables or kind is None:
        raise _unknown(name)
    try:
        parsed = tomllib.loads(f"value = {raw}")
        value = parsed["value"] if len(parsed) == 1 else raw
    except tomllib.TOMLDecodeError:
        value = raw
    takes = _plain(kind)
    if str in takes and not isinstance(value, str) and not (isinstance(value, list) and len(takes) > 1):
        value = raw  # --set data.label_key=2024: the key takes text only
    values = table
    for depth, part in enumerate(tables, 1):
        values = values.setdefault(part, {})
        if not isinstance(values, dict):
            above = ".".join(tables[:depth])
            raise ConfigError(f"{above} = {_show(values)}: expected a table, [{above}]")
    values[key] = value


def _key_types() -> dict[str, Any]:
    """Every key's type; those of named tables as ``eval.datasets.NAME.key``."""
    kinds: dict[str, Any] = {}
    for section in msgspec.structs.fields(RunConfig):
        for key in msgspec.structs.fields(section.type):
            name = f"{section.encode_name}.{key.encode_name}"
            kinds[name] = key.type
            if (table := _table_of(key.type)) is not None:
                kinds |= {f"{name}.{ANY_NAME}.{sub.encode_name}": sub.type for sub in msgspec.structs.fields(table)}
    return kinds


def _any_name(key: str) -> str:
    """``key`` of a named table as :func:`_key_types` has it."""
    parts = key.split(".")
    return ".".join([*parts[:-2], ANY_NAME, parts[-1]]) if len(parts) > 3 else key


def _table_of(kind: Any) -> Any:
    """The section that the named tables of such a key hold; None: it is a plain key."""
    held = get_args(kind)[1] if get_origin(kind) is dict else None
    return held if isinstance(held, type) and issubclass(held, msgspec.Struct) else None


def _unknown(name: str) -> ConfigError:
    """The error for a key that does not exist, with the nearest of all keys by full name, else by last part."""
    keys = list(_key_types())
    sections = [section.encode_name for section in msgspec.structs.fields(RunConfig)]
    if "." not in name and difflib.get_close_matches(name, sections, 1):
        return ConfigError(f'unknown section "{name}"{_nearest(name, sections)}')
    leaf = name.rpartition(".")[2]
    same_leaf = [key for key in keys if key.rpartition(".")[2] == leaf]
    near = same_leaf[:1] or difflib.get_close_matches(name, keys, 1)
    if not near:
        leaves = {key.rpartition(".")[2]: key for key in keys}
        near = [leaves[match] for match in difflib.get_close_matches(leaf, list(leaves), 1)]
    hint = f'; did you mean "{near[0]}"?' if near else f"; sections: {', '.join(sections)}"
    return ConfigError(f'unknown key "{name}"{hint}')


def _nearest(value: str, names: Iterable[str]) -> str:
    near = difflib.get_close_matches(value, list(names), 1)
    return f'; did you mean "{near[0]}"?' if near else ""


def _one_of(values: Iterable[Any]) -> str:
    return "one of " + ", ".join(_show(value) for value in values)


def _members(kind: Any) -> list[Any]:
    """The alternatives of an annotation, without None."""
    if get_origin(kind) in (Union, types.UnionType):
        return [member for member in get_args(kind) if member is not type(None)]
    return [kind]


def _optional(kind: Any) -> bool:
    return type(None) in get_args(kind)


def _plain(kind: Any) -> set[Any]:
    return {get_args(m)[0] if get_origin(m) is Annotated else m for m in _members(kind)}


def _choices(kind: Any) -> list[Any]:
    return [choice for member in _members(kind) if get_origin(member) is Literal for choice in get_args(member)]


def _allowed(kind: Any) -> str:
    """What a key takes, in words: the type, its limits, its choices."""
    texts = []
    for member in _members(kind):
        limits: list[str] = []
        if get_origin(member) is Annotated:
            member, *notes = get_args(member)
            for note in notes:
                if isinstance(note, Meta):
                    signs = (">=", note.ge), (">", note.gt), ("<=", note.le), ("<", note.lt)
                    limits += [f"{sign} {limit}" for sign, limit in signs if limit is not None]
        if get_origin(member) is Literal:
            texts.append(_one_of(get_args(member)))
        elif get_origin(member) is list:
            (item,) = get_args(member)
            words = {str: "a list of strings", int: "a list of integers"}
            texts.append(words.get(item) or f"a list of numbers{_allowed(item).removeprefix('a number')}")
        elif get_origin(member) is dict:
            texts.append("a table of numbers" if get_args(member)[1] is float else "a table")
        else:
            words = {int: "an integer", float: "a number", str: "a string", bool: "true or false"}
            texts.append(" ".join([words[member], " and ".join(limits)]).strip())
    return " or ".join(texts + ([f'"{NONE}"'] if _optional(kind) else []))


def _show(value: Any) -> str:
    """``value`` as TOML where it is one of our types, else as Python shows it; never longer than a line."""
    try:
        text = _toml(value)
    except TypeError:
        text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str):
        # JSON's escapes are TOML's, but for DEL, which TOML wants escaped
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007F")
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_toml(name)} = {_toml(item)}" for name, item in value.items()) + "}"
    if isinstance(value, date | time):
        return value.isoformat()
    raise TypeError(f"no TOML for {type(value).__name__}")
