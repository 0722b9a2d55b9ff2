"""How groups are made and graded, and how far they may be behind."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from miles_async.config.schema.section import CountInt, PositiveFloat, PositiveInt, Section


class Rollout(Section, frozen=True):
    """Functions are named as built-ins (docs/customization.md has the lists), or by paths to functions of the user."""

    rollout_batch_size: PositiveInt = 32  # prompt groups of one batch, from which one weight version is made
    # prompt groups that are begun for one step, at least rollout_batch_size: the first ones that are ready are trained, the
    # surplus is dropped; None: no more than are trained
    over_sampling_batch_size: PositiveInt | None = None
    n_samples_per_prompt: PositiveInt = 8  # responses of a prompt, which make a group
    rollout_max_response_len: PositiveInt = 128  # tokens of one response
    rollout_temperature: PositiveFloat = 1.0  # of sampling, and of the log-probs that are trained on
    # the likeliest tokens that are sampled from, by the sum of their probabilities
    rollout_top_p: Annotated[float, Meta(gt=0, le=1)] = 1.0
    rollout_top_k: int = -1  # the likeliest tokens that are sampled from, by number; -1: all
    rollout_stop: list[str] = []  # texts that end a response
    rollout_stop_token_ids: list[int] = []  # tokens that end a response
    num_workers: PositiveInt = 2  # rollout worker processes
    max_groups_in_flight: PositiveInt = 64  # for each worker, where max_samples_in_flight is unset
    # for each worker: samples whose tokens have not ended; None: max_groups_in_flight * n_samples_per_prompt
    max_samples_in_flight: PositiveInt | None = None
    # of "single_turn": each sample is a request of its own, whose slot frees when it ends: more requests, for long responses;
    # false: a group is one request, whose slots free when its last sample ends
    request_per_sample: bool = False
    # the limit follows the engines' load below that: fewer where requests queue or caches are full, more where there is room
    adaptive_in_flight: bool = False
    request_timeout_s: PositiveFloat = 600.0  # of one request to an engine, with its repetitions
    lease_s: PositiveFloat = 30.0  # a ticket of a worker silent for so long goes to another one
    max_attempts: PositiveInt = 3  # at one group; then it is dropped, and on record as a dead letter with its causes
    rollout_function: str = "single_turn"  # makes a whole group; any other generate_function is called by "per_sample"
    generate_function: str = "single_turn"  # makes one rollout of a group
    max_turns: PositiveInt = 16  # of the policy in one rollout of "multi_turn"
    tool_call_parser: str = "qwen"  # how a tool call is read from a response of "multi_turn"
    execute_tool_function: str | None = None  # calls a tool of "multi_turn"
    tool_timeout_s: PositiveFloat = 30.0  # deadline for each call of a tool
    agent_function: str | None = None  # of "agent": speaks to an OpenAI-compatible endpoint, as any such program does
    agent_timeout_s: PositiveFloat = 600.0  # deadline for each rollout of it
    # of a mixture: the experts that engines chose for each token come with it, and the learner takes them, too
    routing_replay: bool = False
    # a sample that an engine aborted goes on from the tokens it has; false: it is generated anew
    partial_rollout: bool = True
    mask_offpolicy_in_partial_rollout: bool = False  # only what follows the last abort is trained on
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
    rm_type: str = "graded_match"  # a built-in name, or a path to a function (sample) that gives a number
    rm_types: list[str] = []  # functions that metadata["rm_type"] of a prompt may name, beside the built-ins
    rm_weights: dict[str, float] = {}  # of rm_type = "weighted_sum": by the names of its rewards
    reward_key: str | None = None  # which entry of a dict of numbers is the reward; a plain number needs none
    group_rm: bool = False  # functions of the user take the list of a group's samples, and return a list
    rm_url: str | None = None  # of rm_type = "remote_rm"; "env:NAME" takes it from the environment
    timeout_s: PositiveFloat = 10.0  # for each call; past it the sample is left out of its group
    num_processes: PositiveInt = 1  # grading processes of each worker, for graders that hold the CPU
    # the rewards of a group as the learner sees them; the raw ones stay on record
    reward_post_process: str | None = None


POLICIES = (
    "fifo",
    "drop",
    "token_mask",
    "elastic",
    "count",
    "ready_first",
    "pace",
    "weight_fifo",
    "in_order",
    "windowed",
    "recycle",
)


class Staleness(Section, frozen=True):
    # "fifo", "drop", "token_mask", "elastic", "count", "ready_first", "pace", "weight_fifo", "in_order", "windowed", "recycle",
    # or a path to a function (staleness, rollout) that gives a policy
    policy: str = "fifo"
    max_lag: CountInt = 2  # versions; 0 is the synchronous loop
    # refuse a policy that may train a token beyond max_lag; false: "count", "ready_first" and "pace" are allowed, too, which
    # only aim at max_lag
    hard_bound: bool = True
    # what becomes of a group that is too old: it is dropped; or its prompt is dealt again, before new ones ("requeue"); or what
    # is within max_lag of it is trained ("mask"); None: what the policy does of itself
    too_old: Literal["drop", "requeue", "mask"] | None = None
    # of "windowed" and "recycle": groups that may be open; None: (max_lag + 1) * rollout.rollout_batch_size
    capacity: PositiveInt | None = None
    # of "elastic": batches that a step may have at most, before what is too old is masked
    elastic_cap: PositiveInt = 4
    # of "elastic": versions ahead that a group may begin; None: half of max_lag, rounded up
    elastic_admit_lag: CountInt | None = None

    @property
    def admit_lag(self) -> int:
        """``elastic_admit_lag``, also where it is not set."""
        return (self.max_lag + 1) // 2 if self.elastic_admit_lag is None else self.elastic_admit_lag
