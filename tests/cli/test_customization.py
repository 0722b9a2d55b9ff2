"""docs/customization.md is true: its table lists the hooks, its examples run; what is wrong is refused at the start."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from launching import launch, summary, write_config

from miles_async.cli.hook_points import HOOKS, table
from miles_async.cli.load import load
from miles_async.config.schema import Algorithm, ConfigError
from miles_async.rl.terms import StepTerms

DOC = (Path(__file__).parents[2] / "docs" / "customization.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", DOC, re.DOTALL)


def written(tmp_path: Path) -> Path:
    """The document's examples, as the one file that a user would write."""
    file = tmp_path / "my_rl.py"
    file.write_text("\n\n".join(BLOCKS))
    return file


def test_the_table_of_the_document_is_the_list_of_hooks() -> None:
    assert table() in DOC
    called = [(hook.key, hook.parameters) for hook in HOOKS]
    assert len(called) == len(set(called))


def test_a_run_takes_a_policy_an_engine_kind_a_transport_a_backend_and_functions_from_a_file(tmp_path: Path) -> None:
    written(tmp_path)
    config = write_config(
        tmp_path,
        run={"num_steps": 3, "seed": 3, "stop_timeout_s": 20.0},
        algorithm={
            "advantage_estimator": "my_rl.py:median_baseline",
            "correction": ["my_rl.py:soft", "veto"],
            "policy_loss": "my_rl.py:plain",
        },
        reward={"rm_type": "my_rl.py:short"},
        staleness={"policy": "my_rl.py:newest_first"},
        learner={"train_backend": "my_rl.py:Counting"},
        engine={"kind": "my_rl.py:Noted"},
        weights={"transport": "my_rl.py:TimedDisk"},
        rollout={
            "rollout_batch_size": 8,
            "n_samples_per_prompt": 4,
            "rollout_max_response_len": 10,
            "dynamic_sampling_filter": "my_rl.py:keep",
        },
    )
    with (tmp_path / "my_rl.py").open("a") as file:
        file.write("\ndef keep(samples):\n    return True\n")
    result = launch(config, tmp_path / "run")
    assert result.returncode == 0, result.stderr
    found = summary(tmp_path / "run")
    assert found["steps"] == 3 and found["balanced"]
    lines = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert '"soft_weight"' in lines and '"mis_rs_catastrophic_seq_fraction"' in lines
    assert '"weights/load_s"' in lines and '"groups_of_rank":8.0' in lines
    assert '"engine_begins"' in (tmp_path / "run" / "events.jsonl").read_text()


def test_the_examples_compute_what_they_say(tmp_path: Path) -> None:
    scope: dict[str, object] = {}
    exec("\n\n".join(BLOCKS), scope)
    estimator = scope["median_baseline"]
    assert callable(estimator)
    index = torch.tensor([0, 1, 1, 2])
    terms = StepTerms(
        rewards=torch.tensor([1.0, 5.0, 2.0]).double(),
        group_index=torch.zeros(3, dtype=torch.int64),
        rollout_index=torch.arange(3),
        sample_index=index,
        mask=torch.ones(4, dtype=torch.bool),
        behaviour=torch.zeros(4),
    )
    assert estimator(terms, Algorithm()).tolist() == [-1.0, 3.0, 3.0, 0.0]


@pytest.mark.parametrize("hook", HOOKS, ids=lambda hook: hook.key)
def test_a_path_that_leads_nowhere_is_refused_for_every_hook_before_the_start(tmp_path: Path, hook) -> None:
    file = tmp_path / "my_rl.py"
    file.write_text("def takes_seven(a, b, c, d, e, f, g): ...\n")
    forms = {"reward.rm_types": '["{}"]', "reward.rm_weights": '{{"{}" = 1.0}}'}
    for name, words in (("absent", "has no function"), ("takes_seven", "it must take")):
        value = f"my_rl.py:{name}"
        overrides = [f"{hook.key}={forms.get(hook.key, '{}').format(value)}"]
        if hook.key == "reward.rm_weights":
            overrides.append("reward.rm_type=weighted_sum")
        with pytest.raises(ConfigError) as caught:
            load(write_config(tmp_path), overrides)
        message = str(caught.value)
        assert "\n" not in message and hook.key in message and words in message, message
