"""A simulation's settings from what a run has left: who was asked for what, how long they were, and what everything took.

Promises: the run's own policy, slots, waves and router; every time is fitted (generation_fit.py, chain_fit.py), none is a
default; what a record cannot say is among the notes. A simulation's own directory is read in the same way, and gives its
settings back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from miles_async.comparing.curves import read_curve
from miles_async.config import toml
from miles_async.config.layout import replicas
from miles_async.config.typed import build
from miles_async.monitor.record_lines import RecordError
from miles_async.runs.launches import configured, is_simulation
from miles_async.simulation.assignment import Pause
from miles_async.simulation.chain_fit import Learning, Links, Updates, learning_of, links_of, rewards_of, updates_of
from miles_async.simulation.fits import lengths_of, lognormal_of
from miles_async.simulation.generation_fit import EngineFit, Fleet, Generation, engine_fit
from miles_async.simulation.observations import Observed, ObservedGroup, whole
from miles_async.simulation.observed import observe
from miles_async.simulation.reading import check
from miles_async.simulation.settings import LOOKED_AT, SimulationConfig

DIGITS = 4  # that a fitted number is written with
ENDED_FEW = 0.02  # share of the groups without an end on record from which on it is said
OF_THE_RUN = ("samples_per_s", "tokens_per_s", "learner_busy", "engine_busy", "mean_token_lag", "max_token_lag")

Table = dict[str, dict[str, Any]]


class Calibrated(NamedTuple):
    """``about``: how near the fits come, what they are of, ``notes``, and the run's own figures to look at beside the
    result."""

    config: SimulationConfig
    about: dict[str, Any]


def calibrate(run_dir: Path, overrides: Sequence[str] = ()) -> Calibrated:
    """Raises RecordError: no record, or one with no step; ConfigError: of ``overrides``, or what a simulation cannot do."""
    given = _given(run_dir)
    seen = observe(run_dir)
    groups = whole(seen.groups.values())
    if not groups:
        raise RecordError(f"{run_dir}: no group was generated there from its first token to its last")
    weights, interval = given["weights"], given["weights"].get("update_interval", 1)
    known = [group.prompt for group in groups if group.prompt is not None]
    prompt = float(np.mean(known)) if known else float(given["lengths"].get("prompt_mean", 0.0))
    fleet = Fleet(
        given["engines"]["num_engines"],
        given["router"].get("policy", "least_inflight"),
        per_sample=given["rollout"].get("request_per_sample", False),
        prefix_cache=given["engines"].get("prefix_cache", True),
        retracts=weights.get("pause_mode", "retract") == "retract",
    )
    engines = _engines(seen, groups, prompt, fleet)
    learning = learning_of(seen, given["learner"]["replicas"], prompt, interval)
    table = _table(given, engines, learning, links_of(seen, _slots(given)), updates_of(seen))
    table["lengths"] = _lengths(groups, known, given["lengths"])
    table["environment"] = given["environment"] | _environment(seen, groups, given)
    config = toml.with_overrides(table, overrides, SimulationConfig)
    check(config)
    return Calibrated(config, _about(run_dir, seen, groups, engines, learning, given))


def _given(run_dir: Path) -> Table:
    """What was configured, as a simulation's table. Raises RecordError: nothing was."""
    table = configured(run_dir)
    if table is None:
        raise RecordError(f"{run_dir}: no run here that has a record: no launch is on record, and no simulation")
    sections = ("rollout", "staleness", "weights", "router", "lengths", "environment", "engines", "learner")
    if is_simulation(run_dir):
        config = build(table, SimulationConfig)
        fields = {"num_engines": config.engines.num_engines}, {"replicas": config.learner.replicas}
        found: Table = {name: dict(table.get(name, {})) for name in (*sections, "simulation")}
        found["engines"] |= fields[0]
        found["learner"] |= fields[1]
        return found
    run = toml.of_table(table)
    found = {
        name: dict(table.get(name, {})) if name in ("rollout", "staleness", "weights") else {} for name in sections
    }
    found["router"] = {key: value for key, value in table.get("router", {}).items() if key in LOOKED_AT["router"]}
    found["simulation"] = {"num_steps": run.run.num_steps}
    found["engines"] = {
        "num_engines": len(run.engine.urls) or run.engine.num_engines,
        "max_running_requests": run.engine.max_running_requests,
    }
    found["learner"] = {"replicas": replicas(run.learner), "save_interval": run.checkpoint.save_interval}
    return found


def _slots(given: Table) -> int:
    """Groups that all workers may have in flight."""
    rollout = build({"rollout": given["rollout"]}, SimulationConfig).rollout
    return max(1, rollout.num_workers * rollout.samples_in_flight // rollout.n_samples_per_prompt)


def _engines(seen: Observed, groups: Sequence[ObservedGroup], prompt: float, fleet: Fleet) -> EngineFit:
    def generation(group: ObservedGroup, ended: float | None, lengths: tuple[int, ...]) -> Generation:
        assert group.began is not None and ended is not None
        return Generation(group.began, ended, lengths, prompt if group.prompt is None else group.prompt)

    ended = [generation(group, group.generated, group.lengths) for group in groups]
    pace = float(np.median([max(group.lengths) / max(group.ended - group.began, 1e-9) for group in ended]))
    last, size = max(group.ended for group in ended), len(groups[0].lengths)
    begun = [g for g in seen.groups.values() if g.began is not None and not g.lengths]
    unfinished = []
    for group in begun:
        until = min(last, group.gone or last)
        if until > (began := group.began or 0.0):
            unfinished.append(generation(group, until, (max(1, round(pace * (until - began))),) * size))
    numbers = {name: n for n, name in enumerate(sorted({name for update in seen.updates for name in update.paused_s}))}
    pauses = [
        Pause(numbers[name] % fleet.num_engines, update.ended - seconds, update.ended)
        for update in seen.updates
        for name, seconds in update.paused_s.items()
    ]
    found = engine_fit(ended, unfinished, pauses, fleet)
    if found.step_s + found.step_request_s == 0.0:
        return found._replace(step_s=1.0 / pace, overhead_s=0.0)
    return found


def _table(given: Table, engines: EngineFit, learning: Learning, links: Links, updates: Updates) -> Table:
    return given | {
        "engines": given["engines"]
        | {
            "step_s": _short(engines.step_s),
            "step_request_s": _short(engines.step_request_s),
            "prefill_token_s": _short(engines.prefill_token_s),
            "update_s": _short(updates.paused_s),
            "update_engine_s": _short(updates.paused_engine_s),
        },
        "learner": given["learner"]
        | {
            "step_s": _short(learning.step_s),
            "token_s": _short(learning.token_s),
            "export_s": _short(learning.export_s),
            "save_s": _short(learning.save_s),
        },
        "links": {
            "admit_s": _short(links.admit_s),
            "publish_s": _short(links.publish_s + engines.overhead_s),
            "batch_s": _short(links.batch_s),
            "offer_s": _short(links.offer_s),
        },
    }


def _lengths(groups: Sequence[ObservedGroup], prompts: Sequence[int], given: Mapping[str, Any]) -> dict[str, Any]:
    fit = lengths_of([group.lengths for group in groups])
    found: dict[str, Any] = {"kind": fit.kind, "mean": _short(fit.mean), "alike": _short(fit.alike)}
    if fit.kind == "lognormal":
        found["sigma"] = _short(fit.sigma)
    if fit.kind == "empirical":
        found["values"] = fit.values
    if prompts:
        mean, sigma = lognormal_of(np.array(prompts, np.float64))
        return found | {"prompt_mean": _short(mean), "prompt_sigma": _short(sigma)}
    return found | {key: value for key, value in given.items() if key.startswith("prompt_")}


def _environment(seen: Observed, groups: Sequence[ObservedGroup], given: Table) -> dict[str, Any]:
    mean, sigma = rewards_of(groups)
    found = {"reward_s": _short(mean), "reward_sigma": _short(sigma)}
    if given["rollout"].get("dynamic_sampling_filter", "none") != "none":
        refused = sum(group.published is None and bool(group.lengths) for group in seen.groups.values())
        found["refused"] = _short(refused / (refused + len(groups)))
    return found


def _about(
    run_dir: Path, seen: Observed, groups: Sequence[ObservedGroup], engines: EngineFit, learning: Learning, given: Table
) -> dict[str, Any]:
    notes = []
    ended = sum(bool(group.lengths) for group in seen.groups.values() if group.began is not None)
    gone = sum(
        group.gone is not None and not group.lengths for group in seen.groups.values() if group.began is not None
    )
    if gone > ENDED_FEW * (ended + gone):
        notes.append(
            f"{gone} groups were dropped before they ended: the lengths are of those that did, the shorter ones"
        )
    if given["rollout"].get("generate_function", "single_turn") != "single_turn":
        notes.append(
            "what tools and agents take is in the time of the tokens: set environment.turns and tool_s by hand"
        )
    if not seen.updates:
        notes.append("no update of the weights is on record: they take no time")
    figures = read_curve(run_dir).figures
    return {
        "from": str(run_dir),
        "groups": len(groups),
        "steps": sum(step.ended is not None for step in seen.steps.values()),
        "running": [round(number, 1) for number in engines.running],
        "error_of_generation": round(engines.error, 4),
        "error_of_training": round(learning.error, 4),
        "notes": notes,
        "run": {name: figures.get(name) for name in OF_THE_RUN},
    }


def _short(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")
