"""A row for each hook of ``hook_points.HOOKS``: how the system calls its function, and what a failure of that costs.

``feed(path, directory)`` has the function at ``path`` called by the code that calls it in a run, and gives (what it costs, the
line that is said); ("", "") where all is well. Costs: "run", it ends at once (the error is one that no restart follows);
"attempt", of a group; "line", nothing else; "point", of an evaluation; "answer", what a tool's caller is told.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from rl_step import config as algorithm_config
from rl_step import random_rows, step
from train_support import VOCAB, make_groups

from actors.evaluator import Candidate, Evaluator
from actors.learner_report import LearnerReport
from actors.rollout import RolloutWorker
from actors.runtime.compute import ComputeThread
from actors.runtime.context import FATAL
from bus.codec import LOGPROBS, MASK, TOKENS, VERSIONS, pack
from bus.messages import Batch, ReadyGroup, Sample, Ticket
from bus.waits import WaitKind
from miles_async.config.schema import Checkpoint, Data, Learner, Model, Rollout, RunConfig, Staleness, Weights
from miles_async.config.schema import Reward as RewardSection
from miles_async.data import load_prompts
from miles_async.evaluation.hooks import EVAL_FUNCTION, EVAL_LOG_FUNCTION
from miles_async.evaluation.point import Evaluation
from miles_async.filters.apply import BufferFilter, GroupFilters
from miles_async.models.builtin import make_model
from miles_async.rewards import RewardSample, grading_process
from miles_async.rewards.graded import graded
from miles_async.rewards.sample import Request
from miles_async.rollout import agent, multi_turn, per_sample
from miles_async.rollout.failures import cause_of
from miles_async.rollout.first_failures import told
from miles_async.rollout.interface import RolloutContext
from miles_async.rollout.registry import AGENT, EXECUTE_TOOL, ROLLOUT
from miles_async.rollout.tool_parser import tool_call_parser
from miles_async.staleness.choice import make_policy
from miles_async.staleness.policies import StalenessState
from miles_async.text.tokenizer import Tokenizer
from miles_async.train.backend import make_backend
from miles_async.train.batch import flatten
from miles_async.train.checked_batch import checked as checked_batch
from miles_async.train.hooks import BATCH, BEFORE_LOG_PROB, BEFORE_TRAIN_STEP
from miles_async.train.provided_bridge import bridge_maker
from miles_async.train.ranks import alone
from miles_async.train.trainer import MegatronTrainer
from miles_async.weights.export import exported

Outcome = tuple[str, str]
Feed = Callable[[str, Path], Outcome]

FINE: Outcome = ("", "")
TICKET = Ticket(group_id="0-7-0", prompt_tokens=pack([5, 6], TOKENS), sampling_seed=40, prompt="p", label="l")
SAMPLE = Sample(
    index=0,
    tokens=pack([1, 2], TOKENS),
    logprobs=pack([0, 0], LOGPROBS),
    loss_mask=pack([1, 1], MASK),
    versions=pack([0, 0], VERSIONS),
    reward=0.5,
    finish_reason="stop",
    reward_parts={"own": 0.5},
)
READY = [
    ReadyGroup(
        group_id=f"0-{i}-0",
        payload_key=str(i),
        oldest_version=3 + i,
        newest_version=3 + i,
        n_tokens=1,
        published=0.0,
        versions=((3 + i, 1),),
    )
    for i in range(3)
]


@dataclass(frozen=True)
class Row:
    """One hook. takes: names of the wrong values (test_hook_table.py) that it may give after all. more: expressions of its own
    that it may not give. good: what it gives while ``when`` holds, before it goes wrong. said: what the line has instead of the
    key. lets_by: what goes through as it is. head: imports and classes that ``more`` needs."""

    costs: str
    feed: Feed
    takes: frozenset[str] = frozenset()
    more: dict[str, str] = field(default_factory=dict)
    when: str = ""
    good: str = ""
    said: str = ""
    lets_by: tuple[type[BaseException], ...] = ()
    head: str = ""


def config(**sections: Any) -> RunConfig:
    return RunConfig(**{"model": Model(hf_checkpoint="x"), "data": Data(prompt_data="x"), **sections})


def ends_the_run(call: Callable[[], Any]) -> Outcome:
    try:
        call()
    except FATAL as error:
        return "run", str(error)
    return FINE


def of_attempt(call: Callable[[], Any]) -> Outcome:
    try:
        call()
    except Exception as error:
        return "attempt", ": ".join(cause_of(error))
    return FINE


class Ctx:
    """What of an actor's context is used where a function is called."""

    def __init__(self, found: RunConfig) -> None:
        self.config = found
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.log = SimpleNamespace(exception=lambda *_: None, warning=lambda *_: None)

    @contextlib.contextmanager
    def waiting(self, kind: WaitKind) -> Any:
        yield SimpleNamespace(begin_again=lambda: None)

    async def event(self, kind: str, **data: Any) -> None:
        self.events.append((kind, data))

    async def metrics(self, step: int, values: dict[str, float]) -> None: ...


# --- the learner


def algorithm(key: str) -> Feed:
    def feed(path: str, _: Path) -> Outcome:
        return ends_the_run(lambda: step(algorithm_config(**{"correction": "uncorrected", key: path}), random_rows(14)))

    return feed


class Passed(Exception):
    """The function has returned, and the step goes on."""


def passed() -> None:
    raise Passed


def before_step(path: str, _: Path) -> Outcome:
    functions = [BEFORE_TRAIN_STEP.load(path)]
    stub: Any = SimpleNamespace(
        config=config(),
        version=0,
        _groups=SimpleNamespace(gather=lambda values: torch.tensor([values], dtype=torch.float64)),
        _bridge=SimpleNamespace(hf_config=SimpleNamespace(vocab_size=VOCAB)),
        _to_batch=flatten,
        _before_step=functions,
        _kept=SimpleNamespace(before_batch=lambda _: passed()),
    )

    def call() -> None:
        with contextlib.suppress(Passed):
            MegatronTrainer.step(stub, make_groups(2, 2))

    return ends_the_run(call)


def before_log_prob(path: str, _: Path) -> Outcome:
    policy = SimpleNamespace(all_logprobs=lambda sequences: sequences)
    stub: Any = SimpleNamespace(_before_log_prob=[BEFORE_LOG_PROB.load(path)], _policy=policy)
    return ends_the_run(lambda: MegatronTrainer._all_logprobs(stub, None, "current"))  # type: ignore[arg-type]


def provider(path: str, directory: Path) -> Outcome:
    def call() -> None:
        make = bridge_maker(config(model=Model(hf_checkpoint="x", model_provider=path)))
        bridge = make(str(directory), torch.float32, torch.device("cpu"))
        bridge.build()
        list(bridge.hf_tensors(torch.nn.Linear(2, 2)))

    return ends_the_run(call)


def backend(path: str, directory: Path) -> Outcome:
    found = config(learner=Learner(train_backend=path))
    return ends_the_run(lambda: make_backend(found, str(directory), alone("file://nowhere")))


def batch(path: str, _: Path) -> Outcome:
    return ends_the_run(lambda: checked_batch(BATCH.load(path))(make_groups(2, 2), VOCAB))


def report(of: str) -> Feed:
    async def said(path: str, directory: Path) -> Outcome:
        sections = {"learner": Learner(log_function=path)} if of == "log" else {}
        sections |= {"checkpoint": Checkpoint(post_save_function=path)} if of == "save" else {}
        ctx: Any = Ctx(config(**sections))
        one = LearnerReport(ctx)
        async with ComputeThread("test") as compute:
            await one.step(Batch(step=1, group_ids=("0-7-0",), payload_keys=("a",)), {"loss": 1.0}, compute)
            await one.saved(1, directory, compute)
        lines = [(kind, f"{data['key']}: {data['cause']}") for kind, data in ctx.events]
        assert all(kind == "hook_failed" for kind, _ in lines) and len(lines) < 2
        return ("line", lines[0][1]) if lines else FINE

    return lambda path, directory: asyncio.run(said(path, directory))


def policy(path: str, _: Path) -> Outcome:
    def call() -> None:
        found = make_policy(config(staleness=Staleness(policy=path, max_lag=1)))
        found.admit(StalenessState(0, 0, 2, 0, 9))
        found.evict(READY, 4)
        found.select(READY, [group.group_id for group in READY], 5, 2)

    return ends_the_run(call)


def export(path: str, _: Path) -> Outcome:
    found = config(weights=Weights(export_function=path))
    return ends_the_run(lambda: exported(found, {"w": torch.ones(2), "v": torch.ones(2)}))


def buffer(path: str, _: Path) -> Outcome:
    return ends_the_run(lambda: BufferFilter(config(rollout=Rollout(buffer_filter=path))).evict(READY, 4))


# --- the data


_model: dict[str, Tokenizer] = {}


def data_source(path: str, directory: Path) -> Outcome:
    if not _model:
        (directory / "model").mkdir()
        make_model("builtin:digits", directory / "model", seed=1)
        _model["digits"] = Tokenizer(directory / "model")
    tokenizer = _model["digits"]
    found = config(model=Model(hf_checkpoint=str(tokenizer.directory)), data=Data(prompt_data="x", data_source=path))
    return ends_the_run(lambda: load_prompts(found, tokenizer))


# --- the rollout worker


def context(**rollout: Any) -> RolloutContext:
    none: Any = None
    return RolloutContext(config(rollout=Rollout(n_samples_per_prompt=2, **rollout)), none, none, none)


def rollout(path: str, _: Path) -> Outcome:
    async def one() -> Outcome:
        found, failed = context(), list[str]()
        stub: Any = SimpleNamespace(ctx=Ctx(found.config), make=ROLLOUT.load(path), teachers=None, graded=False)
        stub.filters, stub.requests = GroupFilters(found.config), None

        async def nothing(*_: Any) -> None: ...

        async def fail(_: Any, reason: str, detail: str, *__: Any) -> None:
            failed.append(f"{reason}: {detail}")

        stub._sound = stub._publish = stub._tell_first = nothing
        stub._fail = fail
        stub.ledger = SimpleNamespace(discard=nothing)
        await RolloutWorker._rollout(stub, TICKET, found)
        return ("attempt", failed[0]) if failed else FINE

    return asyncio.run(one())


def generate(path: str, _: Path) -> Outcome:
    return of_attempt(lambda: asyncio.run(per_sample.rollout(TICKET, context(generate_function=path))))


def parser(path: str, _: Path) -> Outcome:
    return of_attempt(lambda: tool_call_parser(context(tool_call_parser=path).config)("a turn"))


def tool(path: str, _: Path) -> Outcome:
    call = {"name": "add", "arguments": {}}
    text = asyncio.run(multi_turn._answer(EXECUTE_TOOL.load(path), call, {}, 10.0))
    text.encode()
    return ("answer", text) if text.startswith("error: ") else FINE


def agents(path: str, _: Path) -> Outcome:
    async def one() -> None:
        task: Any = None
        result = await agent._play(AGENT.load(path), task, 10.0)
        if result is not None:
            agent._rewarded([SAMPLE], result, None)

    return of_attempt(lambda: asyncio.run(one()))


def filters(key: str) -> Feed:
    def feed(path: str, _: Path) -> Outcome:
        of_reward = key == "reward_post_process"
        sections = {"reward": RewardSection(**{key: path})} if of_reward else {"rollout": Rollout(**{key: path})}
        found = GroupFilters(config(**sections))
        return of_attempt(lambda: (found.refusal([SAMPLE]), found.finished([SAMPLE])))

    return feed


def reward(group: bool) -> Feed:
    def feed(path: str, _: Path) -> Outcome:
        request = Request(path, [RewardSample(prompt="p", response="r")], group)
        with asyncio.Runner() as runner:
            try:
                reply = grading_process._answer(runner, request)
            except SystemExit:  # of the grading process, which says so and is replaced (test_grading_process.py)
                return "attempt", "a reward: the grading process ended, SystemExit: mine"
        return (
            ("attempt", f"a reward: {reply.error}")
            if reply.error
            else of_attempt(lambda: graded(reply.results[0], "a"))
        )

    return feed


# --- the evaluator


def evaluation(path: str, _: Path) -> Outcome:
    stub: Any = SimpleNamespace(dataset=SimpleNamespace(name="seen", config=config()), _tokenizer=None, _ask=None)
    stub._tell = stub.generate = stub.grade = None
    stub._record = {}
    try:
        asyncio.run(Evaluation.run(stub, EVAL_FUNCTION.load(path)))
    except Exception as error:
        return "point", f"an evaluation: {told(error)}"
    return FINE


def evaluation_log(path: str, _: Path) -> Outcome:
    async def one() -> Outcome:
        ctx = Ctx(config())
        record = SimpleNamespace(add_samples=lambda *_: None)
        stub: Any = SimpleNamespace(ctx=ctx, newest=None, record=record, log_function=EVAL_LOG_FUNCTION.load(path))
        stub._close = lambda *_: None
        await Evaluator._report(stub, Candidate(1, 1, Path(), None), {}, 1.0)
        lines = [data["cause"] for kind, data in ctx.events if kind == "eval_log_failed"]
        return ("line", f"eval_log_failed: {lines[0]}") if lines else FINE

    return asyncio.run(one())


# --- the table

SCALARS = frozenset({"np_scalar", "torch_scalar", "true"})
ANY = frozenset({"*"})

BRIDGE = """
import torch, types
class Bridge:
    def __init__(self, path, dtype, device):
        self.path, self.config, self.hf_config = path, object(), types.SimpleNamespace(vocab_size=9)
    def build(self): return torch.nn.Linear(2, 2)
    def hf_tensors(self, module): return module.named_parameters()
def changed(path, **fields):
    found = Bridge(path, None, None)
    vars(found).update(fields)
    return found
"""
POLICY = """
class Policy:
    max_lag = 1
    def admit(self, state): return 1
    def evict(self, ready, version): return []
    def select(self, ready, open_order, version, batch_size): return None
def policy(**fields):
    return type("Mine", (Policy,), {k: v if k in ("max_lag", "surplus") else staticmethod(v) for k, v in fields.items()})()
"""
FLAT = """
import dataclasses
from miles_async.train.backend import make_backend
from miles_async.train.batch import flatten
def changed(groups, vocab_size, **fields):
    return dataclasses.replace(flatten(groups, vocab_size), **fields)
def beyond(flat):
    sequences = dataclasses.replace(flat.sequences, tokens=flat.sequences.tokens + 10**6)
    return dataclasses.replace(flat, sequences=sequences)
"""
TERMS = "from miles_async.rl.terms import Correction\n"

ROWS: dict[tuple[str, tuple[str, ...]], Row] = {
    ("algorithm.advantage_estimator", ("terms", "algorithm")): Row(
        "run",
        algorithm("advantage_estimator"),
        when="len(terms.mask) == 2",
        good="torch.zeros(2)",
        more={
            "of_samples": "terms.rewards",
            "nan_tokens": "terms.behaviour * float('nan')",
            "beyond_float32": "terms.behaviour.double() * 0 + 1e39",
            "bools": "terms.mask",
            "on_another_device": "terms.behaviour.to('meta')",
        },
    ),
    ("algorithm.policy_loss", ("terms", "algorithm")): Row(
        "run",
        algorithm("policy_loss"),
        when="len(terms.mask) == 2",
        good="(-terms.logprobs, {'mine': terms.behaviour})",
        head=TERMS,
        more={
            "a_sum": "(-terms.logprobs.sum(), {'mine': terms.behaviour})",
            "without_gradient": "(-terms.behaviour, {'mine': terms.behaviour})",
            "no_metrics": "(-terms.logprobs, None)",
            "a_metric_less": "(-terms.logprobs, {})",
            "a_metric_more": "(-terms.logprobs, {'mine': terms.behaviour, 'other': terms.behaviour})",
            "a_metric_that_is_a_number": "(-terms.logprobs, {'mine': 0.5})",
            "a_name_of_half_a_letter": "(-terms.logprobs, {'\\ud800': terms.behaviour})",
        },
    ),
    ("algorithm.correction", ("terms", "algorithm")): Row(
        "run",
        algorithm("correction"),
        when="len(terms.mask) == 2",
        good="Correction(torch.ones(2), {})",
        head=TERMS,
        more={
            "of_samples": "Correction(torch.ones(terms.n_samples), {})",
            "nan_weights": "Correction(terms.behaviour * float('nan'), {})",
            "keep_of_another_length": "Correction(torch.ones_like(terms.behaviour), {}, torch.ones(1))",
            "keep_that_is_a_list": "Correction(torch.ones_like(terms.behaviour), {}, [True])",
            "metrics_that_are_none": "Correction(torch.ones_like(terms.behaviour), None)",
            "a_metric_more": "Correction(torch.ones_like(terms.behaviour), {'a': terms.behaviour})",
        },
    ),
    ("algorithm.loss_aggregation", ("mask", "sample_index", "rollout_index", "totals", "config")): Row(
        "run",
        algorithm("loss_aggregation"),
        when="len(mask) == 2",
        good="mask.double()",
        more={
            "of_samples": "rollout_index.double()",
            "nan_tokens": "mask.double() * float('nan')",
            "bools": "mask",
        },
    ),
    ("learner.train_backend", ("config", "model_path", "ranks")): Row(
        "run",
        backend,
        more={"half_of_one": "type('Half', (), {'version': 0, 'step': print, 'close': print})()"},
    ),
    ("model.model_provider", ("path", "dtype", "device")): Row(
        "run",
        provider,
        head=BRIDGE,
        more={
            "no_path": "changed(path, path=None)",
            "a_path_that_is_none": "changed(path, path='/no/such/place')",
            "a_vocabulary_of_text": "changed(path, hf_config=types.SimpleNamespace(vocab_size='9'))",
            "builds_nothing": "changed(path, build=lambda: None)",
            "builds_no_parameter": "changed(path, build=torch.nn.Identity)",
            "build_raises": "changed(path, build=lambda: 1 / 0)",
            "gives_no_pairs": "changed(path, hf_tensors=lambda module: None)",
            "gives_arrays": "changed(path, hf_tensors=lambda module: [('w', np.zeros(2))])",
            "gives_a_name_twice": "changed(path, hf_tensors=lambda module: [('w', torch.ones(1))] * 2)",
            "stops_half_way": "changed(path, hf_tensors=lambda module: (1 / 0 for _ in '12'))",
        },
    ),
    ("learner.batch_function", ("groups", "vocab_size")): Row(
        "run",
        batch,
        head=FLAT,
        more={
            "float32_rewards": "changed(groups, vocab_size, rewards=np.zeros(4, np.float32))",
            "fewer_rewards": "changed(groups, vocab_size, rewards=np.zeros(3))",
            "nan_rewards": "changed(groups, vocab_size, rewards=np.full(4, np.nan))",
            "a_list": "changed(groups, vocab_size, rewards=[0.0] * 4)",
            "tokens_beyond": "beyond(flatten(groups, vocab_size))",
            "samples_in_disorder": "changed(groups, vocab_size, "
            "sample_index=flatten(groups, vocab_size).sample_index[::-1].copy())",
            "groups_that_are_not_there": "changed(groups, vocab_size, group_index=np.full(4, 7))",
            "no_sequences": "changed(groups, vocab_size, sequences=None)",
        },
    ),
    ("learner.before_log_prob_function", ("trainer", "name")): Row("run", before_log_prob, takes=ANY),
    ("learner.before_train_step_function", ("trainer", "step")): Row("run", before_step, takes=ANY),
    ("learner.log_function", ("step", "metrics")): Row(
        "line",
        report("log"),
        takes=frozenset({"none", "parts"}),
        more={
            "text_value": "{'a': '0.5'}",
            "array_value": "{'a': np.zeros(3)}",
            "a_name_of_half_a_letter": "{'\\ud800': 1.0}",
        },
    ),
    ("checkpoint.post_save_function", ("version", "directory")): Row("line", report("save"), takes=ANY),
    ("data.data_source", ("config", "tokenizer")): Row("run", data_source, lets_by=(KeyboardInterrupt,)),
    ("reward.rm_type", ("sample",)): Row("attempt", reward(False), takes=SCALARS, said="a reward"),
    ("reward.rm_type", ("samples",)): Row(
        "attempt", reward(True), said="a reward", more={"nan_in_it": "[float('nan')]", "one_too_many": "[0.0, 1.0]"}
    ),
    ("reward.rm_types", ("sample",)): Row("attempt", reward(False), takes=SCALARS, said="a reward"),
    ("reward.rm_weights", ("sample",)): Row("attempt", reward(False), takes=SCALARS, said="a reward"),
    ("rollout.rollout_function", ("ticket", "context")): Row("attempt", rollout),
    ("rollout.generate_function", ("ticket", "index", "context")): Row(
        "attempt",
        generate,
        head="import msgspec\nfrom hook_rows import SAMPLE\n",
        more={
            "a_reward_of_text": "[msgspec.structs.replace(SAMPLE, reward='1')]",
            "a_reward_of_three": "[msgspec.structs.replace(SAMPLE, reward=np.zeros(3))]",
            "a_part_of_text": "[msgspec.structs.replace(SAMPLE, reward_parts={'a': '1'})]",
            "another_length": "[msgspec.structs.replace(SAMPLE, tokens=b'1234')]",
        },
    ),
    ("rollout.tool_call_parser", ("text",)): Row(
        "attempt",
        parser,
        more={
            "no_arguments": "[{'name': 'add'}]",
            "arguments_of_text": "[{'name': 'add', 'arguments': '{}'}]",
            "arguments_by_number": "[{'name': 'add', 'arguments': {1: 2}}]",
            "no_name": "[{'name': None, 'arguments': {}}]",
        },
    ),
    ("rollout.execute_tool_function", ("name", "arguments", "metadata")): Row(
        "answer", tool, takes=ANY, said="error: "
    ),
    ("rollout.agent_function", ("task",)): Row("attempt", agents, takes=SCALARS | {"none"}, said="the agent"),
    ("rollout.dynamic_sampling_filter", ("samples",)): Row(
        "attempt",
        filters("dynamic_sampling_filter"),
        takes=frozenset({"true"}),
        more={"a_reason_of_none": "(False, None)", "three": "(False, 'a', 'b')"},
    ),
    ("rollout.sample_filter", ("samples",)): Row(
        "attempt", filters("sample_filter"), more={"too_many": "[True, True]", "numbers": "[1]"}
    ),
    ("reward.reward_post_process", ("samples",)): Row(
        "attempt",
        filters("reward_post_process"),
        more={"too_many": "[0.0, 1.0]", "nan_in_it": "[float('nan')]", "a_tensor_in_it": "[torch.zeros(3)]"},
    ),
    ("rollout.buffer_filter", ("ready", "version")): Row(
        "run", buffer, more={"unknown": "['nobody']", "lists": "[['0-0-0']]", "groups": "ready"}
    ),
    ("staleness.policy", ("staleness", "rollout")): Row(
        "run",
        policy,
        head=POLICY,
        more={
            "a_larger_bound": "policy(max_lag=2)",
            "a_bound_of_none": "policy(max_lag=None)",
            "a_surplus_that_nobody_asked_for": "policy(surplus=1)",
            "admits_half": "policy(admit=lambda state: 0.5)",
            "admits_nan": "policy(admit=lambda state: float('nan'))",
            "admits_true": "policy(admit=lambda state: True)",
            "admit_raises": "policy(admit=lambda state: 1 / 0)",
            "evicts_nobody_known": "policy(evict=lambda ready, version: [('nobody', 'stale')])",
            "evicts_for_no_reason": "policy(evict=lambda ready, version: [(ready[0].group_id, None)])",
            "evicts_with_a_speech": "policy(evict=lambda ready, version: [(ready[0].group_id, 'too old, I think')])",
            "evicts_none": "policy(evict=lambda ready, version: None)",
            "selects_nobody_known": "policy(select=lambda ready, order, version, size: ('nobody', order[1]))",
            "selects_one_too_few": "policy(select=lambda ready, order, version, size: (order[2],))",
            "selects_none_at_all": "policy(select=lambda ready, order, version, size: ())",
            "selects_one_twice": "policy(select=lambda ready, order, version, size: (order[2],) * 2)",
            "selects_too_old": "policy(select=lambda ready, order, version, size: order[:2])",
            "selects_lists": "policy(select=lambda ready, order, version, size: [[1], [2]])",
        },
    ),
    ("weights.export_function", ("tensors",)): Row(
        "run",
        export,
        more={
            "nothing": "[]",
            "twice": "[*tensors] * 2",
            "arrays": "[(name, np.zeros(2)) for name, _ in tensors]",
            "names_of_half_a_letter": "[('\\ud800', tensor) for _, tensor in tensors]",
            "numbers_for_names": "[(1, tensor) for _, tensor in tensors]",
            "without_bytes": "[(name, tensor.to('meta')) for name, tensor in tensors]",
            "stops_half_way": "(1 / 0 for _ in tensors)",
        },
    ),
    ("eval.eval_function", ("dataset", "generate", "grade")): Row(
        "point",
        evaluation,
        said="an evaluation",
        more={
            "nan_value": "{'seen': float('nan')}",
            "another_name": "{'other': 1.0}",
            "text_value": "{'seen': '1'}",
            "array_value": "{'seen': np.zeros(3)}",
        },
    ),
    ("eval.eval_log_function", ("version", "results")): Row("line", evaluation_log, takes=ANY, said="eval_log_failed"),
}
