"""The whole configuration of a run: one typed structure, read from TOML.

Every key is here with its default and its unit; names follow Miles' flags where the concept is the same. Loading,
overriding and error messages are in ``config_load.py``; checks across sections are in ``RunConfig.check``.
"""

from __future__ import annotations

from typing import Annotated, Literal

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
    num_steps: PositiveInt = 100  # optimizer steps of the whole run
    seed: CountInt = 1  # model made locally, sampling, shuffling
    target_reward: float | None = None  # stop when the mean reward of the last 5 steps reaches this
    # nothing moved for so long (no step, group, token or version): say who waits for whom and whose fault it is
    watchdog_s: PositiveFloat = 120.0
    watchdog_exit: bool = False  # and end the run as failed, with that as its reason
    # an actor silent for so long, while Redis answers, is killed and replaced
    heartbeat_timeout_s: PositiveFloat = 60.0
    stop_timeout_s: PositiveFloat = 30.0  # an orderly stop takes no longer
    # of one actor (the learner's ranks count as one) in restart_window_s; then the run fails
    max_restarts: CountInt = 5
    restart_window_s: PositiveFloat = 600.0
    restart_backoff_s: PositiveFloat = 0.2  # before the first restart; doubles with each further one in the window


class Model(Section, frozen=True):
    hf_checkpoint: str  # a Hugging Face directory, or "builtin:NAME" for a tiny one made from run.seed
    # what the engine and the learner compute in; fp32 weights are kept by the optimizer
    dtype: Literal["float32", "bfloat16"] = "float32"
    device: Literal["auto", "cpu", "cuda"] = "auto"


class Data(Section, frozen=True):
    prompt_data: str  # JSONL file, or "builtin:NAME"
    input_key: str = "input"
    label_key: str | None = "label"
    metadata_key: str = "metadata"
    apply_chat_template: bool = False
    rollout_shuffle: bool = True
    rollout_max_prompt_len: PositiveInt | None = None  # tokens; longer prompts are left out at load


class Rollout(Section, frozen=True):
    rollout_batch_size: PositiveInt = 32  # prompt groups of one optimizer step
    n_samples_per_prompt: PositiveInt = 8
    rollout_max_response_len: PositiveInt = 128  # tokens
    rollout_temperature: PositiveFloat = 1.0
    rollout_top_p: Annotated[float, Meta(gt=0, le=1)] = 1.0
    rollout_top_k: int = -1
    rollout_stop: list[str] = []
    rollout_stop_token_ids: list[int] = []
    num_workers: PositiveInt = 2  # rollout worker processes
    max_groups_in_flight: PositiveInt = 64  # for each worker
    request_timeout_s: PositiveFloat = 600.0
    lease_s: PositiveFloat = 30.0  # a ticket of a worker silent for so long goes to another one
    max_attempts: PositiveInt = 3  # at one group; then it is dropped, and on record as a dead letter with its causes


class Reward(Section, frozen=True):
    rm_type: str = "graded_match"  # a built-in name, or a dotted path to ``async def reward(sample) -> float``
    timeout_s: PositiveFloat = 10.0  # for each call; past it this attempt at the group has failed
    num_processes: PositiveInt = 1  # grading processes of each worker, for graders that hold the CPU


class Staleness(Section, frozen=True):
    policy: Literal["fifo", "drop"] = "fifo"
    max_lag: CountInt = 2  # versions; 0 is the synchronous loop


class Algorithm(Section, frozen=True):
    advantage_estimator: Literal["grpo"] = "grpo"
    grpo_std_normalization: bool = True
    eps_clip: PositiveFloat = 0.2
    eps_clip_high: PositiveFloat | None = None  # None: eps_clip
    entropy_coef: CountFloat = 0.0
    # the PPO denominator: the engine's log-probs, or the learner's own before the step (then TIS corrects)
    old_log_probs: Literal["rollout", "recompute"] = "rollout"
    use_tis: bool = False  # token-level truncated importance sampling, with old_log_probs = "recompute"
    tis_clip: PositiveFloat = 2.0
    tis_clip_low: CountFloat = 0.0
    loss_aggregation: Literal["token", "sample"] = "token"  # mean over all tokens, or mean of per-sample means


class Learner(Section, frozen=True):
    num_ranks: PositiveInt = 1  # data-parallel
    lr: PositiveFloat = 1e-6
    min_lr: CountFloat = 0.0
    lr_warmup_steps: CountInt = 0
    lr_decay_steps: PositiveInt | None = None  # None: constant after the warm-up
    lr_decay_style: Literal["linear", "cosine"] = "linear"
    adam_beta1: Share = 0.9
    adam_beta2: Share = 0.98
    adam_eps: PositiveFloat = 1e-8
    weight_decay: CountFloat = 0.0
    clip_grad: CountFloat = 1.0
    max_tokens_per_micro_batch: PositiveInt = 8192  # padded tokens
    use_distributed_optimizer: bool = False
    grad_reduce_timeout_s: PositiveFloat = 300.0


class Checkpoint(Section, frozen=True):
    save_interval: PositiveInt = 50  # steps
    keep: PositiveInt = 2
    save_hf: bool = True  # a Hugging Face export at the end


class Engine(Section, frozen=True):
    kind: Literal["embedded", "sglang", "external"] = "embedded"
    num_engines: PositiveInt = 2
    urls: list[str] = []  # of engine.kind = "external"
    max_running_requests: PositiveInt = 256
    context_length: PositiveInt | None = None  # None: the model's
    args: list[str] = []  # further flags of the sglang server
    start_timeout_s: PositiveFloat = 180.0
    api_key: str | None = None  # what engines ask for; "env:NAME" takes it from the environment


class Weights(Section, frozen=True):
    transport: Literal["collective", "disk"] = "collective"
    backend: Literal["auto", "gloo", "nccl"] = "auto"
    bucket_mb: PositiveInt = 256
    pause_mode: Literal["retract", "in_place", "abort"] = "retract"
    update_waves: PositiveInt = 2  # engines are updated in so many waves, so that some always generate
    update_interval: PositiveInt = 1  # steps between two updates
    timeout_s: PositiveFloat = 60.0  # for one engine and version
    snapshot_dir: str | None = None  # None: memory (/dev/shm) where it has room, else the run directory


class Router(Section, frozen=True):
    host: str = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535)] = 0  # 0: any free one
    health_interval_s: PositiveFloat = 5.0
    health_failures: PositiveInt = 3
    max_retries: CountInt = 3
    api_key: str | None = None  # what the router asks for; "env:NAME" takes it from the environment
    max_body_mb: PositiveInt = 64  # of one request


class Bus(Section, frozen=True):
    url: str | None = None  # None: a server of our own in the run directory; "env:NAME": from the environment
    appendfsync: Literal["everysec", "always", "no"] = "everysec"  # a power cut loses a second, nothing, or more
    maxmemory_mb: PositiveInt | None = None  # of our own server; from 80 % of it on nothing new is dealt


class Monitor(Section, frozen=True):
    tensorboard: bool = True
    live: Literal["auto", "on", "off"] = "auto"
    heartbeat_s: PositiveFloat = 1.0


class Topology(Section, frozen=True):
    """Dotted paths of the actor classes, so that any role can be replaced without a patch."""

    dealer: str = "actors.dealer.Dealer"
    rollout: str = "actors.rollout.RolloutWorker"
    learner: str = "actors.learner.Learner"
    broadcaster: str = "actors.broadcaster.Broadcaster"
    engine: str = "actors.engine.EngineHost"
    router: str = "actors.router.Router"


class RunConfig(Section, frozen=True):
    model: Model
    data: Data
    run: Run = Run()
    rollout: Rollout = Rollout()
    reward: Reward = Reward()
    staleness: Staleness = Staleness()
    algorithm: Algorithm = Algorithm()
    learner: Learner = Learner()
    checkpoint: Checkpoint = Checkpoint()
    engine: Engine = Engine()
    weights: Weights = Weights()
    router: Router = Router()
    bus: Bus = Bus()
    monitor: Monitor = Monitor()
    topology: Topology = Topology()

    def check(self) -> None:
        """Refuse what no single key can show to be wrong. Raises ConfigError naming the key, the value, what is allowed."""
        if self.rollout.rollout_batch_size % self.learner.num_ranks:
            raise ConfigError(
                f"rollout.rollout_batch_size = {self.rollout.rollout_batch_size} must be a multiple of "
                f"learner.num_ranks = {self.learner.num_ranks}"
            )
        if self.algorithm.use_tis and self.algorithm.old_log_probs == "rollout":
            raise ConfigError(
                'algorithm.use_tis = true needs algorithm.old_log_probs = "recompute": with "rollout" the behaviour '
                "policy is the denominator already"
            )
        if self.engine.kind == "external" and not self.engine.urls:
            raise ConfigError('engine.urls is empty: engine.kind = "external" needs at least one URL')
        if self.weights.update_interval > self.staleness.max_lag + 1:
            raise ConfigError(
                f"weights.update_interval = {self.weights.update_interval} can never meet staleness.max_lag = "
                f"{self.staleness.max_lag}: at most {self.staleness.max_lag + 1}"
            )


class ConfigError(ValueError):
    """One clear line about a key: which, its value, what is allowed."""
