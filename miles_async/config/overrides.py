"""What :func:`miles_async.launch` and :func:`miles_async.configuration` take, typed, so that an editor completes it.

Promises: every key with its type and what it is; at run time nothing looks at it. It is made from ``config/schema/`` by
``make docs``: what a key is stands there.
"""

from __future__ import annotations

from typing import Any, Literal, TypedDict


class ModelKeys(TypedDict, total=False):
    hf_checkpoint: str
    """a Hugging Face directory, or "builtin:NAME" for a tiny one made from run.seed."""
    dtype: Literal["float32", "bfloat16"]
    """what the engine and the learner compute in; fp32 weights are kept by the optimizer."""
    device: Literal["auto", "cpu", "cuda"]
    """where the engine and the learner compute; "auto": on a GPU where there is one."""
    model_provider: str | None
    """a path to a function (path, dtype, device) that gives the learner's bridge."""
    parity_check: bool
    """before the first launch of a checkpoint its log-probs in the learner are compared with transformers'."""


class DataKeys(TypedDict, total=False):
    prompt_data: str | list[str]
    """a JSONL or Parquet file, or "builtin:NAME", or a list of them; "path@[a:b]" takes a slice of its rows."""
    prompt_weights: list[float] | None
    """how often each of them has its turn, in proportion; None: by its prompts, so that all are seen equally often."""
    data_source: str
    """"files", or a path to ``def source(config, tokenizer) -> list[Prompt]``."""
    input_key: str
    """the field of a row that is the prompt: a text, or a chat's messages."""
    label_key: str | None
    """the field that the reward compares with."""
    metadata_key: str | None
    """the field with a table that reward functions and rollouts get."""
    tool_key: str | None
    """the field with the tools that the chat template is given; they go into the metadata, too."""
    apply_chat_template: bool
    """prompts are chats, which go through the chat template."""
    apply_chat_template_kwargs: dict[str, Any]
    """further variables of the template, such as enable_thinking."""
    chat_template_path: str | None
    """a jinja file in the place of the checkpoint's template."""
    rollout_shuffle: bool
    """the order of the prompts is drawn anew in each epoch."""
    rollout_max_prompt_len: int | None
    """tokens; longer prompts are left out at load."""


class RunKeys(TypedDict, total=False):
    num_steps: int
    """batches of the whole run: each makes a weight version."""
    seed: int
    """of a model made locally, sampling, shuffling."""
    target_reward: float | None
    """stop when the mean reward of the last 5 steps reaches this."""
    watchdog_s: float
    """nothing moved for so long (no step, group, token or version): say who waits for whom and whose fault it is."""
    watchdog_exit: bool
    """end the run then as failed, with that as its reason."""
    heartbeat_timeout_s: float
    """an actor silent for so long, while Redis answers, is killed and replaced."""
    bus_lease_s: float
    """an actor that has not reached the bus for so long ends itself: its machine may be cut off, and it replaced
    elsewhere."""
    stop_timeout_s: float
    """an orderly stop takes no longer."""
    drain_timeout_s: float
    """an engine or a worker that `miles-async scale` takes out may finish what it has in flight for so long; then the
    others get it."""
    max_restarts: int
    """restarts of one actor (the learner's ranks count as one) in restart_window_s; with one more the run fails."""
    restart_window_s: float
    """in which restarts are counted."""
    restart_backoff_s: float
    """pause before the first restart; doubles with each further one in the window."""


class RolloutKeys(TypedDict, total=False):
    """Functions are named as built-ins (docs/customization.md has the lists), or by paths to functions of the user."""

    rollout_batch_size: int
    """prompt groups of one batch, from which one weight version is made."""
    over_sampling_batch_size: int | None
    """prompt groups that are begun for one step, at least rollout_batch_size: the first ones that are ready are
    trained, the surplus is dropped; None: no more than are trained."""
    n_samples_per_prompt: int
    """responses of a prompt, which make a group."""
    rollout_max_response_len: int
    """tokens of one response."""
    rollout_temperature: float
    """of sampling, and of the log-probs that are trained on."""
    rollout_top_p: float
    """the likeliest tokens that are sampled from, by the sum of their probabilities."""
    rollout_top_k: int
    """the likeliest tokens that are sampled from, by number; -1: all."""
    rollout_stop: list[str]
    """texts that end a response."""
    rollout_stop_token_ids: list[int]
    """tokens that end a response."""
    num_workers: int
    """rollout worker processes."""
    max_groups_in_flight: int
    """for each worker, where max_samples_in_flight is unset."""
    max_samples_in_flight: int | None
    """for each worker: samples whose tokens have not ended; None: max_groups_in_flight * n_samples_per_prompt."""
    request_per_sample: bool
    """of "single_turn": each sample is a request of its own, whose slot frees when it ends: more requests, for long
    responses; false: a group is one request, whose slots free when its last sample ends."""
    adaptive_in_flight: bool
    """the limit follows the engines' load below that: fewer where requests queue or caches are full, more where there
    is room."""
    request_timeout_s: float
    """of one request to an engine, with its repetitions."""
    lease_s: float
    """a ticket of a worker silent for so long goes to another one."""
    max_attempts: int
    """at one group; then it is dropped, and on record as a dead letter with its causes."""
    rollout_function: str
    """makes a whole group; any other generate_function is called by "per_sample"."""
    generate_function: str
    """makes one rollout of a group."""
    max_turns: int
    """of the policy in one rollout of "multi_turn"."""
    tool_call_parser: str
    """how a tool call is read from a response of "multi_turn"."""
    execute_tool_function: str | None
    """calls a tool of "multi_turn"."""
    tool_timeout_s: float
    """deadline for each call of a tool."""
    agent_function: str | None
    """of "agent": speaks to an OpenAI-compatible endpoint, as any such program does."""
    agent_timeout_s: float
    """deadline for each rollout of it."""
    routing_replay: bool
    """of a mixture: the experts that engines chose for each token come with it, and the learner takes them, too."""
    partial_rollout: bool
    """a sample that an engine aborted goes on from the tokens it has; false: it is generated anew."""
    mask_offpolicy_in_partial_rollout: bool
    """only what follows the last abort is trained on."""
    opd_teacher_urls: dict[str, str]
    """of algorithm.use_opd: by metadata["opd_teacher"], else "default"."""
    dynamic_sampling_filter: str | None
    """whether a scored group is of use; another one is begun for it if not."""
    sample_filter: str | None
    """which samples of a group are trained on; the others count as its baseline only."""
    buffer_filter: str | None
    """which ready groups are dropped before the learner chooses a batch."""


class RewardKeys(TypedDict, total=False):
    rm_type: str
    """a built-in name, or a path to a function (sample) that gives a number."""
    rm_types: list[str]
    """functions that metadata["rm_type"] of a prompt may name, beside the built-ins."""
    rm_weights: dict[str, float]
    """of rm_type = "weighted_sum": by the names of its rewards."""
    reward_key: str | None
    """which entry of a dict of numbers is the reward; a plain number needs none."""
    group_rm: bool
    """functions of the user take the list of a group's samples, and return a list."""
    rm_url: str | None
    """of rm_type = "remote_rm"; "env:NAME" takes it from the environment."""
    timeout_s: float
    """for each call; past it the sample is left out of its group."""
    num_processes: int
    """grading processes of each worker, for graders that hold the CPU."""
    reward_post_process: str | None
    """the rewards of a group as the learner sees them; the raw ones stay on record."""


class StalenessKeys(TypedDict, total=False):
    policy: str
    """"fifo", "drop", "token_mask", "elastic", "count", "ready_first", "pace", "weight_fifo", "in_order", "windowed",
    "recycle", or a path to a function (staleness, rollout) that gives a policy."""
    max_lag: int
    """versions; 0 is the synchronous loop."""
    hard_bound: bool
    """refuse a policy that may train a token beyond max_lag; false: "count", "ready_first" and "pace" are allowed, too,
    which only aim at max_lag."""
    too_old: Literal["drop", "requeue", "mask"] | None
    """what becomes of a group that is too old: it is dropped; or its prompt is dealt again, before new ones
    ("requeue"); or what is within max_lag of it is trained ("mask"); None: what the policy does of itself."""
    capacity: int | None
    """of "windowed" and "recycle": groups that may be open; None: (max_lag + 1) * rollout.rollout_batch_size."""
    elastic_cap: int
    """of "elastic": batches that a step may have at most, before what is too old is masked."""
    elastic_admit_lag: int | None
    """of "elastic": versions ahead that a group may begin; None: half of max_lag, rounded up."""


class AlgorithmKeys(TypedDict, total=False):
    """Functions are named as built-ins (docs/customization.md has the lists), or by paths to functions of the user; the
    mathematics of each is in docs/algorithms.md."""

    loss_type: Literal["policy_loss", "sft_loss"]
    """sft_loss: likelihood of the tokens, no rewards."""
    advantage_estimator: str
    """how rewards become advantages."""
    policy_loss: str | None
    """None: gspo with that estimator, else ppo_clip."""
    correction: str | list[str] | None
    """What an asynchronous run does about tokens of another policy than the learner's: one name or several.
    "behaviour": the engine's log-probs are the loss's denominator; "uncorrected": nothing. A run with staleness.max_lag
    > 0 has to say."""
    old_log_probs: Literal["rollout", "recompute", "loglinear"] | None
    """The PPO denominator: the engine's log-probs, the learner's own before the batch, or between the two by lag
    (A-3PO). None: what the correction needs, and "rollout" without one."""
    keep_old_actor: bool
    """of "recompute": the learner's log-probs are those of the version that sampled the token, whose weights it keeps:
    a copy in host memory for each version of staleness.max_lag."""
    grpo_std_normalization: bool
    """divide by the standard deviation of the group's rewards."""
    disable_rewards_normalization: bool
    """of "grpo", "gspo" and "reinforce_plus_plus_baseline": the reward itself, not compared with its group's."""
    normalize_advantages: bool | None
    """whiten over the whole batch; None: as the estimator needs."""
    gamma: float
    """discount of a reward for each token before it."""
    lambd: float
    """of generalised advantage estimation."""
    eps_clip: float
    """how far the ratio of a token may move and still count, downwards."""
    eps_clip_high: float | None
    """upwards; None: eps_clip."""
    eps_clip_c: float | None
    """dual clip: how far the ratio of a bad token counts."""
    loss_aggregation: str
    """mean over tokens; "sample": of per-sample means; "constant": sums / loss_constant."""
    loss_constant: float | None
    """tokens of "constant"; None: rollout.rollout_max_response_len."""
    entropy_coef: float
    """of the entropy in the loss."""
    kl_loss_type: Literal["k1", "k2", "k3", "low_var_kl"]
    """estimator of the KL to the reference model in the loss."""
    use_kl_loss: bool
    """KL to the reference model as a part of the loss; with kl_loss_coef = 0 it is only measured."""
    kl_loss_coef: float
    """of that KL in the loss."""
    use_unbiased_kl: bool
    """that KL times policy / behaviour, whatever old_log_probs is."""
    kl_coef: float
    """KL to the reference model in the reward."""
    ref_load: str | None
    """the reference: a Hugging Face directory; None: model.hf_checkpoint."""
    ref_update_interval: int | None
    """versions after which the policy becomes the reference; None: never."""
    use_opd: bool
    """on-policy distillation: advantages - opd_kl_coef (log-prob - teacher's)."""
    opd_kl_coef: float
    """of the teacher in the advantages."""
    opd_log_prob_top_k: int
    """distil by the teacher's so many likeliest tokens at each position (k * 8 bytes for each token on the bus); 0: by
    the sampled token."""
    opd_top_k_strategy: Literal["only-teacher", "intersection"]
    """by all of those tokens, or by those that are the learner's k likeliest, too."""
    opd_top_k_weight: Literal["student_p", "teacher_p", "none"]
    """how each of those tokens weighs, normalised over them."""
    tis_clip: float
    """upper bound of the ratio, for tis, icepop and span_tis."""
    tis_clip_low: float
    """and the lower one."""
    mis_level: Literal["token", "sequence", "geometric"]
    """what mis looks at: the ratio of a token, of a sample, or the geometric mean of a sample."""
    mis_mode: Literal["truncate", "clip", "mask"]
    """what mis does with a ratio out of bounds."""
    mis_upper: float
    """greatest ratio of mis."""
    mis_lower: float | None
    """least ratio; None: 1 / mis_upper."""
    mis_batch_normalize: bool
    """weights with a mean of 1 over the batch."""
    rs_level: Literal["token", "sequence", "geometric"]
    """what rs looks at, as mis_level."""
    rs_upper: float
    """greatest ratio of rs."""
    rs_lower: float | None
    """least ratio; None: 1 / rs_upper."""
    rs_veto_threshold: float
    """a token with a ratio below this rejects its sample."""
    opsm_delta: float
    """divergence above which opsm rejects a bad sample."""
    m2po_threshold: float
    """second moment of the log-ratios that m2po leaves."""
    dppo_tv_threshold: float
    """how far dppo lets the probability of a token move."""
    dppo_kl_coef: float
    """of the squared log-ratio in dppo."""
    mismatch_warn: float
    """warn when the learner's and the engines' log-probs of the same version's tokens differ by more than this, on
    average."""


class CriticKeys(TypedDict, total=False):
    """Of algorithm.advantage_estimator = "ppo", or of another one that is marked with_critic; what is not here it
    shares with [learner]."""

    critic_load: str | None
    """what its weights begin with: a Hugging Face directory; None: model.hf_checkpoint."""
    critic_save: bool
    """at the end its weights are written to hf_critic/ in the run directory, as critic_load reads them."""
    critic_lr: float | None
    """learning rate; None: learner.lr."""
    critic_lr_warmup_steps: int
    """optimizer steps in which it rises."""
    value_clip: float
    """how far a value may move from what it was before the batch and still count."""
    num_critic_only_steps: int
    """the first batches of a run, in which the policy's weights stay as they are."""


class LearnerKeys(TypedDict, total=False):
    """Functions are paths to functions of the user; docs/customization.md has their signatures."""

    train_backend: str
    """"megatron"; "fsdp": transformers' own model of any dense architecture, sharded over the ranks; or a path to a
    class of yours (train/backend.py)."""
    num_ranks: int
    """processes: replicas of the model, each split over as many as the next keys say."""
    tensor_parallel_size: int
    """processes that compute each layer together."""
    pipeline_parallel_size: int
    """stages: processes that each hold some of the layers."""
    virtual_pipeline_size: int
    """parts of the model on each stage, taken in turns."""
    context_parallel_size: int
    """processes that each compute a part of every sequence."""
    expert_parallel_size: int
    """of a mixture: processes that each hold some of the experts."""
    expert_tensor_parallel_size: int | None
    """that compute one expert together; None: tensor_parallel_size."""
    sequence_parallel: bool | None
    """tensor-parallel processes also share norms, each a part of the sequence; None: where there are several."""
    num_steps_per_rollout: int | None
    """optimizer steps of one pass over a batch; None: global_batch_size says it, and without both a pass is one step."""
    global_batch_size: int | None
    """samples of one such step: rollout_batch_size * n_samples_per_prompt = global_batch_size * num_steps_per_rollout."""
    ppo_epochs: int
    """passes over a batch."""
    max_skipped_steps: int
    """optimizer steps in a row whose gradient is inf or nan: they are skipped; one more ends the run."""
    lr: float
    """learning rate."""
    min_lr: float
    """what the learning rate falls to."""
    lr_warmup_steps: int
    """optimizer steps in which it rises."""
    lr_decay_steps: int | None
    """optimizer steps in which it falls; None: constant after the warm-up."""
    lr_decay_style: Literal["linear", "cosine"]
    """how the learning rate falls."""
    optimizer: Literal["adam", "sgd", "muon"]
    """"adam": AdamW; "sgd": gradient descent with momentum (megatron_args.sgd_momentum). Megatron's "muon" is refused:
    it needs a package besides."""
    adam_beta1: float
    """decay of the mean of gradients."""
    adam_beta2: float
    """decay of the mean of their squares."""
    adam_eps: float
    """what is added to its root."""
    weight_decay: float
    """of AdamW; "sgd" has it in the gradient."""
    clip_grad: float
    """greatest norm of a gradient; 0: none."""
    lora_rank: int
    """LoRA: only matrices of this rank beside those of the model are trained; 0: the model is (docs/models.md)."""
    lora_alpha: float
    """with lora_rank; what such a pair computes counts lora_alpha / lora_rank times."""
    lora_targets: list[str] | None
    """with lora_rank, the matrices that have them: Megatron's names (linear_qkv, linear_proj, linear_fc1, linear_fc2;
    those of latent attention: docs/models.md), with "fsdp" those of transformers' model (q_proj, ...); None: all but
    the output layer."""
    max_tokens_per_micro_batch: int
    """of one pass through the model, padding included."""
    qkv_format: Literal["thd", "bshd"] | None
    """sequences in a pass through Megatron's own layers: "thd": one after the other, nothing is computed of padding;
    "bshd": rows as wide as the longest. None: "thd", but with moe_aux_loss_coeff "bshd". Where one process has a dense
    model on a CPU, layers of ours compute no padding either way."""
    balance_data: bool
    """the groups of an optimizer step go to the replicas so that their tokens come out even."""
    log_probs_chunk_size: int | None
    """tokens whose log-probs are computed at a time, from logits of so many, which the backward pass computes again;
    None: those of a micro-batch."""
    recompute_granularity: Literal["full", "selective"] | None
    """activations are computed again in the backward pass, not kept: "full": of whole layers; "selective": of
    recompute_modules, with "megatron"."""
    recompute_method: Literal["uniform", "block"]
    """with "full", which layers: "uniform": all, in units of recompute_num_layers; "block": the first so many of each
    stage."""
    recompute_num_layers: int
    """with "full"; how many layers that is."""
    recompute_modules: list[Literal["core_attn", "mlp", "moe", "shared_experts"]] | None
    """with "selective"; None: attention. "mlp": of layers without experts; "moe": of those with, or "shared_experts" of
    these."""
    moe_aux_loss_coeff: float
    """of a mixture: what each sequence's balance of experts counts in the loss."""
    moe_z_loss_coeff: float
    """of a mixture: what the squared size of the router's logits counts in the loss."""
    moe_router_bias_update_rate: float
    """of a mixture whose router has biases (glm4_moe, deepseek_v3): how far a step moves each towards balance; 0: they
    stay."""
    freeze_moe_router: bool
    """of a mixture: the router's weights stay as they are."""
    use_distributed_optimizer: bool
    """ranks share the optimizer's state."""
    optimizer_cpu_offload: bool
    """of a model on CUDA: Adam's state and float32 weights lie in the CPU's memory, which also computes the step; with
    model.dtype = "bfloat16", use_distributed_optimizer and TransformerEngine."""
    optimizer_offload_fraction: float
    """of which share of the weights."""
    fp32_parameters: list[str]
    """with model.dtype = "bfloat16": weights that are float32 all the same, and computed with in float32; patterns of
    their names in the checkpoint, as "lm_head.weight", "*.mlp.gate.weight"."""
    megatron_args: dict[str, Any]
    """further fields of Megatron's TransformerConfig, DistributedDataParallelConfig and OptimizerConfig, by their names
    there."""
    grad_reduce_timeout_s: float
    """how long a rank waits for the others."""
    max_quarantined_groups: int
    """recorded groups that cannot be trained are taken out of their step; with more of them than this the run ends."""
    batch_function: str | None
    """makes what is trained on of a rank's groups."""
    before_log_prob_function: str | None
    """called before log-probs are computed."""
    before_train_step_function: str | None
    """called before a batch is trained on."""
    log_function: str | None
    """further metrics of a step."""


class CheckpointKeys(TypedDict, total=False):
    save_interval: int
    """steps between two checkpoints."""
    keep: int
    """how many of the newest stay; when the last one turns out to be damaged, a run goes on from the one before it,
    which 1 does not keep."""
    async_save: bool
    """the learner trains on while a checkpoint is written, from a copy of what each of its ranks writes in the memory
    of its machine; one at a time."""
    save_hf: bool
    """a Hugging Face export at the end."""
    post_save_function: str | None
    """a path to a function (version, directory)."""


class EngineKeys(TypedDict, total=False):
    kind: str
    """"embedded" (this program's own), "sglang" (servers that the run starts), "external" (servers that somebody else
    has started), or a path to a class of yours (engines/kinds/base.py)."""
    num_engines: int
    """of those that the run starts."""
    urls: list[str]
    """the servers of engine.kind = "external"."""
    max_running_requests: int
    """that an engine generates for at once."""
    context_length: int | None
    """tokens of prompt and response; None: the model's; say so where external servers have less."""
    tp_size: int
    """tensor-parallel ranks of one sglang server; Miles: rollout_num_gpus_per_engine."""
    args: list[str]
    """further flags of the sglang server."""
    start_timeout_s: float
    """for a model to be built or a server to answer; one of engine.kind = "sglang" has as much longer as other
    processes make it wait for a core."""
    hang_timeout_s: float | None
    """a server that shows no sign of life for so long is hung: one of engine.kind = "sglang" is killed and replaced,
    one of "external" is on record; None: twice weights.timeout_s, since a server stands still while it takes weights."""
    api_key: str | None
    """what engines ask for; "env:NAME" takes it from the environment."""


class WeightsKeys(TypedDict, total=False):
    transport: str
    """"collective", "disk", "disk_delta" (what has changed goes through a directory, for engines on machines that no
    collective reaches), or a path to a class of yours (weights/transports/base.py)."""
    backend: Literal["auto", "gloo", "nccl"]
    """of the collective; "auto": by the device."""
    bucket_mb: int
    """of one broadcast; over gloo an engine keeps host memory for two of them."""
    pause_mode: Literal["retract", "in_place", "abort"]
    """what becomes of requests under way: their cache is made again, stays, or they are aborted."""
    update_waves: int
    """engines are updated in so many waves, so that some always generate."""
    update_interval: int
    """steps between two updates."""
    timeout_s: float
    """deadline for one engine and version."""
    check_interval: int | None
    """versions between two comparisons of the engines' checksums; one that differs is out until a full update has made
    it right; None: never. A check holds an engine up for as long as it takes to hash its weights."""
    export_function: str | None
    """what the learner's tensors go through on their way into a snapshot."""
    snapshot_dir: str | None
    """where the learner leaves weights; None: memory (/dev/shm) where it has room, else the run directory."""
    delta_dir: str | None
    """of "disk_delta": a directory that the learner's machine and the engines' share; None: the run directory has it."""
    mirror_dir: str | None
    """of "disk_delta": where, on its own machine, an engine's full copy lies; None: as snapshot_dir."""


class RouterKeys(TypedDict, total=False):
    kind: Literal["builtin", "sglang"]
    """"sglang": the package sglang-router as a child process."""
    args: list[str]
    """further flags of sglang-router."""
    host: str
    """address to listen on."""
    port: int
    """to listen on; 0: any free one."""
    health_interval_s: float
    """between two health checks of an engine."""
    health_failures: int
    """health checks in a row with which an engine is out."""
    policy: Literal["least_inflight", "power_of_two", "consistent_hash"]
    """consistent_hash: requests with the same x-routing-key go to the same engine, as far as its load allows."""
    max_retries: int
    """at other engines; those where nobody listens any more do not count."""
    breaker_failures: int
    """an engine that fails so many requests in a row (no answer, a torn one, 5xx) gets none for a while."""
    breaker_open_s: float
    """after so long one request shows whether it serves again."""
    suspect_interval_s: float
    """each so many seconds the router looks at what the engines do: tokens, versions."""
    slow_share: float
    """one that gives each of its requests fewer tokens a second than this share of the others' median, in slow_looks
    looks in a row, gets no requests until it is faster; 0: none is too slow."""
    slow_looks: int
    """looks in a row that say so."""
    hung_s: float
    """one that gives nothing for what it has in flight for so long, while others do, gets none until it answers; below
    run.watchdog_s, or that speaks first."""
    max_concurrency: int | None
    """requests in flight and waiting; further ones get 429 and Retry-After."""
    api_key: str | None
    """what the router asks clients for; "env:NAME" takes it from the environment."""
    admin_key: str | None
    """what it asks for where engines are changed (workers, weights, pauses, caches, all requests); None: only processes
    of the run may, which find a key of their own on the bus."""
    allowed_engines: list[str]
    """where engines that are not the run's may be added by hand: "HOST:PORT", each exactly or "*" (in a host: one part
    between dots), or "NETWORK/BITS:PORT"; the run's own need no such line."""
    max_body_mb: int
    """greatest size of one request."""


class BusKeys(TypedDict, total=False):
    url: str | None
    """of a Redis; None: a server of our own in the run directory; "env:NAME": from the environment."""
    appendfsync: Literal["everysec", "always", "no"]
    """a power cut loses a second, nothing, or more."""
    maxmemory_mb: int | None
    """of our own server; from 80 % of it on nothing new is dealt."""
    payload_dir: str | None
    """a directory that all machines of the run share: published groups lie there, a file each, and Redis holds only
    which; None: in Redis, whose memory they fill where responses are long or routes are replayed."""


class MonitorKeys(TypedDict, total=False):
    tensorboard: bool
    """event files for TensorBoard, too."""
    live: Literal["auto", "on", "off"]
    """the panel; "auto": on a terminal."""
    heartbeat_s: float
    """between two signs of life of an actor."""
    metrics_port: int | None
    """a port of 127.0.0.1 where Prometheus finds every number of the run at /metrics while a launch lives; 0: any free
    one, which the event "metrics_served" names; None: none."""


class TrackKeys(TypedDict, total=False):
    """Where the metrics go besides the run's own directory."""

    wandb: bool
    """a run of Weights & Biases; needs the package wandb."""
    wandb_mode: Literal["offline", "online"]
    """"offline": it lies in wandb/ of the run directory, and nothing is sent until `wandb sync` is called; "online": it
    is sent."""
    wandb_project: str
    """the project that it belongs to."""
    mlflow: bool
    """a run of MLflow, at MLFLOW_TRACKING_URI, or where that is not set in mlruns/ of the run directory; needs the
    package mlflow, or mlflow-skinny."""
    mlflow_experiment: str
    """the experiment that it belongs to."""


class EvalDatasetKeys(TypedDict, total=False):
    """``[eval.datasets.NAME]``. What is unset is as in training: from ``[data]``, ``[reward]``, ``[eval]``,
    ``[rollout]``."""

    prompt_data: str
    """a JSONL or Parquet file, or "builtin:NAME"; "path@[a:b]" takes a slice of its rows."""
    input_key: str | None
    """as data.input_key."""
    label_key: str | None
    """"": the prompts have no label."""
    metadata_key: str | None
    """as data.metadata_key."""
    apply_chat_template: bool | None
    """as data.apply_chat_template."""
    rm_type: str | None
    """as reward.rm_type."""
    n_samples_per_eval_prompt: int | None
    """responses of a prompt."""
    temperature: float | None
    """of sampling; 0: the likeliest token."""
    top_p: float | None
    """as eval.eval_top_p."""
    top_k: int | None
    """as eval.eval_top_k."""
    max_response_len: int | None
    """tokens of one response."""
    stop: list[str] | None
    """texts that end a response."""
    stop_token_ids: list[int] | None
    """tokens that end a response."""


class EvalKeys(TypedDict, total=False):
    """What is said of sampling is for the datasets that do not say otherwise; unset it is as in ``[rollout]``."""

    eval_interval: int | None
    """versions between two points; None: no evaluation."""
    skip_eval_before_train: bool
    """there is no point of version 0."""
    datasets: dict[str, EvalDatasetKeys]
    """by name, in tables of their own."""
    n_samples_per_eval_prompt: int
    """responses of a prompt."""
    eval_temperature: float | None
    """of sampling; 0: the likeliest token."""
    eval_top_p: float | None
    """as rollout.rollout_top_p."""
    eval_top_k: int | None
    """as rollout.rollout_top_k."""
    eval_max_response_len: int | None
    """tokens of one response."""
    eval_max_prompt_len: int | None
    """tokens; longer prompts are left out at load; None: no limit."""
    num_engines: int
    """engines that no training request reaches, of engine.kind."""
    urls: list[str]
    """somebody's engines in their place, which must be able to read snapshots."""
    engine_args: list[str] | None
    """flags of their sglang servers; None: engine.args."""
    max_in_flight: int
    """prompts being generated at once, over all of them."""
    keep_snapshots: int
    """snapshots of weights under evaluation or waiting for it; when one more is due, the oldest that waits is skipped."""
    final_timeout_s: float
    """after the last step a run waits so long for the points that are due."""
    eval_function: str | None
    """a path to async (dataset, generate, grade) -> metrics of one dataset."""
    eval_log_function: str | None
    """a path to (version, results) -> None, called after a point."""


class RecordKeys(TypedDict, total=False):
    level: Literal["published", "all", "off"]
    """the groups that are kept whole under record/ of the run directory: those that were published ("published"), also
    those that a filter refused ("all"), or none ("off"); without them a run cannot be replayed."""
    max_gb: float
    """of them on disk, compressed; beyond it the oldest leave, and with them what a replay from the beginning needs."""
    learner_log_probs: bool
    """also the learner's own log-prob of each token that a step trained, as that step had it: 4 bytes a token, within
    max_gb; `inspect RUN sample` and the page show it beside the engine's."""


class ReplayKeys(TypedDict, total=False):
    run: str | None
    """the directory of a recorded run: its batches are trained again, and nothing is generated."""
    from_step: int
    """begin behind this step, with that run's checkpoint of it; 0: with the weights of its beginning."""


class TopologyKeys(TypedDict, total=False):
    """Dotted paths of the actor classes, so that any role can be replaced without a patch."""

    dealer: str
    """gives out the right to generate."""
    rollout: str
    """makes groups."""
    learner: str
    """trains."""
    broadcaster: str
    """brings weights to the engines."""
    engine: str
    """runs an engine, or stands for one."""
    router: str
    """one address for all engines."""
    evaluator: str
    """evaluates versions of the weights."""
    eval_engine: str
    """an engine of the evaluation."""


class ResourcesKeys(TypedDict, total=False):
    """What one actor of a role asks Ray for: one rank of the learner, one engine (of a server with engine.tp_size ranks
    each of them, all on one machine), one worker."""

    num_cpus: float | None
    """None: 1 for a learner rank, an engine and a rollout worker, 0 for the others."""
    num_gpus: float
    """an actor sees no others than these."""
    resources: dict[str, float]
    """of the cluster's own names: whoever asks for them runs where they are."""


class ElasticLearnerKeys(TypedDict, total=False):
    """A learner that goes on with fewer data-parallel replicas where a machine is lost and nobody else has room, and
    with more when there is room again."""

    min_ranks: int | None
    """the fewest, of learner.num_ranks, with which the run begins; None: it waits until there is room for all of them."""
    wait_s: float
    """that room for as many ranks as before is waited for."""


class ElasticKeys(TypedDict, total=False):
    """Engines that come when the cluster has room, and leave when it has none, or takes their machine back."""

    min_engines: int | None
    """places are kept for these; None: engine.num_engines, with which the run begins."""
    max_engines: int | None
    """None: none comes or leaves by itself."""


class PlacementKeys(TypedDict, total=False):
    kind: Literal["local", "ray"]
    """"local": processes of this machine; "ray": actors of a Ray cluster, on a machine of which the launch runs."""
    address: str | None
    """of the cluster's head, "HOST:PORT", or "auto"; None: RAY_ADDRESS says it."""
    start_ray: bool
    """start a Ray on this machine that ends with the run; else one that is there has to be named."""
    launch_restarts: int
    """how often Ray starts a launch again that was killed, or whose machine is lost, on that machine or another one;
    the run then goes on without the command that began it. 0: the launch is that command's own process."""
    namespace: str | None
    """of the actors' names in Ray; None: one of the run directory's own."""
    ready_timeout_s: float
    """for the cluster to give an actor its place, and all of them at the start."""
    env_vars: list[str]
    """variables of the launch's environment that actors get, besides OMP_NUM_THREADS."""
    interface: str | None
    """on several machines: which address of its machine an actor listens on and announces. The name of an interface, or
    the network that it lies in ("10.0.0.0/8"), beyond which engines get no key; None: that from which it reaches the
    bus."""
    shared_dir: str | None
    """on several machines: a directory that all of them see, for weights on their way; None: the run directory, which
    has to be seen by all of them in any case."""
    learner: ResourcesKeys
    """its tensor-parallel ranks are on one machine, and as many others as have room there."""
    elastic_learner: ElasticLearnerKeys
    """how few ranks it goes on with where a machine was lost."""
    elastic: ElasticKeys
    """engines that come and leave while the run goes on."""
    engine: ResourcesKeys
    """on as few machines as have room for all."""
    rollout: ResourcesKeys
    """on as many machines as there are."""
    broadcaster: ResourcesKeys
    """with the learner's rank 0."""
    dealer: ResourcesKeys
    """on the launch's machine; one that asks for something where there is room for it."""
    router: ResourcesKeys
    """as the dealer."""
    evaluator: ResourcesKeys
    """as the dealer."""
    eval_engine: ResourcesKeys
    """as engine."""


class Overrides(TypedDict, total=False):
    """Sections, each with some of its keys."""

    model: ModelKeys
    data: DataKeys
    run: RunKeys
    rollout: RolloutKeys
    reward: RewardKeys
    staleness: StalenessKeys
    algorithm: AlgorithmKeys
    critic: CriticKeys
    learner: LearnerKeys
    checkpoint: CheckpointKeys
    engine: EngineKeys
    weights: WeightsKeys
    router: RouterKeys
    bus: BusKeys
    monitor: MonitorKeys
    track: TrackKeys
    eval: EvalKeys
    record: RecordKeys
    replay: ReplayKeys
    topology: TopologyKeys
    placement: PlacementKeys
