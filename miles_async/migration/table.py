"""What each flag of Miles, and of slime, is here: a table, and nothing else.

``KEYS``: the key that takes the flag's words as they are. ``SETS``: what a flag, or a flag with a certain word, sets.
``WITHOUT``: those that have no key here, and why; a name that ends in * is of all that begin so. What several flags say
together is in ``together.py``. Names and defaults are those of Miles in August 2026.
"""

from __future__ import annotations

from typing import Any

_SECTIONS: dict[str, str] = {  # section: FLAG, where the key has its name, or FLAG=KEY
    "run": "num-rollout=num_steps rollout-seed=seed seed=seed",
    "model": "hf-checkpoint",
    "data": """prompt-data input-key label-key metadata-key tool-key apply-chat-template
        apply-chat-template-kwargs chat-template-path
        rollout-shuffle rollout-max-prompt-len""",
    "rollout": """rollout-batch-size over-sampling-batch-size n-samples-per-prompt rollout-max-response-len
        rollout-temperature rollout-top-p rollout-top-k rollout-stop rollout-stop-token-ids partial-rollout
        mask-offpolicy-in-partial-rollout generate-max-turns=max_turns use-rollout-routing-replay=routing_replay
        sglang-router-request-timeout-secs=request_timeout_s""",
    "reward": "reward-key group-rm rm-url",
    "algorithm": """loss-type advantage-estimator disable-rewards-normalization normalize-advantages gamma lambd
        eps-clip eps-clip-high eps-clip-c entropy-coef use-kl-loss kl-loss-coef kl-loss-type use-unbiased-kl kl-coef
        ref-update-interval keep-old-actor use-opd opd-kl-coef opd-log-prob-top-k opd-top-k-strategy opd-top-k-weight
        tis-clip tis-clip-low opsm-delta""",
    "critic": "critic-lr critic-lr-warmup-iters=critic_lr_warmup_steps value-clip num-critic-only-steps",
    "learner": """tensor-model-parallel-size=tensor_parallel_size pipeline-model-parallel-size=pipeline_parallel_size
        context-parallel-size expert-model-parallel-size=expert_parallel_size expert-tensor-parallel-size
        num-steps-per-rollout global-batch-size balance-data qkv-format train-backend optimizer lr min-lr
        lr-warmup-iters=lr_warmup_steps weight-decay adam-beta1 adam-beta2 adam-eps clip-grad recompute-granularity
        recompute-method recompute-num-layers recompute-modules moe-aux-loss-coeff moe-z-loss-coeff
        moe-router-bias-update-rate use-distributed-optimizer optimizer-cpu-offload optimizer-offload-fraction
        lora-rank lora-alpha""",
    "checkpoint": "save-interval async-save",
    "engine": "rollout-num-gpus-per-engine=tp_size rollout-max-context-len=context_length",
    "weights": "update-weights-interval=update_interval pause-generation-mode=pause_mode",
    "router": """sglang-router-ip=host sglang-router-port=port rollout-health-check-interval=health_interval_s
        miles-router-health-check-failure-threshold=health_failures""",
    "monitor": "prometheus-port=metrics_port use-tensorboard=tensorboard",
    "track": "use-wandb=wandb wandb-project wandb-mode use-mlflow=mlflow mlflow-experiment-name=mlflow_experiment",
    "eval": """eval-interval skip-eval-before-train n-samples-per-eval-prompt eval-temperature eval-top-p eval-top-k
        eval-max-response-len eval-max-prompt-len eval-keep-snapshots=keep_snapshots""",
}


def _keys() -> dict[str, str]:
    pairs = (
        (section, *word.partition("=")[::2])
        for section, words in _SECTIONS.items()
        for word in words.replace("\n", " ").split()
    )
    return {f"--{flag}": f"{section}.{key or flag.replace('-', '_')}" for section, flag, key in pairs}


KEYS = _keys()

_FILTERS = "miles.rollout.filter_hub.dynamic_sampling_filters."
# flag to what it sets, by its word; "": whatever it is given
SETS: dict[str, dict[str, dict[str, Any]]] = {
    "--disable-grpo-std-normalization": {"": {"algorithm.grpo_std_normalization": False}},
    "--calculate-per-token-loss": {"": {"algorithm.loss_aggregation": "token"}},
    "--check-weight-update-equal": {"": {"weights.check_interval": 1}},
    "--critic-save": {"": {"critic.critic_save": True}},
    "--save-hf": {"": {"checkpoint.save_hf": True}},
    "--use-prometheus": {"": {"monitor.metrics_port": 9090}},
    "--dynamic-sampling-filter-path": {
        f"{_FILTERS}check_reward_nonzero_std": {"rollout.dynamic_sampling_filter": "nonzero_std"},
        f"{_FILTERS}check_no_aborted": {"rollout.dynamic_sampling_filter": "no_aborted"},
    },
    "--rollout-submission-granularity": {
        "sample": {"rollout.request_per_sample": True},
        "group": {"rollout.request_per_sample": False},
    },
    "--rollout-function-path": {
        "miles.rollout.sft_rollout.generate_rollout": {"rollout.rollout_function": "sft"},
        "slime.rollout.sft_rollout.generate_rollout": {"rollout.rollout_function": "sft"},
        "miles.rollout.fully_async_rollout.generate_rollout_fully_async": {},
    },
    "--custom-generate-function-path": {
        "miles.rollout.generate_hub.multi_turn.generate": {"rollout.generate_function": "multi_turn"},
        "miles.rollout.generate_hub.agentic_tool_call.generate": {"rollout.generate_function": "agent"},
        "miles.rollout.generate_hub.single_turn.generate": {},
    },
    "--sglang-router-policy": {"consistent_hashing": {"router.policy": "consistent_hash"}},
    "--generate-tool-call-parser": {name: {"rollout.tool_call_parser": "qwen"} for name in ("qwen", "qwen25")},
    "--lr-decay-style": {"constant": {}},
}
_REASONS: dict[str, str] = {
    "the checkpoint's config.json says it": """num-layers hidden-size ffn-hidden-size num-attention-heads
        group-query-attention num-query-groups kv-channels vocab-size make-vocab-size-divisible-by normalization
        norm-epsilon rotary-base rotary-percent use-rotary-position-embeddings position-embedding-type swiglu
        disable-bias-linear add-qkv-bias qk-layernorm untie-embeddings-and-output-weights max-position-embeddings
        num-experts moe-ffn-hidden-size moe-shared-expert* moe-layer-freq moe-router-topk* moe-router-score-function
        moe-router-pre-softmax moe-router-enable-expert-bias moe-router-group-topk moe-router-num-groups
        moe-router-load-balancing-type moe-router-dtype multi-latent-attention q-lora-rank kv-lora-rank qk-head-dim
        qk-pos-emb-head-dim v-head-dim rope-type rotary-scaling-factor mscale* spec seq-length tokenizer* model-name
        rope-scaling* use-rope-scaling mtp-num-layers apply-layernorm-1p""",
    "it is always so here": """use-dynamic-batch-size use-fault-tolerance use-miles-router fully-async rollout-external
        transformer-impl bf16 accumulate-allreduce-grads-in-fp32 no-gradient-accumulation-fusion
        use-mcore-models ckpt-format dist-ckpt* use-slime-router observe-training-entropy get-mismatch-metrics
        disable-compute-advantages-and-returns attention-dropout hidden-dropout
        no-check-for-nan-in-loss-and-grad""",
    "checkpoints lie in the run directory: launch --run-dir": "save",
    "a launch with --run-dir goes on with a run, --from RUN begins with its weights; `miles-async convert --model` makes "
    "a Hugging Face directory of a torch_dist checkpoint": """load ckpt-step finetune no-load-optim no-load-rng
        pretrained-checkpoint""",
    "it is a torch_dist directory there; here the reference is model.hf_checkpoint, or algorithm.ref_load, a Hugging Face "
    "directory": "ref-load ref-ckpt-step",
    "critic.critic_load takes a Hugging Face directory": "critic-load",
    "a checkpoint always has the optimizer's state": "no-save-optim no-save-rng",
    "a run counts batches, not epochs: run.num_steps": "num-epoch",
    "micro-batches are made by tokens: learner.max_tokens_per_micro_batch": "micro-batch-size ref-micro-batch-size",
    "learner and engines never share a GPU": """colocate offload offload-train offload-rollout offload-train-mode
        train-memory-margin-bytes""",
    "the function is called otherwise here, under a key of its own (docs/customization.md)": """custom-rm-path
        custom-reward-post-process-path custom-loss-function-path custom-tis-function-path custom-agent-function-path
        custom-pg-loss-reducer-function-path custom-model-provider-path custom-megatron-before-log-prob-hook-path
        custom-megatron-before-train-step-hook-path custom-megatron-post-save-hook-path eval-function-path
        custom-rollout-log-function-path custom-eval-rollout-log-function-path data-source-path buffer-filter-path
        rollout-sample-filter-path custom-convert-samples-to-train-data-path generate-execute-tool-function-path
        generate-tool-specs-path rollout-function-path custom-generate-function-path dynamic-sampling-filter-path""",
    "there is no such place for a function here": """custom-megatron-init-path rollout-all-samples-process-path
        rollout-data-postprocess-path custom-async-data-buffer-path custom-update-weight-post-write-path
        custom-config-path session-*""",
    "how many groups may be open follows from staleness.max_lag": "async-data-buffer-capacity-factor",
    "a group that is too old is dropped, one that failed is tried again": "async-unused-samples-handler",
    "it is a file of another form: write [eval.datasets.NAME] tables": "eval-config",
    "evaluation has engines of its own here: eval.num_engines": "eval-num-gpus eval-max-in-flight eval-overflow-policy",
    "wandb takes it from its own environment: WANDB_API_KEY, WANDB_ENTITY, WANDB_BASE_URL, WANDB_RUN_GROUP": """wandb-key
        wandb-team wandb-host wandb-group wandb-random-suffix wandb-dir wandb-run-id disable-wandb-random-suffix""",
    "of engines, engine.max_running_requests, of workers rollout.max_samples_in_flight": "sglang-server-concurrency",
    'it is one of sglang-router: router.args, with router.kind = "sglang"': "router-* sglang-router-policy",
    'engines of their own, launched as servers, are engine.kind = "external"': "sglang-config prefill-num-servers",
    "no images here": "multimodal-keys",
    "the chat template says what a response is": "loss-mask-type",
    'a tokenizer\'s template is read as transformers reads it; tool calls are parsed as "qwen" has them': """
        generate-tool-call-parser tito-model use-session-server""",
    "a teacher is asked over HTTP here: rollout.opd_teacher_urls": "opd-type opd-teacher-load opd-teacher-ckpt-step",
    "`miles-async top`, `status` and `inspect` show a run": "use-miles-dashboard dump-details",
    "`miles-async replay` trains again on what a run has recorded": """save-debug-rollout-data load-debug-rollout-data
        debug-rollout-only debug-train-only save-debug-train-data save-debug-trajectory-data""",
    "mlflow takes it from its own environment: MLFLOW_TRACKING_URI": "mlflow-*",
    "there is none here": """debug-* ci-* tb-experiment-name profile* record-memory-history
        memory-snapshot* use-pytorch-profiler control-server-port mini-ft-controller-enable use-routing-replay
        rollout-health-check-timeout rollout-health-check-first-wait miles-router-timeout miles-router-max-connections
        p2p-transfer* update-weight-mode reset-optimizer-states recompute-loss-function multi-lora* allow-partial-train-step
        use-dynamic-global-batch-size disable-rollout-trim-samples balance-by-flops data-pad-size-multiplier
        skip-actor-forward-only use-rollout-entropy save-trigger-sentinel low-memory-resume log-* rollout-data-transport
        recompute-logprobs-via-prefill true-on-policy-mode use-distributed-post""",
    "Megatron's own fields are given by their names in learner.megatron_args": """attention-softmax-in-fp32
        attention-backend overlap-* moe-token-dispatcher-type moe-grouped-gemm moe-permute-fusion moe-enable-deepep
        use-precision-aware-optimizer sgd-momentum num-layers-per-virtual-pipeline-stage decoder-*-pipeline-num-layers
        moe-router-fusion cross-entropy-* deterministic-mode no-rope-fusion""",
}


def _without() -> dict[str, str]:
    return {f"--{flag}": reason for reason, flags in _REASONS.items() for flag in flags.split()}


WITHOUT = _without()
