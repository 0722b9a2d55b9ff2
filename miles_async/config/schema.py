"""The whole configuration of a run: one typed structure, read from TOML.

Every key is here with its default and its unit; names follow Miles' flags where the concept is the same. ``"none"`` unsets
a key that may be None. Loading, overriding and error messages are in ``toml.py``; checks across sections are in ``rules.py``.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

PositiveInt = Annotated[int, Meta(ge=1)]
CountInt = Annotated[int, Meta(ge=0)]
PositiveFloat = Annotated[float, Meta(gt=0)]
CountFloat = Annotated[float, Meta(ge=0)]
Share = Annotated[float, Meta(ge=0, le=1)]


class Section(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """Base of the sections: unknown keys are refused."""


class Run(Section, frozen=True):
    num_steps: PositiveInt = 100  # batches of the whole run: each makes a weight version
    seed: CountInt = 1  # model made locally, sampling, shuffling
    target_reward: float | None = None  # stop when the mean reward of the last 5 steps reaches this
    # nothing moved for so long (no step, group, token or version): say who waits for whom and whose fault it is
    watchdog_s: PositiveFloat = 120.0
    watchdog_exit: bool = False  # and end the run as failed, with that as its reason
    # an actor silent for so long, while Redis answers, is killed and replaced
    heartbeat_timeout_s: PositiveFloat = 60.0
    stop_timeout_s: PositiveFloat = 30.0  # an orderly stop takes no longer
    # an engine or a worker that `miles-async scale` takes out may finish what it has in flight for so long; then the others
    # get it
    drain_timeout_s: PositiveFloat = 300.0
    # of one actor (the learner's ranks count as one) in restart_window_s; then the run fails
    max_restarts: CountInt = 5
    restart_window_s: PositiveFloat = 600.0
    restart_backoff_s: PositiveFloat = 0.2  # before the first restart; doubles with each further one in the window


class Model(Section, frozen=True):
    hf_checkpoint: str  # a Hugging Face directory, or "builtin:NAME" for a tiny one made from run.seed
    # what the engine and the learner compute in; fp32 weights are kept by the optimizer
    dtype: Literal["float32", "bfloat16"] = "float32"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    model_provider: str | None = None  # a path to a function (path, dtype, device) that gives the learner's bridge


class Data(Section, frozen=True):
    # a JSONL or Parquet file, or "builtin:NAME", or a list of them; "path@[a:b]" takes a slice of its rows
    prompt_data: str | list[str] = []
    # how often each of them has its turn, in proportion; None: by its prompts, so that all are seen equally often
    prompt_weights: list[PositiveFloat] | None = None
    data_source: str = "files"  # or a path to ``def source(config, tokenizer) -> list[Prompt]``
    input_key: str = "input"
    label_key: str | None = "label"
    metadata_key: str | None = "metadata"
    tool_key: str | None = None  # of the tools that the chat template is given; they go into the metadata, too
    apply_chat_template: bool = False
    apply_chat_template_kwargs: dict[str, Any] = {}  # further variables of the template, such as enable_thinking
    chat_template_path: str | None = None  # a jinja file in the place of the checkpoint's template
    rollout_shuffle: bool = True
    rollout_max_prompt_len: PositiveInt | None = None  # tokens; longer prompts are left out at load


class Rollout(Section, frozen=True):
    rollout_batch_size: PositiveInt = 32  # prompt groups of one batch, from which one weight version is made
    # prompt groups that are begun for one step, at least rollout_batch_size: the first ones that are ready are trained, the
    # surplus is dropped; None: no more than are trained
    over_sampling_batch_size: PositiveInt | None = None
    n_samples_per_prompt: PositiveInt = 8
    rollout_max_response_len: PositiveInt = 128  # tokens
    rollout_temperature: PositiveFloat = 1.0
    rollout_top_p: Annotated[float, Meta(gt=0, le=1)] = 1.0
    rollout_top_k: int = -1
    rollout_stop: list[str] = []
    rollout_stop_token_ids: list[int] = []
    num_workers: PositiveInt = 2  # rollout worker processes
    max_groups_in_flight: PositiveInt = 64  # for each worker, where max_samples_in_flight is unset
    # for each worker: samples whose tokens have not ended; None: max_groups_in_flight * n_samples_per_prompt
    max_samples_in_flight: PositiveInt | None = None
    # of "single_turn": each sample is a request of its own, whose slot frees when it ends: more requests, for long responses;
    # false: a group is one request, whose slots free when its last sample ends
    request_per_sample: bool = False
    # the limit follows the engines' load below that: fewer where requests queue or caches are full, more where there is room
    adaptive_in_flight: bool = False
    request_timeout_s: PositiveFloat = 600.0
    lease_s: PositiveFloat = 30.0  # a ticket of a worker silent for so long goes to another one
    max_attempts: PositiveInt = 3  # at one group; then it is dropped, and on record as a dead letter with its causes
    # Names of built-ins (docs/customization.md has the lists), or dotted paths to functions of the user.
    rollout_function: str = "single_turn"  # makes a whole group; any other generate_function is called by "per_sample"
    generate_function: str = "single_turn"  # makes one rollout of a group
    max_turns: PositiveInt = 16  # of the policy in one rollout of "multi_turn"
    tool_call_parser: str = "qwen"
    execute_tool_function: str | None = None
    tool_timeout_s: PositiveFloat = 30.0  # for each call of a tool
    agent_function: str | None = None  # of "agent": speaks to an OpenAI-compatible endpoint, as any such program does
    agent_timeout_s: PositiveFloat = 600.0  # for each rollout of it
    # a sample that an engine aborted goes on from the tokens it has; false: it is generated anew
    partial_rollout: bool = True
    mask_offpolicy_in_partial_rollout: bool = False  # then only what follows the last abort is trained on
    opd_teacher_urls: dict[str, str] = {}  # of algorithm.use_opd: by metadata["opd_teacher"], else "default"
    dynamic_sampling_filter: str | None = None  # whether a scored group is of use; another one is begun for it if not
    sample_filter: str | None = None  # which samples of a group are trained on; the others count as its baseline only
    buffer_filter: str | None = None  # which ready groups are dropped before the learner chooses a batch

    @property
    def generates(self) -> bool:
        """Whether engines are asked for anything: what supervised fine-tuning trains on comes with the prompts."""
        return self.rollout_function != "sft"

    @property
    def samples_in_flight(self) -> int:
        """What a worker may have in flight at most."""
        return self.max_samples_in_flight or self.max_groups_in_flight * self.n_samples_per_prompt

    @property
    def surplus(self) -> int:
        """Prompt groups that are begun for one step beyond those that are trained."""
        return (self.over_sampling_batch_size or self.rollout_batch_size) - self.rollout_batch_size


class Reward(Section, frozen=True):
    rm_type: str = "graded_match"  # a built-in name, or a dotted path to ``async def reward(sample) -> float``
    rm_types: list[str] = []  # functions that metadata["rm_type"] of a prompt may name, beside the built-ins
    rm_weights: dict[str, float] = {}  # of rm_type = "weighted_sum": by the names of its rewards
    reward_key: str | None = None  # which entry of a dict of numbers is the reward; a plain number needs none
    group_rm: bool = False  # functions of the user take the list of a group's samples, and return a list
    rm_url: str | None = None  # of rm_type = "remote_rm"; "env:NAME" takes it from the environment
    timeout_s: PositiveFloat = 10.0  # for each call; past it the sample is left out of its group
    num_processes: PositiveInt = 1  # grading processes of each worker, for graders that hold the CPU
    reward_post_process: str | None = (
        None  # the rewards of a group as the learner sees them; the raw ones stay on record
    )


class Staleness(Section, frozen=True):
    policy: str = "fifo"  # or "drop", or a path to a function (staleness) that gives a policy
    max_lag: CountInt = 2  # versions; 0 is the synchronous loop


class Algorithm(Section, frozen=True):
    # Names of built-ins (docs/customization.md has the lists), or dotted paths to functions of the user.
    loss_type: Literal["policy_loss", "sft_loss"] = "policy_loss"  # sft_loss: likelihood of the tokens, no rewards
    advantage_estimator: str = "grpo"
    policy_loss: str | None = None  # None: gspo with that estimator, else ppo_clip
    # What an asynchronous run does about tokens of another policy than the learner's: one name or several. "behaviour": the
    # engine's log-probs are the loss's denominator; "uncorrected": nothing. A run with staleness.max_lag > 0 has to say.
    correction: str | list[str] | None = None
    # The PPO denominator: the engine's log-probs, the learner's own before the batch, or between the two by lag (A-3PO).
    # None: what the correction needs, and "rollout" without one.
    old_log_probs: Literal["rollout", "recompute", "loglinear"] | None = None
    # of "recompute": the learner's log-probs are those of the version that sampled the token, whose weights it keeps: a copy in
    # host memory for each version of staleness.max_lag
    keep_old_actor: bool = False
    grpo_std_normalization: bool = True
    # of "grpo", "gspo" and "reinforce_plus_plus_baseline": the reward itself, not compared with its group's
    disable_rewards_normalization: bool = False
    normalize_advantages: bool | None = None  # whiten over the whole batch; None: as the estimator needs
    gamma: Share = 1.0
    lambd: Share = 1.0
    eps_clip: PositiveFloat = 0.2
    eps_clip_high: PositiveFloat | None = None  # None: eps_clip
    eps_clip_c: Annotated[float, Meta(gt=1)] | None = None  # dual clip
    loss_aggregation: str = "token"  # mean over tokens; "sample": of per-sample means; "constant": sums / loss_constant
    loss_constant: PositiveFloat | None = None  # tokens; None: rollout.rollout_max_response_len
    entropy_coef: CountFloat = 0.0
    kl_loss_type: Literal["k1", "k2", "k3", "low_var_kl"] = "k1"
    use_kl_loss: bool = (
        False  # KL to the reference model as a part of the loss; with kl_loss_coef = 0 it is only measured
    )
    kl_loss_coef: CountFloat = 0.0
    use_unbiased_kl: bool = False  # times policy / behaviour, whatever old_log_probs is
    kl_coef: CountFloat = 0.0  # KL to the reference model in the reward
    ref_load: str | None = None  # the reference: a Hugging Face directory; None: model.hf_checkpoint
    ref_update_interval: PositiveInt | None = None  # versions after which the policy becomes the reference; None: never
    use_opd: bool = False  # on-policy distillation: advantages - opd_kl_coef (log-prob - teacher's)
    opd_kl_coef: CountFloat = 1.0
    # distil by the teacher's so many likeliest tokens at each position (k * 8 bytes for each token on the bus); 0: by the
    # sampled token
    opd_log_prob_top_k: CountInt = 0
    # of them all, or of those that are the learner's k likeliest, too
    opd_top_k_strategy: Literal["only-teacher", "intersection"] = "only-teacher"
    opd_top_k_weight: Literal["student_p", "teacher_p", "none"] = "student_p"  # normalised over the set
    tis_clip: PositiveFloat = 2.0  # of tis, icepop and span_tis
    tis_clip_low: CountFloat = 0.0
    mis_level: Literal["token", "sequence", "geometric"] = "token"
    mis_mode: Literal["truncate", "clip", "mask"] = "truncate"
    mis_upper: PositiveFloat = 2.0
    mis_lower: PositiveFloat | None = 0.5  # None: 1 / mis_upper
    mis_batch_normalize: bool = False  # weights with a mean of 1 over the batch
    rs_level: Literal["token", "sequence", "geometric"] = "geometric"
    rs_upper: PositiveFloat = 1.001
    rs_lower: PositiveFloat | None = None  # None: 1 / rs_upper
    rs_veto_threshold: Annotated[float, Meta(gt=0, lt=1)] = 1e-4
    opsm_delta: CountFloat = 1e-4
    m2po_threshold: PositiveFloat = 0.04
    dppo_tv_threshold: CountFloat = 0.2
    dppo_kl_coef: CountFloat = 1e-3
    # warn when the learner's and the engines' log-probs of the same version's tokens differ by more than this, on average
    mismatch_warn: PositiveFloat = 0.05

    @property
    def upper_clip(self) -> float:
        """``eps_clip_high``, or what is meant where it is unset."""
        return self.eps_clip if self.eps_clip_high is None else self.eps_clip_high


class Critic(Section, frozen=True):
    """Of algorithm.advantage_estimator = "ppo", or of another one that is marked with_critic; what is not here it shares with
    [learner]."""

    critic_load: str | None = None  # what its weights begin with: a Hugging Face directory; None: model.hf_checkpoint
    critic_save: bool = (
        False  # at the end they are written to hf_critic/ in the run directory, as critic_load reads them
    )
    critic_lr: PositiveFloat | None = None  # None: learner.lr
    critic_lr_warmup_steps: CountInt = 0  # optimizer steps
    value_clip: PositiveFloat = 0.2  # how far a value may move from what it was before the batch and still count
    num_critic_only_steps: CountInt = 0  # the first batches of a run, in which the policy's weights stay as they are


class Learner(Section, frozen=True):
    train_backend: str = (
        "megatron"  # or a dotted path to one of the user's; docs/customization.md has what it is made with
    )
    num_ranks: PositiveInt = 1  # data-parallel
    # optimizer steps of one pass over a batch, or the samples of one such step: rollout_batch_size * n_samples_per_prompt =
    # global_batch_size * num_steps_per_rollout; None: the other key says it, and without both a pass is one step
    num_steps_per_rollout: PositiveInt | None = None
    global_batch_size: PositiveInt | None = None
    ppo_epochs: PositiveInt = 1  # passes over a batch
    # optimizer steps in a row whose gradient is inf or nan: they are skipped; one more ends the run
    max_skipped_steps: CountInt = 5
    lr: PositiveFloat = 1e-6
    min_lr: CountFloat = 0.0
    lr_warmup_steps: CountInt = 0  # optimizer steps
    lr_decay_steps: PositiveInt | None = None  # optimizer steps; None: constant after the warm-up
    lr_decay_style: Literal["linear", "cosine"] = "linear"
    adam_beta1: Share = 0.9
    adam_beta2: Share = 0.98
    adam_eps: PositiveFloat = 1e-8
    weight_decay: CountFloat = 0.0
    clip_grad: CountFloat = 1.0
    max_tokens_per_micro_batch: PositiveInt = 8192  # padded tokens
    use_distributed_optimizer: bool = False
    grad_reduce_timeout_s: PositiveFloat = 300.0
    # recorded groups that cannot be trained are taken out of their step; with more of them than this the run ends
    max_quarantined_groups: CountInt = 16
    # dotted paths to functions of the user; docs/customization.md has their signatures
    batch_function: str | None = None
    before_log_prob_function: str | None = None
    before_train_step_function: str | None = None
    log_function: str | None = None


class Checkpoint(Section, frozen=True):
    save_interval: PositiveInt = 50  # steps
    # the newest of them; when it turns out to be damaged, a run goes on from the one before it, which 1 does not keep
    keep: PositiveInt = 2
    save_hf: bool = True  # a Hugging Face export at the end
    post_save_function: str | None = None  # a path to a function (version, directory)


class Engine(Section, frozen=True):
    kind: str = "embedded"  # or "sglang", "external", or a path to a class of yours (engines/kinds/base.py)
    num_engines: PositiveInt = 2
    urls: list[str] = []  # of engine.kind = "external"
    max_running_requests: PositiveInt = 256
    context_length: PositiveInt | None = None  # tokens; None: the model's; say so where external servers have less
    tp_size: PositiveInt = 1  # tensor-parallel ranks of one sglang server; Miles: rollout_num_gpus_per_engine
    args: list[str] = []  # further flags of the sglang server
    start_timeout_s: PositiveFloat = 180.0
    # a server that shows no sign of life for so long is hung: one of engine.kind = "sglang" is killed and replaced, one of
    # "external" is on record; None: twice weights.timeout_s, since a server stands still while it takes weights
    hang_timeout_s: PositiveFloat | None = None
    api_key: str | None = None  # what engines ask for; "env:NAME" takes it from the environment


class Weights(Section, frozen=True):
    # "collective", "disk", "disk_delta" (what has changed goes through a directory, for engines on machines that no collective
    # reaches), or a path to a class of yours (weights/transports/base.py)
    transport: str = "collective"
    backend: Literal["auto", "gloo", "nccl"] = "auto"
    bucket_mb: PositiveInt = 256  # of one broadcast; over gloo an engine keeps host memory for two of them
    pause_mode: Literal["retract", "in_place", "abort"] = "retract"
    update_waves: PositiveInt = 2  # engines are updated in so many waves, so that some always generate
    update_interval: PositiveInt = 1  # steps between two updates
    timeout_s: PositiveFloat = 60.0  # for one engine and version
    # versions between two comparisons of the engines' checksums; one that differs is out until a full update has made it
    # right; None: never. A check holds an engine up for as long as it takes to hash its weights.
    check_interval: PositiveInt | None = None
    export_function: str | None = None  # what the learner's tensors go through on their way into a snapshot
    snapshot_dir: str | None = None  # None: memory (/dev/shm) where it has room, else the run directory
    # of "disk_delta": a directory that the learner's machine and the engines' share; None: the run directory has it
    delta_dir: str | None = None
    mirror_dir: str | None = None  # and where, on its own machine, an engine's full copy lies; None: as snapshot_dir


class Router(Section, frozen=True):
    kind: Literal["builtin", "sglang"] = "builtin"  # "sglang": the package sglang-router as a child process
    args: list[str] = []  # further flags of sglang-router
    host: str = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535)] = 0  # 0: any free one
    health_interval_s: PositiveFloat = 5.0
    health_failures: PositiveInt = 3
    # consistent_hash: requests with the same x-routing-key go to the same engine, as far as its load allows
    policy: Literal["least_inflight", "power_of_two", "consistent_hash"] = "least_inflight"
    max_retries: CountInt = 3  # at other engines; those where nobody listens any more do not count
    # an engine that fails so many requests in a row (no answer, a torn one, 5xx) gets none for a while
    breaker_failures: PositiveInt = 5
    breaker_open_s: CountFloat = 10.0  # then one request shows whether it serves again
    # each so many seconds the router looks at what the engines do: tokens, versions
    suspect_interval_s: PositiveFloat = 2.0
    # one that gives each of its requests fewer tokens a second than this share of the others' median, in slow_looks looks in
    # a row, gets no requests until it is faster; 0: none is too slow
    slow_share: Share = 0.2
    slow_looks: PositiveInt = 5
    # one that gives nothing for what it has in flight for so long, while others do, gets none until it answers; below
    # run.watchdog_s, or that speaks first
    hung_s: PositiveFloat = 30.0
    max_concurrency: PositiveInt | None = None  # requests in flight and waiting; further ones get 429 and Retry-After
    api_key: str | None = None  # what the router asks clients for; "env:NAME" takes it from the environment
    # what it asks for where engines are changed (workers, weights, pauses, caches, all requests); None: only processes of the
    # run may, which find a key of their own on the bus
    admin_key: str | None = None
    # where engines that are not the run's may be added by hand: "HOST:PORT", each exactly or "*" (in a host: one part between
    # dots), or "NETWORK/BITS:PORT"; the run's own need no such line
    allowed_engines: list[str] = []
    max_body_mb: PositiveInt = 64  # of one request


class Bus(Section, frozen=True):
    url: str | None = None  # None: a server of our own in the run directory; "env:NAME": from the environment
    appendfsync: Literal["everysec", "always", "no"] = "everysec"  # a power cut loses a second, nothing, or more
    maxmemory_mb: PositiveInt | None = None  # of our own server; from 80 % of it on nothing new is dealt


class Monitor(Section, frozen=True):
    tensorboard: bool = True
    live: Literal["auto", "on", "off"] = "auto"
    heartbeat_s: PositiveFloat = 1.0


class EvalDataset(Section, frozen=True):
    """``[eval.datasets.NAME]``. What is unset is as in training: from ``[data]``, ``[reward]``, ``[eval]``, ``[rollout]``."""

    prompt_data: str  # a JSONL or Parquet file, or "builtin:NAME"; "path@[a:b]" takes a slice of its rows
    input_key: str | None = None
    label_key: str | None = None  # "": the prompts have no label
    metadata_key: str | None = None
    apply_chat_template: bool | None = None
    rm_type: str | None = None
    n_samples_per_eval_prompt: PositiveInt | None = None
    temperature: CountFloat | None = None  # 0: the likeliest token
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    top_k: int | None = None
    max_response_len: PositiveInt | None = None  # tokens
    stop: list[str] | None = None
    stop_token_ids: list[int] | None = None


class Eval(Section, frozen=True):
    eval_interval: PositiveInt | None = None  # versions between two points; None: no evaluation
    skip_eval_before_train: bool = False  # no point of version 0
    datasets: dict[str, EvalDataset] = {}
    # of the datasets that do not say otherwise; None: as in [rollout]
    n_samples_per_eval_prompt: PositiveInt = 1
    eval_temperature: CountFloat | None = None
    eval_top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    eval_top_k: int | None = None
    eval_max_response_len: PositiveInt | None = None  # tokens
    eval_max_prompt_len: PositiveInt | None = None  # tokens; longer prompts are left out at load; None: no limit
    # engines that no training request reaches, of engine.kind, or somebody's by URL (they must be able to read snapshots)
    num_engines: PositiveInt = 1
    urls: list[str] = []
    engine_args: list[str] | None = None  # of their sglang servers; None: engine.args
    max_in_flight: PositiveInt = 64  # prompts being generated at once, over all of them
    # of weights under evaluation or waiting for it; when one more is due, the oldest that waits is skipped
    keep_snapshots: PositiveInt = 2
    final_timeout_s: CountFloat = 600.0  # after the last step a run waits so long for the points that are due
    # dotted paths: async (dataset, generate, grade) -> metrics of one dataset; (version, results) -> None after a point
    eval_function: str | None = None
    eval_log_function: str | None = None


class Topology(Section, frozen=True):
    """Dotted paths of the actor classes, so that any role can be replaced without a patch."""

    dealer: str = "actors.dealer.Dealer"
    rollout: str = "actors.rollout.RolloutWorker"
    learner: str = "actors.learner.Learner"
    broadcaster: str = "actors.broadcaster.Broadcaster"
    engine: str = "actors.engine.EngineHost"
    router: str = "actors.router.Router"
    evaluator: str = "actors.evaluator.Evaluator"
    eval_engine: str = "actors.eval_engine.EvalEngine"


class RunConfig(Section, frozen=True):
    model: Model
    data: Data
    run: Run = Run()
    rollout: Rollout = Rollout()
    reward: Reward = Reward()
    staleness: Staleness = Staleness()
    algorithm: Algorithm = Algorithm()
    critic: Critic = Critic()
    learner: Learner = Learner()
    checkpoint: Checkpoint = Checkpoint()
    engine: Engine = Engine()
    weights: Weights = Weights()
    router: Router = Router()
    bus: Bus = Bus()
    monitor: Monitor = Monitor()
    eval: Eval = Eval()
    topology: Topology = Topology()


class ConfigError(ValueError):
    """One clear line about a key: which, its value, what is allowed."""


# what a run may say about tokens of another policy; those that weigh tokens need a denominator of the learner's own


def corrections(algorithm: Algorithm) -> tuple[str, ...]:
    """The corrections by name, in order."""
    named = algorithm.correction
    return () if named is None else (named,) if isinstance(named, str) else tuple(named)


def old_log_probs(algorithm: Algorithm) -> str:
    """The denominator that is meant where the key is unset."""
    if algorithm.old_log_probs is not None:
        return algorithm.old_log_probs
    if algorithm.keep_old_actor:
        return "recompute"
    named = corrections(algorithm)
    return "rollout" if not named or "behaviour" in named else "recompute"
