"""A configuration that says what a run would never do is refused with the key, its value and what it belongs to."""

from __future__ import annotations

import msgspec
import pytest

from miles_async.cli.load import effect_rules, parse
from miles_async.config.schema import ConfigError, RunConfig
from miles_async.rl.builtin.table import ESTIMATORS

MINIMAL = (
    '[model]\nhf_checkpoint = "builtin:digits"\n[data]\nprompt_data = "builtin:repeat"\n'
    '[algorithm]\ncorrection = "behaviour"\n'
)
EVAL = '[eval.datasets.seen]\nprompt_data = "builtin:repeat"\n'


def refusal(*overrides: str, text: str = MINIMAL) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(text, overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "key", "needs"),
    [
        (["algorithm.tis_clip=3"], "algorithm.tis_clip = 3.0", '"tis"'),
        (["algorithm.mis_upper=3"], "algorithm.mis_upper = 3.0", '"mis"'),
        (["algorithm.opsm_delta=1"], "algorithm.opsm_delta = 1.0", '"opsm"'),
        (["algorithm.ref_load=none", "algorithm.kl_loss_type=k3"], "algorithm.kl_loss_type = 'k3'", "use_kl_loss"),
        (["algorithm.loss_constant=9"], "algorithm.loss_constant = 9.0", '"constant"'),
        (["algorithm.lambd=0.9"], "algorithm.lambd = 0.9", '"ppo"'),
        (["algorithm.gamma=0.9"], "algorithm.gamma = 0.9", '"reinforce_plus_plus"'),
        (["algorithm.opd_kl_coef=2"], "algorithm.opd_kl_coef = 2.0", "algorithm.use_opd"),
        (
            ["algorithm.advantage_estimator=dr_grpo", "algorithm.grpo_std_normalization=false"],
            "algorithm.grpo_std_normalization = False",
            '"grpo"',
        ),
        (
            ["algorithm.advantage_estimator=rloo", "algorithm.disable_rewards_normalization=true"],
            "algorithm.disable_rewards_normalization = True",
            "grpo, gspo, reinforce_plus_plus_baseline",
        ),
        (["rollout.max_turns=2"], "rollout.max_turns = 2", '"multi_turn"'),
        (["rollout.agent_timeout_s=2"], "rollout.agent_timeout_s = 2.0", '"agent"'),
        (["rollout.opd_teacher_urls={default = 'http://a'}"], "rollout.opd_teacher_urls", "algorithm.use_opd"),
        (["reward.rm_url=http://a"], "reward.rm_url", '"remote_rm"'),
        (["reward.group_rm=true"], "reward.group_rm = True", "a function of yours"),
        (["data.metadata_key=none", "reward.rm_types=['f1']"], "reward.rm_types", "data.metadata_key"),
        (["data.apply_chat_template_kwargs={a = 1}"], "data.apply_chat_template_kwargs", "apply_chat_template = true"),
        (
            [
                "rollout.rollout_function=sft",
                "algorithm.loss_type=sft_loss",
                "algorithm.correction=[]",
                "reward.rm_type=math",
            ],
            "reward.rm_type = 'math'",
            "sft grades none",
        ),
        (["learner.min_lr=1e-9"], "learner.min_lr = 1e-09", "learner.lr_decay_steps"),
        (["engine.urls=['http://a']"], "engine.urls", '"external"'),
        (["engine.args=['--a']"], "engine.args", '"sglang"'),
        (["weights.delta_dir=d"], "weights.delta_dir", '"disk_delta"'),
        (["weights.transport=disk", "weights.bucket_mb=3"], "weights.bucket_mb = 3", '"collective"'),
        (["bus.url=redis://a", "bus.maxmemory_mb=3"], "bus.maxmemory_mb = 3", "bus.url"),
        (["record.level=off", "record.learner_log_probs=true"], "record.learner_log_probs = True", "record.level"),
        (["eval.keep_snapshots=3"], "eval.keep_snapshots = 3", "eval.eval_interval"),
    ],
)
def test_a_key_that_nothing_would_look_at_is_refused(overrides: list[str], key: str, needs: str) -> None:
    message = refusal(*overrides)
    assert message.startswith(key) and "has no effect" in message and needs in message


def test_a_dataset_without_an_interval_is_refused() -> None:
    assert "eval.datasets has no effect: it needs eval.eval_interval" in refusal(text=MINIMAL + EVAL)
    parse(MINIMAL + EVAL, ["eval.eval_interval=2"])


def test_what_a_function_of_the_users_may_look_at_is_not_refused(tmp_path) -> None:
    (tmp_path / "mine.py").write_text(
        "async def make(ticket, context): ...\nasync def one(ticket, index, context): ...\n"
        "def score(sample): return 1.0\ndef corrects(terms, algorithm): ...\ndef estimates(terms, algorithm): ...\n"
    )
    for override, key in (
        ("rollout.rollout_function=mine.make", "rollout.max_turns=2"),
        ("rollout.generate_function=mine.one", "rollout.agent_timeout_s=3"),
        ("reward.rm_type=mine.score", "reward.rm_url=http://a"),
        ("algorithm.correction=mine.corrects", "algorithm.tis_clip=3"),
        ("algorithm.advantage_estimator=mine.estimates", "algorithm.lambd=0.9"),
        ("reward.rm_type=mine.score", "reward.reward_key=style"),
    ):
        parse(MINIMAL, [override, key], base=tmp_path)


@pytest.mark.parametrize("estimator", [name for name, entry in ESTIMATORS.items() if entry.compares_in_group])
def test_a_group_of_one_is_refused_where_rewards_are_compared_within_a_group(estimator: str) -> None:
    message = refusal("rollout.n_samples_per_prompt=1", f"algorithm.advantage_estimator={estimator}")
    assert message.startswith("rollout.n_samples_per_prompt = 1") and f'"{estimator}"' in message
    parse(MINIMAL, ["rollout.n_samples_per_prompt=2", f"algorithm.advantage_estimator={estimator}"])


def test_a_group_of_one_is_allowed_where_something_else_is_learnt() -> None:
    parse(MINIMAL, ["rollout.n_samples_per_prompt=1", "algorithm.advantage_estimator=ppo"])
    parse(MINIMAL, ["rollout.n_samples_per_prompt=1", "algorithm.advantage_estimator=reinforce_plus_plus"])
    parse(MINIMAL, ["rollout.n_samples_per_prompt=1", "algorithm.disable_rewards_normalization=true"])
    distil = ["algorithm.use_opd=true", "rollout.opd_teacher_urls={default = 'http://a'}"]
    parse(MINIMAL, ["rollout.n_samples_per_prompt=1", *distil])
    whole = ["rollout.n_samples_per_prompt=1", "rollout.rollout_batch_size=1"]
    assert "trains nothing" in refusal(*whole, "algorithm.advantage_estimator=reinforce_plus_plus")


@pytest.mark.parametrize(
    ("overrides", "why"),
    [
        (["rollout.n_samples_per_prompt=1", "algorithm.advantage_estimator=ppo"], "rollout.n_samples_per_prompt = 1"),
        (["rollout.rollout_function=sft", "algorithm.loss_type=sft_loss"], '"sft" gives no rewards'),
    ],
)
def test_a_filter_that_no_group_could_pass_is_refused(overrides: list[str], why: str) -> None:
    text = MINIMAL.replace('correction = "behaviour"', "") if "sft" in why else MINIMAL
    message = refusal(*overrides, "rollout.dynamic_sampling_filter=nonzero_std", text=text)
    assert message.startswith('rollout.dynamic_sampling_filter = "nonzero_std" refuses every group') and why in message
    parse(text, [*overrides, "rollout.dynamic_sampling_filter=no_aborted"])
    parse(MINIMAL, ["rollout.n_samples_per_prompt=2", "rollout.dynamic_sampling_filter=nonzero_std"])


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["learner.lr_decay_steps=5", "learner.min_lr=1"], ["learner.min_lr = 1.0", "learner.lr = 1e-06"]),
        (["learner.lr_decay_steps=5", "learner.lr_warmup_steps=5"], ["learner.lr_warmup_steps = 5", "decay_steps = 5"]),
        (
            [
                "learner.lr_decay_steps=5",
                "critic.critic_lr_warmup_steps=6",
                "algorithm.advantage_estimator=ppo",
            ],
            ["critic.critic_lr_warmup_steps = 6", "learner.lr_decay_steps = 5"],
        ),
    ],
)
def test_schedules_that_contradict_each_other_are_refused(overrides: list[str], parts: list[str]) -> None:
    message = refusal(*overrides)
    assert all(part in message for part in parts)


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("rollout.rollout_top_k=0", "rollout.rollout_top_k = 0: expected 1 or more, or -1"),
        ("rollout.rollout_top_k=-2", "rollout.rollout_top_k = -2"),
        ("rollout.rollout_stop=['a', '']", "rollout.rollout_stop"),
        ("rollout.rollout_stop_token_ids=[-1]", "rollout.rollout_stop_token_ids = [-1]"),
        ("eval.eval_top_k=0", "eval.eval_top_k = 0"),
        ("eval.datasets.seen.top_k=0", "eval.datasets.seen.top_k = 0"),
        ("eval.datasets.seen.stop=['']", "eval.datasets.seen.stop"),
        ("eval.datasets.seen.stop_token_ids=[-5]", "eval.datasets.seen.stop_token_ids"),
    ],
)
def test_sampling_that_no_engine_can_do_is_refused(override: str, part: str) -> None:
    assert part in refusal(override, "eval.eval_interval=2", text=MINIMAL + EVAL)


@pytest.mark.parametrize("rm_type", ["graded_match", "exact_match", "f1", "dapo", "boxed_f1"])
def test_a_reward_that_needs_a_label_is_refused_without_one(rm_type: str) -> None:
    assert f'"{rm_type}" compares with a label' in refusal("data.label_key=none", f"reward.rm_type={rm_type}")
    points = ["eval.eval_interval=2", "eval.datasets.seen.label_key=''", f"eval.datasets.seen.rm_type={rm_type}"]
    assert "eval.datasets.seen.label_key" in refusal(*points, text=MINIMAL + EVAL)


def test_a_part_that_a_built_in_reward_does_not_have_is_refused() -> None:
    assert 'reward.reward_key = "x" has no effect' in refusal("reward.reward_key=x")
    assert "gives score, acc" in refusal("reward.reward_key=x", "reward.rm_type=dapo")
    parse(MINIMAL, ["reward.reward_key=acc", "reward.rm_type=dapo"])


def test_every_rule_names_keys_that_exist() -> None:
    sections = {field.name: field.type for field in msgspec.structs.fields(RunConfig)}
    for rule in effect_rules():
        for key in rule.keys:
            section, _, name = key.partition(".")
            assert name in sections[section].__struct_fields__, key
