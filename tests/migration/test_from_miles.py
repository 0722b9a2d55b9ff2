"""A launch script of Miles or slime becomes a configuration: each flag is a key, or is named with the reason."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from miles_async.cli.app import app
from miles_async.cli.load import effect_rules, load
from miles_async.config.typed import key_types
from miles_async.migration.script import read
from miles_async.migration.table import KEYS, SETS, WITHOUT
from miles_async.migration.together import DEFAULTS, LOOKED_AT
from miles_async.migration.translate import Translation, translate

SCRIPT = r"""
#!/bin/bash
# how many there are
export GPUS=${GPUS:-4}
BASE=/models/qwen
source scripts/models/qwen3-4B.sh
CKPT_ARGS=(
   --hf-checkpoint ${BASE}/Qwen3-4B   # a comment
   --ref-load ${BASE}/torch_dist
   --load $OUTPUT --save "$OUTPUT"
   --save-interval 20
)
ROLLOUT_ARGS=(
   --prompt-data /data/dapo-math.jsonl
   --input-key prompt --label-key label
   --apply-chat-template --rollout-shuffle
   --rm-type deepscaler
   --num-rollout 3000 --rollout-batch-size 32 --n-samples-per-prompt 8
   --rollout-max-response-len 8192 --rollout-temperature 0.8
   --global-batch-size 128
   --rollout-stop "</answer>" "<|end|>"
   --dynamic-sampling-filter-path miles.rollout.filter_hub.dynamic_sampling_filters.check_reward_nonzero_std
   --max-weight-staleness 2
)
EVAL_ARGS=(--eval-interval 20 --eval-prompt-data aime /data/aime.jsonl amc /data/amc.jsonl --n-samples-per-eval-prompt 16)
PERF_ARGS=(
   --tensor-model-parallel-size 2 --sequence-parallel --context-parallel-size 2
   --recompute-granularity full --recompute-method uniform --recompute-num-layers 1
   --use-dynamic-batch-size --max-tokens-per-gpu 9216
)
GRPO_ARGS=(--advantage-estimator grpo --kl-loss-type low_var_kl --eps-clip 0.2 --eps-clip-high 0.28 --use-tis)
OPTIMIZER_ARGS=(--optimizer adam --lr 1e-6 --lr-decay-style cosine --weight-decay 0.1 --adam-beta1 0.9 --adam-beta2 0.98)
SGLANG_ARGS=(--rollout-num-gpus-per-engine 2 --sglang-mem-fraction-static 0.7 --sglang-log-level warning)
UNUSED_ARGS=(--lr 5)
ray start --head --num-gpus ${GPUS} --disable-usage-stats
ray job submit --address="http://127.0.0.1:8265" \
   --runtime-env-json='{"env_vars": {"A": "--lr 3"}}' \
   -- python3 train_async.py \
   --actor-num-nodes 2 --actor-num-gpus-per-node ${GPUS} --rollout-num-gpus 8 \
   ${MODEL_ARGS[@]} ${CKPT_ARGS[@]} ${ROLLOUT_ARGS[@]} ${EVAL_ARGS[@]} ${PERF_ARGS[@]} ${GRPO_ARGS[@]} \
   ${OPTIMIZER_ARGS[@]} ${SGLANG_ARGS[@]} --colocate --rollout-batch-sizes 3
"""


def translated(*flags: str) -> Translation:
    return translate(read(f"ARGS=(--hf-checkpoint a {' '.join(flags)})"), effect_rules())


@pytest.fixture
def converted(tmp_path: Path) -> tuple[Result, Path]:
    script, out = tmp_path / "run-qwen.sh", tmp_path / "run.toml"
    script.write_text(SCRIPT)
    return CliRunner().invoke(app, ["convert", str(script), "-o", str(out), "--json"]), out


def test_a_launch_script_becomes_a_configuration_that_means_the_same(converted: tuple[Result, Path]) -> None:
    result, out = converted
    assert result.exit_code == 0, result.output
    config = load(out, check=False)
    model, data, rollout, learner = config.model, config.data, config.rollout, config.learner
    assert (model.hf_checkpoint, model.dtype) == ("/models/qwen/Qwen3-4B", "bfloat16")
    assert (data.prompt_data, data.input_key, data.label_key) == ("/data/dapo-math.jsonl", "prompt", "label")
    assert data.apply_chat_template and data.rollout_shuffle
    assert (config.run.num_steps, rollout.rollout_batch_size, rollout.n_samples_per_prompt) == (3000, 32, 8)
    assert (rollout.rollout_temperature, rollout.rollout_stop) == (0.8, ["</answer>", "<|end|>"])
    assert rollout.dynamic_sampling_filter == "nonzero_std" and config.reward.rm_type == "deepscaler"
    assert (learner.num_ranks, learner.tensor_parallel_size, learner.sequence_parallel) == (8, 2, True)
    assert learner.max_tokens_per_micro_batch == 9216 * 2  # there it is of a GPU, here of the ranks of a context
    assert (learner.lr, learner.weight_decay, learner.adam_beta2) == (1e-6, 0.1, 0.98)
    assert (learner.lr_decay_style, learner.lr_decay_steps) == ("cosine", 3000 * 2)
    assert (config.algorithm.correction, config.algorithm.old_log_probs) == (["tis"], "recompute")
    assert config.algorithm.loss_aggregation == "sample"  # Miles' mean, without --calculate-per-token-loss
    assert config.staleness.max_lag == 3  # counted there from one version before
    assert (config.engine.kind, config.engine.num_engines, config.engine.tp_size) == ("sglang", 4, 2)
    assert config.engine.args == ["--mem-fraction-static", "0.7", "--log-level", "warning"]
    assert (config.placement.kind, config.placement.learner.num_gpus, config.placement.engine.num_gpus) == ("ray", 1, 2)
    assert {name: d.prompt_data for name, d in config.eval.datasets.items()} == {
        "aime": "/data/aime.jsonl",
        "amc": "/data/amc.jsonl",
    }


def test_each_flag_without_a_key_is_named_with_the_reason_also_in_the_file(converted: tuple[Result, Path]) -> None:
    result, out = converted
    without = json.loads(result.stdout)["without"]
    assert "another file" in without["${MODEL_ARGS[@]}"]
    assert "torch_dist" in without["--ref-load /models/qwen/torch_dist"]
    assert without["--save ${OUTPUT}"].startswith("checkpoints lie in the run directory")
    assert "never share a GPU" in without["--colocate"]
    assert "no effect: it needs algorithm.use_kl_loss = true" in without["--kl-loss-type low_var_kl"]
    assert without["--rollout-batch-sizes 3"] == "not known; did you mean --rollout-batch-size?"
    assert without["--use-dynamic-batch-size"] == "it is always so here"
    text = out.read_text()
    assert all(f"#   {flag}: {reason}\n" in text for flag, reason in without.items())
    assert "disable-usage-stats" not in text and "runtime-env-json" not in text and "lr = 5" not in text


def test_every_flag_is_in_one_place_and_every_key_is_one_of_ours() -> None:
    known = key_types()
    assert [key for key in KEYS.values() if key not in known] == []
    assert [key for words in SETS.values() for keys in words.values() for key in keys if key not in known] == []
    assert [key for keys in DEFAULTS.values() for key in keys if key not in known] == []
    assert KEYS.keys() & (SETS.keys() | WITHOUT.keys() | LOOKED_AT) == set()
    assert all(reason and "\n" not in reason for reason in WITHOUT.values())


def test_what_miles_does_of_itself_and_a_run_here_would_not_is_said() -> None:
    sync = translated("--rm-type math").keys
    assert sync["staleness.max_lag"] == 0 and sync["data.label_key"] == "none" and not sync["data.rollout_shuffle"]
    assert sync["rollout.n_samples_per_prompt"] == 1 and sync["learner.adam_beta2"] == 0.999
    assert translated("--calculate-per-token-loss").keys["algorithm.loss_aggregation"] == "token"
    given = translated("--adam-beta2 0.95 --rollout-shuffle --label-key answer").keys
    assert (given["learner.adam_beta2"], given["data.rollout_shuffle"], given["data.label_key"]) == (
        0.95,
        True,
        "answer",
    )


@pytest.mark.parametrize(
    ("flags", "correction", "lag"),
    [
        ("--fully-async", ["uncorrected"], 1),
        ("--fully-async --update-weights-interval 3", ["uncorrected"], 3),
        ("--fully-async --max-weight-staleness 0 --use-rollout-logprobs --use-opsm", ["behaviour", "opsm"], 1),
        ("--fully-async --keep-old-actor", None, 1),
        ("--use-tis --custom-tis-function-path m.corrections.icepop_function", ["icepop"], 0),
    ],
)
def test_what_is_done_about_older_tokens_is_what_miles_does(flags: str, correction: object, lag: int) -> None:
    found = translated(flags).keys
    assert (found.get("algorithm.correction"), found["staleness.max_lag"]) == (correction, lag)
    assert found.get("algorithm.old_log_probs") == (
        "recompute" if correction not in (None, ["behaviour", "opsm"]) else None
    )


def test_values_that_are_none_of_ours_or_of_the_running_script_are_named(tmp_path: Path) -> None:
    found = translated("--loss-type custom_loss --lr ${LR} --rm-type ifbench --lr-decay-style WSD --num-rollout 1e3")
    assert 'algorithm.loss_type = "custom_loss": expected one of' in found.without["--loss-type custom_loss"]
    assert found.without["--lr ${LR}"] == "learner.lr: only the running script knows its value"
    assert 'there is no "ifbench" here' in found.without["--rm-type ifbench"]
    assert "none of constant, linear, cosine" in found.without["--lr-decay-style WSD"]
    assert "run.num_steps" in found.without["--num-rollout 1e3"]
    assert found.keys["reward.rm_type"] == "my_reward.py:reward"  # which a launch does not find until it is written


def test_supervised_fine_tuning_asks_no_engine_and_no_reward() -> None:
    rollout = "--rollout-function-path slime.rollout.sft_rollout.generate_rollout"
    found = translated("--loss-type sft_loss", rollout, "--rollout-num-gpus 8 --rollout-batch-size 128").keys
    assert found["rollout.rollout_function"] == "sft" and found["algorithm.loss_type"] == "sft_loss"
    assert not [key for key in found if key.startswith(("engine.", "reward.", "algorithm.correction"))]


def test_flags_in_the_texts_of_a_python_launcher_are_read_and_nothing_is_run(tmp_path: Path) -> None:
    script = tmp_path / "run_qwen.py"
    script.write_text(
        "raise SystemExit('not run')\nn = 3\n"
        "rollout = f'--num-rollout 40 --rollout-batch-size {n} ' '--rm-type math '\n"
        "execute(train_args='--hf-checkpoint /m --lr 2e-6 ' + rollout, train_script='train_async.py')\n"
        "print('say --lr 7')\n"
    )
    flags = read(script.read_text(), is_python=True)
    assert flags.is_async and flags.flags["--lr"] == ["2e-6"] and flags.flags["--num-rollout"] == ["40"]
    assert flags.flags["--rollout-batch-size"][0].startswith("${")


def test_what_holds_no_flags_or_would_be_replaced_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty.sh").write_text("echo --verbose\n")
    (tmp_path / "broken.py").write_text("def (")
    (tmp_path / "run.toml").write_text("mine")
    (tmp_path / "run.sh").write_text("ARGS=(--lr 1)\n")
    for words, said in (
        (["empty.sh", "out.toml"], "no flags of Miles or slime"),
        (["broken.py", "out.toml"], "is no Python"),
        (["run.sh", "-o", "run.toml"], "is there already"),
        (["run.sh", "nowhere/run.toml"], "no such directory"),
        (["run.sh"], "expected one OUT"),
    ):
        paths = [word if word == "-o" else str(tmp_path / word) for word in words]
        result = CliRunner().invoke(app, ["convert", *paths])
        assert result.exit_code == 2 and result.stderr.count("\n") == 1 and said in result.stderr, result.stderr
    assert (tmp_path / "run.toml").read_text() == "mine" and not (tmp_path / "out.toml").exists()
