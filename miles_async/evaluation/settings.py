"""What applies to each dataset, and when there is a point: pure.

Promises: what ``[eval.datasets.NAME]`` leaves unset is as in training; the sampling seed of a sample depends on the run's
seed, the dataset, the prompt and the sample only, so that two points differ by their weights and nothing else.
"""

from __future__ import annotations

import hashlib

import msgspec

from miles_async.config.schema import Data, Eval, EvalDataset, Rollout, RunConfig

# the roles of an evaluation: the training waits for none of them, and their end is not its end
ROLES = ("evaluator", "eval_engine")

SEED_SPACE = 2**31 - 1  # what SGLang takes as a sampling_seed


def dataset_config(config: RunConfig, name: str) -> RunConfig:
    """``config`` with the data, the sampling and the reward of ``[eval.datasets.name]`` in the place of those of training."""
    dataset, replace = config.eval.datasets[name], msgspec.structs.replace
    reward = replace(config.reward, **_chosen(rm_type=dataset.rm_type))
    return replace(config, data=_data(config, dataset), rollout=_rollout(config, dataset), reward=reward)


def dataset_configs(config: RunConfig) -> dict[str, RunConfig]:
    """:func:`dataset_config` of every dataset, by name."""
    return {name: dataset_config(config, name) for name in config.eval.datasets}


def _data(config: RunConfig, dataset: EvalDataset) -> Data:
    labels = {} if dataset.label_key is None else {"label_key": dataset.label_key or None}
    return msgspec.structs.replace(
        config.data,
        prompt_data=dataset.prompt_data,
        prompt_weights=None,
        data_source="files",
        rollout_max_prompt_len=config.eval.eval_max_prompt_len,
        **labels,
        **_chosen(
            input_key=dataset.input_key,
            metadata_key=dataset.metadata_key,
            apply_chat_template=dataset.apply_chat_template,
        ),
    )


def _rollout(config: RunConfig, dataset: EvalDataset) -> Rollout:
    section = config.eval
    # what a run is taught with samples nothing
    sampling = {"rollout_function": "single_turn"} if config.rollout.rollout_function == "sft" else {}
    return msgspec.structs.replace(
        config.rollout,
        n_samples_per_prompt=dataset.n_samples_per_eval_prompt or section.n_samples_per_eval_prompt,
        **_chosen(
            rollout_temperature=_first(dataset.temperature, section.eval_temperature),
            rollout_top_p=_first(dataset.top_p, section.eval_top_p),
            rollout_top_k=_first(dataset.top_k, section.eval_top_k),
            rollout_max_response_len=_first(dataset.max_response_len, section.eval_max_response_len),
            rollout_stop=dataset.stop,
            rollout_stop_token_ids=dataset.stop_token_ids,
        ),
        **sampling,
    )


def seed_of(run_seed: int, name: str, prompt_index: int, n_samples: int) -> int:
    """The seed of a prompt's first sample; sample i has this plus i."""
    text = f"{run_seed}/{name}/{prompt_index}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") % (SEED_SPACE - n_samples)


def is_due(config: Eval, version: int) -> bool:
    """Whether there is to be a point of ``version`` (the last version of a run has one in any case)."""
    if config.eval_interval is None or (version == 0 and config.skip_eval_before_train):
        return False
    return version % config.eval_interval == 0


def _chosen(**values: object) -> dict[str, object]:
    """Those that are set."""
    return {key: value for key, value in values.items() if value is not None}


def _first(*values: object) -> object:
    return next((value for value in values if value is not None), None)
