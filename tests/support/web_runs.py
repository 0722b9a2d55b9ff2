"""Run directories as a run leaves them, made by hand: of as many steps as a test wants."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from bus.codec import LOGPROBS, MASK, TOKENS, VERSIONS, encode, pack
from bus.messages import Group, Sample
from miles_async.monitor.progress import Progress
from miles_async.monitor.record_lines import EventLine, MetricsLine, TransitionLine
from miles_async.monitor.summary import summarize
from miles_async.recording.learner_log_probs import items
from miles_async.recording.segments import Entry, block

BEGAN = 1_700_000_000.0  # seconds since the epoch
STEP_S = 2.0


def append(path: Path, *lines: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        file.writelines(msgspec.json.encode(line) + b"\n" for line in lines)


def step_line(step: int, reward: float | None = None, **values: float) -> MetricsLine:
    """What the learner reports of a step that ends ``STEP_S`` after the one before."""
    known: dict[str, float | None] = {
        "raw_reward": 1 - 1 / (1 + step / 20) if reward is None else reward,
        "loss": 1 / step,
        "n_samples": 8.0,
        "n_tokens": 80.0,
        "max_token_lag": float(step % 3 + 1),
        "mean_token_lag": 0.5 * (step % 3 + 1),
        "grad_norm": 1.0,
        "perf/train_time": 1.5,
        "perf/train_wait_time": 0.5,
        "perf/step_time": 2.0,
    }
    return MetricsLine("learner-0", step, BEGAN + STEP_S * step, known | values)


def other_lines(step: int) -> list[MetricsLine]:
    """What router and broadcaster report at that step."""
    time = BEGAN + STEP_S * step + 0.5
    busy = {"engine_busy/engine-0": 0.75, "engine_requests_per_s/engine-0": 12.0, "router/inflight": 3.0}
    busy |= {"engine_running/engine-0": 24.0, "engine_tokens_per_s/engine-0": 1234.0}
    pushed = {"weights/update_s": 0.25, "weights/paused_s/engine-0": 0.125, "weights/publish_lag": 1.0}
    return [MetricsLine("router", step, time, dict(busy)), MetricsLine("broadcaster", step, time, dict(pushed))]


def made_run(
    directory: Path, steps: int = 3, *, finished: bool = False, model: Path | str = "m", config: str = ""
) -> Path:
    """The metrics, events and configuration of a run; ``finished``: and its summary."""
    directory.mkdir(parents=True)
    table = f'[model]\nhf_checkpoint = "{model}"\n[data]\nprompt_data = "d"\n[run]\nnum_steps = {steps}\n{config}'
    (directory / "config.toml").write_text(table)
    lines = [MetricsLine("monitor", 0, BEGAN, {"start": 0.0})]
    for step in range(1, steps + 1):
        lines += [step_line(step), *other_lines(step)]
    events = [EventLine("supervisor", "started", BEGAN, {"actor": "learner-0"})]
    append(directory / "metrics.jsonl", *lines)
    append(directory / "events.jsonl", *events)
    if finished:
        progress = Progress(steps)
        progress.replay(lines, events)
        counts = {"dealt": 2 * steps, "trained": 2 * steps}
        found = summarize(progress, "finished", counts, BEGAN + STEP_S * steps)
        (directory / "summary.json").write_text(json.dumps(found))
    return directory


def sample(
    index: int, tokens: Sequence[int], versions: Sequence[int], reward: float = 0.5, masked: int = 0, **more: Any
) -> Sample:
    """``masked``: how many of the first tokens are left out of the loss."""
    n = len(tokens)
    about: dict[str, Any] = {"finish_reason": "stop", "reward_parts": {"right": reward}} | more
    return Sample(
        index=index,
        tokens=pack(list(tokens), TOKENS),
        logprobs=pack([-0.5 * place for place in range(n)], LOGPROBS),
        loss_mask=pack([0] * masked + [1] * (n - masked), MASK),
        versions=pack(list(versions), VERSIONS),
        reward=reward,
        **about,
    )


def group(group_id: str, *samples: Sample, prompt: Sequence[int] = (3, 4)) -> Group:
    tokens = pack(list(prompt), TOKENS)
    return Group(group_id=group_id, prompt_tokens=tokens, samples=samples, worker="w", started=1.0, finished=3.5)


def record_step(run_dir: Path, step: int, *groups: Group, lease: str = "rollout-0/1") -> None:
    """As the run would have it on disk: each group claimed, published and kept, then batched for the step."""
    end = BEGAN + STEP_S * step
    ids = tuple(one.group_id for one in groups)

    def line(kind: str, time: float, *of: str, **more: Any) -> TransitionLine:
        return TransitionLine(f"{round(time * 1000)}-0", kind, of, **more)

    append(
        run_dir / "transitions.jsonl",
        *(line("claimed", end - 4, one, by=lease, attempt=1) for one in ids),
        *(line("published", end - 2 + n * 0.25, one, by=lease) for n, one in enumerate(ids)),
        line("batched", end - 1, *ids, step=step),
    )
    (run_dir / "record").mkdir(exist_ok=True)
    items = [(encode(one), one.group_id) for one in groups]
    made = block([(Entry(name, lease, "published", len(payload)), payload) for payload, name in items])
    with (run_dir / "record" / "rollout-0-1-00001.seg").open("ab") as file:
        file.write(made)


def record_log_probs(run_dir: Path, step: int, *groups: Group, flat: Sequence[float], life: int = 1) -> None:
    """As a learner adds its own log-probs of the groups' tokens, in their order."""
    owner = f"learner-0/{life}"
    with (run_dir / "record" / f"learner-0-{life}-00001.seg").open("ab") as file:
        file.write(block(items(step, groups, np.array(flat, dtype=np.float32), owner)))
