"""Runs beside each other: what is configured otherwise first, then their figures; for a reader, and as JSON.

Promises: what all runs have in common is not listed, and of a run beside a simulation only the keys that both have are looked
at; rewards are compared at equal steps, at equal tokens and at equal time, as far as the shortest of them went; of a replay
it is said that its rewards are those of the recorded data, of a simulation that it has none.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from miles_async.comparing.curves import Curve, at, read_curve
from miles_async.config.words import NONE
from miles_async.monitor.record_lines import RecordError

LEAST = 0.005  # a share that is shown
_ELSEWHERE = ("bus.url",)  # where a run's ledger lies, which says nothing about it


class Row(NamedTuple):
    """A figure as it is shown."""

    key: str
    label: str
    form: str


ROWS = (
    Row("status", "status", ""),
    Row("steps", "steps", ","),
    Row("reward_first", "reward, first steps", ".3f"),
    Row("reward_last", "reward, last steps", ".3f"),
    Row("reward_at_steps", "reward at {steps:,} steps", ".3f"),
    Row("reward_at_tokens", "reward at {tokens:,.0f} tokens", ".3f"),
    Row("reward_at_seconds", "reward at {seconds:,.1f} s", ".3f"),
    Row("samples_per_step", "samples a step", ",.1f"),
    Row("samples_per_s", "samples/s", ",.1f"),
    Row("tokens_per_s", "tokens/s", ",.0f"),
    Row("share_of_ideal", "share of the ideal", ".3f"),
    Row("learner_busy", "learner busy", ".0%"),
    Row("engine_busy", "engines busy", ".0%"),
    Row("mean_token_lag", "lag, mean", ".2f"),
    Row("max_token_lag", "lag, max", ".0f"),
    Row("lag_tokens", "tokens by lag", ".0%"),
    Row("masked", "tokens masked", ".1%"),
    Row("dropped", "groups dropped", ".1%"),
    Row("wasted_share", "tokens wasted", ".1%"),
    Row("length_bias", "trained/made length", ".3f"),
    Row("ppo_kl", "ppo_kl", ".2e"),
    Row("ess_ratio", "ess_ratio", ".3f"),
    Row("train_rollout_kl", "train_rollout_kl", ".2e"),
    Row("grad_norm", "grad_norm", ".3g"),
)


def read_all(run_dirs: Sequence[Path]) -> list[Curve]:
    """The curves, under names that tell them apart. Raises RecordError."""
    if len(run_dirs) < 2:
        raise RecordError("compare RUN RUN...: at least two runs")
    curves = [read_curve(run_dir) for run_dir in run_dirs]
    names = [curve.name for curve in curves]
    if len(set(names)) < len(names):
        names = [str(run_dir) for run_dir in run_dirs]
    return [Curve(name, c.table, c.points, c.figures) for name, c in zip(names, curves, strict=True)]


def compare(curves: Sequence[Curve]) -> dict[str, Any]:
    """``differences``: key of the configuration to its value by run. ``figures``: by run. ``common``: how far all of them went.
    ``replays``: those whose data are another run's. ``simulations``: those that are none."""
    common = {
        "steps": min(curve.points[-1].step for curve in curves),
        "tokens": min(curve.points[-1].tokens for curve in curves),
        "seconds": min(curve.points[-1].seconds for curve in curves),
    }
    figures = {
        curve.name: curve.figures
        | {
            "reward_at_steps": at(curve.points, common["steps"], lambda point: point.step),
            "reward_at_tokens": at(curve.points, common["tokens"], lambda point: point.tokens),
            "reward_at_seconds": at(curve.points, common["seconds"], lambda point: point.seconds),
        }
        for curve in curves
    }
    replays = [curve.name for curve in curves if curve.table.get("replay", {}).get("run", NONE) != NONE]
    simulations = [curve.name for curve in curves if curve.is_simulation]
    return {
        "differences": differences(curves),
        "common": common,
        "figures": figures,
        "replays": replays,
        "simulations": simulations,
    }


def differences(curves: Sequence[Curve]) -> dict[str, dict[str, Any]]:
    """The keys of the configuration that are not the same in all runs, with the value of each; unset ones are "none"."""
    keys: dict[str, None] = {}
    for curve in curves:
        keys |= dict.fromkeys(f"{section}.{key}" for section, values in curve.table.items() for key in values)
    if len({curve.is_simulation for curve in curves}) > 1:
        keys = {key: None for key in keys if all(_has(curve.table, key) for curve in curves)}
    found = {}
    for key in keys:
        section, _, name = key.partition(".")
        values = {curve.name: curve.table.get(section, {}).get(name, NONE) for curve in curves}
        if key not in _ELSEWHERE and any(value != values[curves[0].name] for value in values.values()):
            found[key] = values
    return found


def _has(table: Mapping[str, Any], key: str) -> bool:
    section, _, name = key.partition(".")
    return name in table.get(section, {})


def show(found: Mapping[str, Any]) -> str:
    """``found``, as :func:`compare` returned it, as two tables."""
    from rich.console import Console
    from rich.table import Table

    names = list(found["figures"])
    out = io.StringIO()
    console = Console(file=out, width=max(80, 30 + 20 * len(names)))
    tables = []
    if found["differences"]:
        table = Table("configured", *names, box=None, pad_edge=False)
        for key, values in found["differences"].items():
            table.add_row(key, *(str(values[name]) for name in names))
        tables.append(table)
    table = Table("", *names, box=None, pad_edge=False)
    for row in ROWS:
        values = [found["figures"][name].get(row.key) for name in names]
        if any(value is not None for value in values):
            table.add_row(row.label.format(**found["common"]), *(shown(value, row.form) for value in values))
    tables.append(table)
    for one in tables:
        console.print(one)
        console.print()
    if not found["differences"]:
        console.print("configured alike")
    lines = [line.rstrip() for line in out.getvalue().rstrip().splitlines()]
    says = "is a replay: its rewards are those of the recorded data, its time is without generation"
    simulated = "is a simulation: it has no rewards"
    return "\n".join(
        [
            *lines,
            *(f"{name} {says}" for name in found["replays"]),
            *(f"{name} {simulated}" for name in found["simulations"]),
        ]
    )


def shown(value: Any, form: str) -> str:
    """A number in its form; of shares by a name those that would not be shown as 0."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {share:{form}}" for name, share in value.items() if share >= LEAST) or "-"
    return "-" if value is None else format(value, form)
