"""What versions of the weights are evaluated on."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from miles_async.config.schema.section import CountFloat, PositiveInt, Section


class EvalDataset(Section, frozen=True):
    """``[eval.datasets.NAME]``. What is unset is as in training: from ``[data]``, ``[reward]``, ``[eval]``, ``[rollout]``."""

    prompt_data: str  # a JSONL or Parquet file, or "builtin:NAME"; "path@[a:b]" takes a slice of its rows
    input_key: str | None = None  # as data.input_key
    label_key: str | None = None  # "": the prompts have no label
    metadata_key: str | None = None  # as data.metadata_key
    apply_chat_template: bool | None = None  # as data.apply_chat_template
    rm_type: str | None = None  # as reward.rm_type
    n_samples_per_eval_prompt: PositiveInt | None = None  # responses of a prompt
    temperature: CountFloat | None = None  # of sampling; 0: the likeliest token
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None  # as eval.eval_top_p
    top_k: int | None = None  # as eval.eval_top_k
    max_response_len: PositiveInt | None = None  # tokens of one response
    stop: list[str] | None = None  # texts that end a response
    stop_token_ids: list[int] | None = None  # tokens that end a response


class Eval(Section, frozen=True):
    """What is said of sampling is for the datasets that do not say otherwise; unset it is as in ``[rollout]``."""

    eval_interval: PositiveInt | None = None  # versions between two points; None: no evaluation
    skip_eval_before_train: bool = False  # there is no point of version 0
    datasets: dict[str, EvalDataset] = {}  # by name, in tables of their own
    n_samples_per_eval_prompt: PositiveInt = 1  # responses of a prompt
    eval_temperature: CountFloat | None = None  # of sampling; 0: the likeliest token
    eval_top_p: Annotated[float, Meta(gt=0, le=1)] | None = None  # as rollout.rollout_top_p
    eval_top_k: int | None = None  # as rollout.rollout_top_k
    eval_max_response_len: PositiveInt | None = None  # tokens of one response
    eval_max_prompt_len: PositiveInt | None = None  # tokens; longer prompts are left out at load; None: no limit
    # engines that no training request reaches, of engine.kind
    num_engines: PositiveInt = 1
    urls: list[str] = []  # somebody's engines in their place, which must be able to read snapshots
    engine_args: list[str] | None = None  # flags of their sglang servers; None: engine.args
    max_in_flight: PositiveInt = 64  # prompts being generated at once, over all of them
    # snapshots of weights under evaluation or waiting for it; when one more is due, the oldest that waits is skipped
    keep_snapshots: PositiveInt = 2
    final_timeout_s: CountFloat = 600.0  # after the last step a run waits so long for the points that are due
    eval_function: str | None = None  # a path to async (dataset, generate, grade) -> metrics of one dataset
    eval_log_function: str | None = None  # a path to (version, results) -> None, called after a point
