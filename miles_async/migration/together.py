"""What several of Miles' flags say together, and what it does where they say nothing and a run here would do otherwise.

Promises: pure; a number that only the running script knows (``${...}``) is not guessed: what would follow from it is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from miles_async.migration.script import UNKNOWN
from miles_async.rewards.table import BOXED, BUILT_IN

Flags = Mapping[str, Sequence[str]]
Said = tuple[dict[str, Any], dict[str, str]]  # keys, and flags without one: why
MY_REWARD = "my_reward.py:reward"  # where nobody has written it yet, a launch says so
DEFAULTS: dict[str, dict[str, Any]] = {  # flag: what Miles does without it, where a run here would do otherwise
    "--label-key": {"data.label_key": "none"},
    "--rollout-shuffle": {"data.rollout_shuffle": False},
    "--n-samples-per-prompt": {"rollout.n_samples_per_prompt": 1},
    "--calculate-per-token-loss": {"algorithm.loss_aggregation": "sample"},
    "--adam-beta2": {"learner.adam_beta2": 0.999},
    "--weight-decay": {"learner.weight_decay": 0.01},
}


def defaults(flags: Flags) -> dict[str, Any]:
    """What Miles does of itself."""
    found: dict[str, Any] = {"model.dtype": "bfloat16"}
    for flag, keys in DEFAULTS.items():
        if flag not in flags:
            found |= keys
    return found


def machines(flags: Flags, is_async: bool) -> Said:
    """Ranks, engines and where they run."""
    nodes, gpus = _number(flags, "--actor-num-nodes", 1), _number(flags, "--actor-num-gpus-per-node", 8)
    per_engine, keys = _number(flags, "--rollout-num-gpus-per-engine", 1), dict[str, Any]()
    ranks = None if nodes is None or gpus is None else nodes * gpus
    for_engines = _number(flags, "--rollout-num-gpus", ranks)
    if ranks is not None:
        keys["learner.num_ranks"] = ranks
    if flags.get("--loss-type") != ["sft_loss"]:
        keys["engine.kind"] = "sglang"
        if for_engines is not None and per_engine is not None:
            keys["engine.num_engines"] = max(1, for_engines // per_engine)
    if nodes is not None and nodes > 1:
        keys |= {"placement.kind": "ray", "placement.learner.num_gpus": 1.0}
        keys |= {"placement.engine.num_gpus": float(per_engine or 1)} if "engine.kind" in keys else {}
    args = [part for flag, words in flags.items() if _is_of_server(flag) for part in (f"--{flag[9:]}", *words)]
    if args:
        keys["engine.args"] = args
    if addresses := flags.get("--rollout-external-engine-addrs"):
        urls = [word if "://" in word else f"http://{word}" for word in addresses]
        keys |= {"engine.kind": "external", "engine.urls": urls}
        keys.pop("engine.num_engines", None)
    return keys, {}


def _is_of_server(flag: str) -> bool:
    return flag.startswith("--sglang-") and not flag.startswith(
        ("--sglang-router-", "--sglang-server-", "--sglang-config")
    )


def staleness(flags: Flags, is_async: bool) -> Said:
    """How far groups may be behind, and what is done about it."""
    if flags.get("--loss-type") == ["sft_loss"]:
        return {"staleness.max_lag": 0}, {}
    interval = _number(flags, "--update-weights-interval", 1) or 1
    keys: dict[str, Any] = {"staleness.max_lag": interval if is_async else 0}
    if (bound := _number(flags, "--max-weight-staleness", None)) is not None:
        keys["staleness.max_lag"] = bound + 1  # it is counted there from before the step that the batch waits for
    named = [name for flag, name in (("--use-tis", "tis"), ("--use-opsm", "opsm")) if flag in flags]
    if (path := flags.get("--custom-tis-function-path")) and path[0].endswith(".icepop_function"):
        named = ["icepop" if name == "tis" else name for name in named]
    if "--use-rollout-logprobs" in flags:
        return keys | {"algorithm.correction": ["behaviour", *named]}, {}
    if "--keep-old-actor" in flags:
        return keys | ({"algorithm.correction": named} if named else {}), {}
    if not named and is_async:
        named = ["uncorrected"]
    return keys | ({"algorithm.correction": named} if named else {}) | {"algorithm.old_log_probs": "recompute"}, {}


def rewards(flags: Flags, is_async: bool) -> Said:
    """Who grades."""
    if flags.get("--loss-type") == ["sft_loss"]:
        return {}, {}
    if "--custom-rm-path" in flags or "--rm-type" not in flags:
        return {"reward.rm_type": MY_REWARD}, {}
    name = " ".join(flags["--rm-type"])
    if name.removeprefix(BOXED) in BUILT_IN:
        return {"reward.rm_type": name}, {}
    return {"reward.rm_type": MY_REWARD}, {
        "--rm-type": f'there is no "{name}" here: a function of yours in reward.rm_type'
    }


def learning(flags: Flags, is_async: bool) -> Said:
    """Micro-batches, the learning rate's way, parallelism along the sequence."""
    keys, without = dict[str, Any](), dict[str, str]()
    tokens, context = _number(flags, "--max-tokens-per-gpu", None), _number(flags, "--context-parallel-size", 1)
    if tokens is not None and context is not None:
        keys["learner.max_tokens_per_micro_batch"] = tokens * context
    chunk = _number(flags, "--log-probs-chunk-size", None)
    if chunk is not None and chunk > 0:
        keys["learner.log_probs_chunk_size"] = chunk
    if "--sequence-parallel" in flags:
        if (_number(flags, "--tensor-model-parallel-size", 1) or 1) > 1:
            keys["learner.sequence_parallel"] = True
        else:
            without["--sequence-parallel"] = "it needs --tensor-model-parallel-size above 1"
    style = " ".join(flags.get("--lr-decay-style", ()))
    if style in ("linear", "cosine"):
        keys["learner.lr_decay_style"] = style
        if (steps := _number(flags, "--lr-decay-iters", _optimizer_steps(flags))) is not None:
            keys["learner.lr_decay_steps"] = steps
    elif style != "constant" and style:
        without["--lr-decay-style"] = f'"{style}" is none of constant, linear, cosine'
    return keys, without


def _optimizer_steps(flags: Flags) -> int | None:
    """Of the whole run: Megatron's --lr-decay-iters where it is not given."""
    rollouts, per_rollout = _number(flags, "--num-rollout", None), _number(flags, "--num-steps-per-rollout", None)
    sizes = [_number(flags, f"--{name}", 1) for name in ("rollout-batch-size", "n-samples-per-prompt")]
    samples = None if None in sizes else (sizes[0] or 1) * (sizes[1] or 1)
    batch = _number(flags, "--global-batch-size", None)
    if per_rollout is None:
        per_rollout = max(1, samples // batch) if samples and batch else 1
    return None if rollouts is None else rollouts * per_rollout


def evaluation(flags: Flags, is_async: bool) -> Said:
    """``--eval-prompt-data NAME PATH NAME PATH``."""
    words = [*flags.get("--eval-prompt-data", ())]
    if len(words) % 2:
        return {}, {"--eval-prompt-data": "expected a name and a path for each dataset"}
    more = {
        name: " ".join(flags[f"--eval-{name.replace('_', '-')}"])
        for name in ("input_key", "label_key")
        if f"--eval-{name.replace('_', '-')}" in flags
    }
    keys: dict[str, Any] = {}
    for name, path in zip(words[::2], words[1::2], strict=True):
        keys |= {f"eval.datasets.{name}.{key}": value for key, value in {"prompt_data": path, **more}.items()}
    return keys, {}


def others(flags: Flags, is_async: bool) -> Said:
    """Units and forms that differ."""
    keys: dict[str, Any] = {}
    if (size := _number(flags, "--update-weight-buffer-size", None)) is not None:
        keys["weights.bucket_mb"] = max(1, size >> 20)
    if (samples := _number(flags, "--async-max-concurrent-samples", None)) is not None:
        keys |= {"rollout.num_workers": 1, "rollout.max_samples_in_flight": samples}
    if teachers := flags.get("--opd-teacher-urls"):
        named = [word.partition("=") for word in teachers]
        keys["rollout.opd_teacher_urls"] = {name: url for name, equals, url in named if equals}
    return keys, {}


PARTS: tuple[Callable[[Flags, bool], Said], ...] = (machines, staleness, rewards, learning, evaluation, others)
# those that the parts look at, beside others of the table
LOOKED_AT = frozenset(
    f"--{name}"
    for name in [
        "actor-num-nodes",
        "actor-num-gpus-per-node",
        "rollout-num-gpus",
        "num-gpus-per-node",
        "max-weight-staleness",
        "use-tis",
        "use-opsm",
        "use-rollout-logprobs",
        "rm-type",
        "max-tokens-per-gpu",
        "log-probs-chunk-size",
        "sequence-parallel",
        "lr-decay-style",
        "lr-decay-iters",
        "eval-prompt-data",
        "eval-input-key",
        "eval-label-key",
        "update-weight-buffer-size",
        "async-max-concurrent-samples",
        "opd-teacher-urls",
        "rollout-external-engine-addrs",
    ]
)


def is_looked_at(flag: str) -> bool:
    """Whether a part takes it."""
    return flag in LOOKED_AT or _is_of_server(flag)


def _number(flags: Flags, flag: str, default: int | None) -> int | None:
    """The whole number that the flag has; None: it has none, or only the running script knows it."""
    if flag not in flags:
        return default
    word = " ".join(flags[flag])
    return int(word) if UNKNOWN not in word and word.lstrip("-").isdecimal() else None
