"""What trains the weights: the learner and its critic."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta

from miles_async.config.schema.section import CountFloat, CountInt, PositiveFloat, PositiveInt, Section, Share


class Critic(Section, frozen=True):
    """Of algorithm.advantage_estimator = "ppo", or of another one that is marked with_critic; what is not here it shares with
    [learner]."""

    critic_load: str | None = None  # what its weights begin with: a Hugging Face directory; None: model.hf_checkpoint
    # at the end its weights are written to hf_critic/ in the run directory, as critic_load reads them
    critic_save: bool = False
    critic_lr: PositiveFloat | None = None  # learning rate; None: learner.lr
    critic_lr_warmup_steps: CountInt = 0  # optimizer steps in which it rises
    value_clip: PositiveFloat = 0.2  # how far a value may move from what it was before the batch and still count
    num_critic_only_steps: CountInt = 0  # the first batches of a run, in which the policy's weights stay as they are


class Learner(Section, frozen=True):
    """Functions are paths to functions of the user; docs/customization.md has their signatures."""

    # "megatron"; "fsdp": transformers' own model of any dense architecture, sharded over the ranks; or a path to a class of
    # yours (train/backend.py)
    train_backend: str = "megatron"
    num_ranks: PositiveInt = 1  # processes: replicas of the model, each split over as many as the next keys say
    tensor_parallel_size: PositiveInt = 1  # processes that compute each layer together
    pipeline_parallel_size: PositiveInt = 1  # stages: processes that each hold some of the layers
    virtual_pipeline_size: PositiveInt = 1  # parts of the model on each stage, taken in turns
    context_parallel_size: PositiveInt = 1  # processes that each compute a part of every sequence
    expert_parallel_size: PositiveInt = 1  # of a mixture: processes that each hold some of the experts
    # that compute one expert together; None: tensor_parallel_size
    expert_tensor_parallel_size: PositiveInt | None = None
    # tensor-parallel processes also share norms, each a part of the sequence; None: where there are several
    sequence_parallel: bool | None = None
    # optimizer steps of one pass over a batch; None: global_batch_size says it, and without both a pass is one step
    num_steps_per_rollout: PositiveInt | None = None
    # samples of one such step: rollout_batch_size * n_samples_per_prompt = global_batch_size * num_steps_per_rollout
    global_batch_size: PositiveInt | None = None
    ppo_epochs: PositiveInt = 1  # passes over a batch
    # optimizer steps in a row whose gradient is inf or nan: they are skipped; one more ends the run
    max_skipped_steps: CountInt = 5
    lr: PositiveFloat = 1e-6  # learning rate
    min_lr: CountFloat = 0.0  # what the learning rate falls to
    lr_warmup_steps: CountInt = 0  # optimizer steps in which it rises
    lr_decay_steps: PositiveInt | None = None  # optimizer steps in which it falls; None: constant after the warm-up
    lr_decay_style: Literal["linear", "cosine"] = "linear"  # how the learning rate falls
    # "adam": AdamW; "sgd": gradient descent with momentum (megatron_args.sgd_momentum). Megatron's "muon" is refused: it needs
    # a package besides
    optimizer: Literal["adam", "sgd", "muon"] = "adam"
    adam_beta1: Share = 0.9  # decay of the mean of gradients
    adam_beta2: Share = 0.98  # decay of the mean of their squares
    adam_eps: PositiveFloat = 1e-8  # what is added to its root
    weight_decay: CountFloat = 0.0  # of AdamW; "sgd" has it in the gradient
    clip_grad: CountFloat = 1.0  # greatest norm of a gradient; 0: none
    # LoRA: only matrices of this rank beside those of the model are trained; 0: the model is (docs/models.md)
    lora_rank: CountInt = 0
    lora_alpha: PositiveFloat = 16.0  # with lora_rank; what such a pair computes counts lora_alpha / lora_rank times
    # with lora_rank, the matrices that have them: Megatron's names (linear_qkv, linear_proj, linear_fc1, linear_fc2; those of
    # latent attention: docs/models.md), with "fsdp" those of transformers' model (q_proj, ...); None: all but the output layer
    lora_targets: list[str] | None = None
    max_tokens_per_micro_batch: PositiveInt = 8192  # of one pass through the model, padding included
    # sequences in a pass through Megatron's own layers: "thd": one after the other, nothing is computed of padding; "bshd":
    # rows as wide as the longest. None: "thd", but with moe_aux_loss_coeff "bshd". Where one process has a dense model on a
    # CPU, layers of ours compute no padding either way
    qkv_format: Literal["thd", "bshd"] | None = None
    balance_data: bool = True  # the groups of an optimizer step go to the replicas so that their tokens come out even
    # tokens whose log-probs are computed at a time, from logits of so many, which the backward pass computes again; None: those
    # of a micro-batch
    log_probs_chunk_size: PositiveInt | None = None
    # activations are computed again in the backward pass, not kept: "full": of whole layers; "selective": of recompute_modules,
    # with "megatron"
    recompute_granularity: Literal["full", "selective"] | None = None
    # with "full", which layers: "uniform": all, in units of recompute_num_layers; "block": the first so many of each stage
    recompute_method: Literal["uniform", "block"] = "uniform"
    recompute_num_layers: PositiveInt = 1  # with "full"; how many layers that is
    # with "selective"; None: attention. "mlp": of layers without experts; "moe": of those with, or "shared_experts" of these
    recompute_modules: list[Literal["core_attn", "mlp", "moe", "shared_experts"]] | None = None
    moe_aux_loss_coeff: CountFloat = 0.0  # of a mixture: what each sequence's balance of experts counts in the loss
    moe_z_loss_coeff: CountFloat = 0.0  # of a mixture: what the squared size of the router's logits counts in the loss
    # of a mixture whose router has biases (glm4_moe, deepseek_v3): how far a step moves each towards balance; 0: they stay
    moe_router_bias_update_rate: CountFloat = 0.0
    freeze_moe_router: bool = False  # of a mixture: the router's weights stay as they are
    use_distributed_optimizer: bool = False  # ranks share the optimizer's state
    # of a model on CUDA: Adam's state and float32 weights lie in the CPU's memory, which also computes the step; with
    # model.dtype = "bfloat16", use_distributed_optimizer and TransformerEngine
    optimizer_cpu_offload: bool = False
    optimizer_offload_fraction: Annotated[float, Meta(gt=0, le=1)] = 1.0  # of which share of the weights
    # with model.dtype = "bfloat16": weights that are float32 all the same, and computed with in float32; patterns of their
    # names in the checkpoint, as "lm_head.weight", "*.mlp.gate.weight"
    fp32_parameters: list[str] = []
    # further fields of Megatron's TransformerConfig, DistributedDataParallelConfig and OptimizerConfig, by their names there
    megatron_args: dict[str, Any] = {}
    grad_reduce_timeout_s: PositiveFloat = 300.0  # how long a rank waits for the others
    # recorded groups that cannot be trained are taken out of their step; with more of them than this the run ends
    max_quarantined_groups: CountInt = 16
    batch_function: str | None = None  # makes what is trained on of a rank's groups
    before_log_prob_function: str | None = None  # called before log-probs are computed
    before_train_step_function: str | None = None  # called before a batch is trained on
    log_function: str | None = None  # further metrics of a step
