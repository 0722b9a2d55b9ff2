"""Passwords and keys of a run: taken from the environment where the configuration says so, and never shown.

Promises: a configuration holds ``env:NAME`` as it was given, and its value is looked up in the process that uses it; what
is written, printed or put on the bus goes through :func:`masked`.
"""

from __future__ import annotations

import hmac
import os

import msgspec

from bus.password import without_password
from miles_async.config.loopback import is_loopback
from miles_async.config.schema import ConfigError, RunConfig

ENV = "env:"
MASK = "***"
KEYS = frozenset(
    {"router.api_key", "router.admin_key", "engine.api_key", "bus.url", "reward.rm_url"}
)  # a URL may hold a key


def resolve(key: str, value: str | None) -> str | None:
    """The secret that ``value`` of the configuration's ``key`` means. Raises ConfigError: its variable is not set."""
    if value is None or not value.startswith(ENV):
        return value
    name = value.removeprefix(ENV)
    if not (found := os.environ.get(name)):
        raise ConfigError(f'{key} = "{value}": the environment variable {name or "(no name)"} is not set, or empty')
    return found


def check(config: RunConfig) -> None:
    """Refuse a secret that cannot be had or used, and a router that others could reach. Raises ConfigError."""
    resolve("bus.url", config.bus.url)
    resolve("reward.rm_url", config.reward.rm_url)
    taken: dict[str, str] = {}
    for key, value in (
        ("router.api_key", config.router.api_key),
        ("router.admin_key", config.router.admin_key),
        ("engine.api_key", config.engine.api_key),
    ):
        found = resolve(key, value)
        if found is not None and not (found.isascii() and found.isprintable() and found.strip() == found != ""):
            raise ConfigError(f"{key}: expected printable ASCII characters, without spaces at its ends")
        if found not in (None, MASK) and (other := taken.setdefault(found, key)) != key:
            raise ConfigError(f"{key} is the same as {other}: a key for one of them must not open the other")
    if config.router.api_key is None and not is_loopback(config.router.host):
        raise ConfigError(
            f'router.host = "{config.router.host}" lets other machines in: set router.api_key, or use "127.0.0.1"'
        )


def with_keys(config: RunConfig, secret: str, *, engines: bool) -> RunConfig:
    """``config`` with a key where the run's router has none, drawn from ``secret``: the same in all processes that know that.

    engines: the run's engines, too; somebody else's ask for what they ask for.
    """
    replace = msgspec.structs.replace
    router, engine = config.router, config.engine
    if router.api_key is None:
        router = replace(router, api_key=_drawn(secret, "router.api_key"))
    if engine.api_key is None and engines:
        engine = replace(engine, api_key=_drawn(secret, "engine.api_key"))
    return replace(config, router=router, engine=engine)


def _drawn(secret: str, key: str) -> str:
    return hmac.new(secret.encode(), key.encode(), "sha256").hexdigest()


def mask(key: str, value: str | None) -> str | None:
    """``value`` of the configuration's ``key`` for people to read: ``env:NAME`` as it is, a literal secret as ``***``."""
    if value is None or key not in KEYS or value.startswith(ENV):
        return value
    return without_password(value) if key == "bus.url" else MASK


def masked(config: RunConfig) -> RunConfig:
    """``config`` without its secrets."""
    replace = msgspec.structs.replace
    return replace(
        config,
        router=replace(
            config.router,
            api_key=mask("router.api_key", config.router.api_key),
            admin_key=mask("router.admin_key", config.router.admin_key),
        ),
        engine=replace(config.engine, api_key=mask("engine.api_key", config.engine.api_key)),
        bus=replace(config.bus, url=mask("bus.url", config.bus.url)),
        reward=replace(config.reward, rm_url=mask("reward.rm_url", config.reward.rm_url)),
    )
