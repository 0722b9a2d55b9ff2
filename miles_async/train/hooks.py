"""The extension points of the learner. Importing this file costs no torch."""

from __future__ import annotations

from miles_async.hooks.hook import Hook

MODEL_PROVIDER = Hook(
    "model.model_provider",
    ("path", "dtype", "device"),
    returns="a bridge like train.bridge.ModelBridge: path, config, hf_config, build(), hf_tensors(module)",
    default="train.bridge.ModelBridge",
)
BATCH = Hook(
    "learner.batch_function",
    ("groups", "vocab_size"),
    returns="a train.batch.TrainBatch of a rank's groups",
    default="train.batch.flatten",
)
BEFORE_LOG_PROB = Hook(
    "learner.before_log_prob_function",
    ("trainer", "name"),
    returns='nothing; called before a pass for log-probs alone, of "current", "reference" or "old_actor"; a batch of one '
    'optimizer step seldom needs one of "current"',
    default="none",
)
BEFORE_TRAIN_STEP = Hook(
    "learner.before_train_step_function",
    ("trainer", "step"),
    returns="nothing; called once the batch of step is admitted, before its first pass",
    default="none",
)
LOG = Hook(
    "learner.log_function",
    ("step", "metrics"),
    returns="further metrics {name: number}, or None; called on rank 0",
    default="none",
)
POST_SAVE = Hook(
    "checkpoint.post_save_function",
    ("version", "directory"),
    returns="nothing; called on rank 0 with a checkpoint that is durable",
    default="none",
)

HOOKS = (MODEL_PROVIDER, BATCH, BEFORE_LOG_PROB, BEFORE_TRAIN_STEP, LOG, POST_SAVE)
