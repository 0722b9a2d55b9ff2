"""A simulation's figures for a reader: a table. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from miles_async.monitor.summary import ledger_line

WIDTH = 110


def show(found: Mapping[str, Any]) -> str:
    """As text, without colours."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    table = Table("figure", "value", box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for name, value in rows(found):
        table.add_row(name, value)
    console = Console(width=WIDTH, color_system=None, force_terminal=False)
    with console.capture() as capture:
        console.print(table)
    return "\n".join(line.rstrip() for line in capture.get().splitlines())


def rows(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Name and value of each line."""

    def number(key: str, form: str) -> str:
        value = found[key]
        return "-" if value is None else format(value, form)

    bias = found["length_bias"]
    drops = ", ".join(f"{reason} {count:,}" for reason, count in found["drops"].items())
    shown = [
        (
            "steps",
            f"{found['steps']:,} in {number('wall_s', ',.1f')} s, {number('step_s', ',.3f')} s and "
            f"{number('groups_per_step', ',.1f')} groups a step",
        ),
        (
            "throughput",
            f"{number('groups_per_s', ',.3f')} groups/s, {number('samples_per_s', ',.1f')} samples/s, "
            f"{number('tokens_per_s', ',.0f')} tokens/s",
        ),
        (
            "of the ideal",
            f"{number('share_of_ideal', '.3f')} ({number('ideal_groups_per_s', ',.3f')} groups/s without a bound)",
        ),
        ("busy", f"learner {number('learner_busy', '.1%')}, engines {number('engine_busy', '.1%')}"),
        ("running", f"{number('engine_running', ',.1f')} samples of an engine while it decodes"),
        (
            "lag",
            f"max {number('max_token_lag', 'd')}, mean of tokens {number('mean_token_lag', '.3f')}, of groups "
            f"{number('mean_group_lag', '.3f')} versions; engines are {number('publish_lag', '.2f')} behind",
        ),
        ("tokens by lag", _shares(found["lag_tokens"])),
        ("groups by lag", _shares(found["lag_groups"])),
        (
            "wasted",
            f"{number('wasted_share', '.1%')} of the tokens: masked {number('masked_share', '.1%')} of the batches', dropped "
            f"{number('dropped_share', '.1%')} of the groups{f' ({drops})' if drops else ''}",
        ),
        (
            "lengths",
            f"trained {_or_none(bias['trained_mean'], ',.1f')} of {_or_none(bias['dispatched_mean'], ',.1f')} dispatched "
            f"(ratio {_or_none(bias['ratio'], '.3f')}, ks {_or_none(bias['ks'], '.3f')})",
        ),
        ("interrupted", f"{found['retractions']:,} retractions, {found['failovers']:,} failovers"),
        ("ledger", ledger_line(found["ledger"])),
    ]
    if found["overrun_tokens"]:
        far = (
            f"{number('overrun_token_share', '.1%')} of the tokens, {number('overrun_group_share', '.1%')} of the groups, "
            f"by up to {number('max_overrun', 'd')} versions"
        )
        shown.append(("beyond the bound", far))
    if found["not_simulated"]:
        shown.append(("not simulated", ", ".join(found["not_simulated"])))
    return shown + _calibration(found.get("calibration"))


def _calibration(about: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """What the settings were fitted to, and the run's own figures: how far the simulation is from what it was made of."""
    if about is None:
        return []
    low, high = about["running"]
    run = {name: "-" if value is None else format(value, form) for (name, form), value in _of_the_run(about["run"])}
    return [
        (
            "calibrated on",
            f"{about['groups']:,} groups of {about['steps']:,} steps, engines with {low:,.0f} to {high:,.0f} samples; off by "
            f"{about['error_of_generation']:.1%} of a group's time, {about['error_of_training']:.1%} of a step's",
        ),
        (
            "that run",
            f"{run['samples_per_s']} samples/s, {run['tokens_per_s']} tokens/s, learner busy {run['learner_busy']}, lag max "
            f"{run['max_token_lag']}, mean {run['mean_token_lag']} versions, over all of its steps",
        ),
        *(("note", note) for note in about["notes"]),
    ]


def _of_the_run(figures: Mapping[str, Any]) -> list[tuple[tuple[str, str], Any]]:
    forms = {
        "samples_per_s": ",.1f",
        "tokens_per_s": ",.0f",
        "learner_busy": ".1%",
        "max_token_lag": ".0f",
        "mean_token_lag": ".3f",
    }
    return [((name, form), figures.get(name)) for name, form in forms.items()]


def _shares(shares: Mapping[str, float]) -> str:
    return ", ".join(f"{lag}: {share:.1%}" for lag, share in shares.items() if share >= 0.0005) or "-"


def _or_none(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
