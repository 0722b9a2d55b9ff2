"""Whole runs of an agent: what is trained is what an engine sampled, token by token, by the engine's own log."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from launching import RECORDING, events, launch, recording_environment, summary, trained_groups, write_config

from bus.codec import LOGPROBS, MASK, TOKENS, VERSIONS, unpack
from bus.messages import Group, Sample

EXAMPLE = Path(__file__).parents[2] / "examples" / "guess_number.toml"
Sampled = dict[str, list[Any]]


def log_of(run_dir: Path) -> dict[tuple[int, ...], list[Sampled]]:
    """What the engines sampled, by what they continued."""
    log: dict[tuple[int, ...], list[Sampled]] = defaultdict(list)
    for path in (run_dir / "sampled").iterdir():
        for line in path.read_text().splitlines():
            entry = json.loads(line)
            log[tuple(entry["prompt"])].append(entry)
    return log


def take_from_log(log: dict[tuple[int, ...], list[Sampled]], group: Group, sample: Sample) -> int:
    """Cross out the entries that ``sample`` was made of; returns how many. Fails where one is not in the log (any more)."""
    sequence = unpack(sample.prompt_tokens or group.prompt_tokens, TOKENS).tolist()
    tokens, mask = unpack(sample.tokens, TOKENS).tolist(), unpack(sample.loss_mask, MASK).tolist()
    logprobs, versions = unpack(sample.logprobs, LOGPROBS).tolist(), unpack(sample.versions, VERSIONS).tolist()
    place, taken = 0, 0
    while place < len(tokens):
        if not mask[place]:
            sequence.append(tokens[place])
            place += 1
            continue
        entries = log[tuple(sequence)]

        def is_it(entry: Sampled, place: int = place) -> bool:
            end = place + len(entry["output"])
            return (
                entry["output"] == tokens[place:end]
                and mask[place:end] == [1] * len(entry["output"])
                and entry["logprobs"] == pytest.approx(logprobs[place:end], abs=1e-6)
                and entry["versions"] == versions[place:end]
            )

        entry = next((entry for entry in entries if is_it(entry)), None)
        assert entry is not None, (group.group_id, sample.index, place, sequence, tokens[place:], entries)
        entries.remove(entry)
        sequence += entry["output"]
        place += len(entry["output"])
        taken += 1
    return taken


def test_every_trained_token_is_one_that_an_engine_sampled_and_is_trained_once(tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(json.dumps({"input": [{"role": "user", "content": "?"}], "label": "3"}) + "\n")
    rollout = {
        "generate_function": "agent",
        "agent_function": "playing_agents.play_or_branch",  # 2 turns in one sequence, or 5 in three
        "rollout_batch_size": 4,
        "n_samples_per_prompt": 2,
        "rollout_max_response_len": 40,
        "num_workers": 1,
    }
    config = write_config(
        tmp_path,
        model={"hf_checkpoint": "builtin:guess"},
        data={"prompt_data": str(prompts), "apply_chat_template": True},
        run={"num_steps": 3},
        rollout=rollout,
        reward={"reward_key": "won"},
        staleness={"max_lag": 1},
        learner={"lr": 1e-2},
        topology={**RECORDING, "engine": "recording_engine.RecordingEngine"},
    )
    done = launch(config, tmp_path / "run", env=recording_environment())
    assert done.returncode == 0, done.stderr

    log, versions = log_of(tmp_path / "run"), set[int]()
    steps = trained_groups(tmp_path / "run")
    assert {step: len(groups) for step, groups in steps.items()} == {1: 4, 2: 4, 3: 4}
    for group in (group for groups in steps.values() for group in groups):
        assert len(group.samples) == 1 + 3
        assert sum(take_from_log(log, group, sample) for sample in group.samples) == 2 + 5
        for sample in group.samples:
            versions |= set(unpack(sample.versions, VERSIONS).tolist())
    assert len(versions) > 1  # the weights moved on meanwhile, and each token knows its own


def test_the_example_plays_its_game_and_trains_on_it(tmp_path: Path) -> None:
    small = {
        "run.num_steps": 2,
        "rollout.rollout_batch_size": 4,
        "rollout.n_samples_per_prompt": 4,
        "monitor.live": "off",
    }
    overrides = [part for key, value in small.items() for part in ("--set", f"{key}={value}")]
    done = launch(EXAMPLE, tmp_path / "run", *overrides)
    assert done.returncode == 0, done.stderr
    found = summary(tmp_path / "run")
    assert found["steps"] == 2 and found["balanced"]
    assert events(tmp_path / "run", "sample_lost") == []
    rewards = [
        reward
        for line in (tmp_path / "run" / "transitions.jsonl").read_text().splitlines()
        for reward in json.loads(line).get("rewards", ())
    ]
    # won, or a fortieth for each guess that was a number
    assert set(rewards) <= {0.0, 0.025, 0.05, 0.075, 0.1, 1.0} and len(rewards) >= 2 * 4 * 4
