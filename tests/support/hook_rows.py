"""A row for each hook of ``hook_points.HOOKS``: how its function is fed, what a failure of it costs, what it may not give."""

from __future__ import annotations

from hook_feed import Row
from hook_feeds_evaluator import evaluation, evaluation_log
from hook_feeds_learner import (
    algorithm,
    batch,
    before_log_prob,
    before_step,
    buffer,
    export,
    policy,
    provider,
    report,
)
from hook_feeds_rollout import agents, data_source, filters, generate, parser, reward, rollout, tool

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
    ("reward.rm_type", ("sample",)): Row("attempt", reward(False), takes=SCALARS, said=".py:wrong: "),
    ("reward.rm_type", ("samples",)): Row(
        "attempt", reward(True), said=".py:wrong: ", more={"nan_in_it": "[float('nan')]", "one_too_many": "[0.0, 1.0]"}
    ),
    ("reward.rm_types", ("sample",)): Row("attempt", reward(False), takes=SCALARS, said=".py:wrong: "),
    ("reward.rm_weights", ("sample",)): Row("attempt", reward(False), takes=SCALARS, said=".py:wrong: "),
    ("rollout.rollout_function", ("ticket", "context")): Row("attempt", rollout),
    ("rollout.generate_function", ("ticket", "index", "context")): Row(
        "attempt",
        generate,
        head="import msgspec\nfrom hook_feed import SAMPLE\n",
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
