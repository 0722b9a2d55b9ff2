"""One new function in one new file, from outside the package, is an estimator, a loss, a correction or a reducer."""

from __future__ import annotations

import math
import textwrap
from pathlib import Path

import pytest
from rl_reference import Reference, advantages, step_mean, token_weights
from rl_step import config, near, random_rows, step

from miles_async.config.schema import ConfigError
from miles_async.hooks.hook import HookError
from miles_async.rl.hooks import HOOKS
from miles_async.train.objective import Objective

ROWS = random_rows(14)
KEYS = {hook.key.partition(".")[2]: hook for hook in HOOKS}


def written(directory: Path, name: str, body: str, *, takes: str = "terms, algorithm") -> str:
    """A file with one function; its path as a configuration names it."""
    file = directory / f"{name}.py"
    head = "import torch\nfrom miles_async.rl.terms import Correction, whole_batch\n\n\n"
    file.write_text(f"{head}def {name}({takes}):\n{textwrap.indent(textwrap.dedent(body).strip(), '    ')}\n")
    return f"{file}:{name}"


def test_an_estimator(tmp_path: Path):
    path = written(tmp_path, "raw_reward", "return terms.rewards[terms.sample_index]")
    cfg = config(
        correction="uncorrected", policy_loss="cispo", advantage_estimator=path, eps_clip=1.0, eps_clip_high=100.0
    )
    for row, weights, gradient in zip(ROWS, token_weights(ROWS, cfg), step(cfg, ROWS).gradient, strict=True):
        ratios = [math.exp(p - b) for p, b in zip(row.logprobs, row.before, strict=True)]
        assert gradient == pytest.approx([-w * r * row.reward for w, r in zip(weights, ratios, strict=True)], abs=1e-6)


def test_a_policy_loss_with_a_metric_of_its_own(tmp_path: Path):
    path = written(
        tmp_path,
        "plain",
        "return -terms.advantages * terms.logprobs, {'pg_likelihood': terms.logprobs.exp().detach()}",
    )
    found = step(config(correction="uncorrected", policy_loss=path), ROWS)
    cfg = config(correction="uncorrected")
    for ws, a, gradient in zip(token_weights(ROWS, cfg), advantages(ROWS, cfg.algorithm), found.gradient, strict=True):
        assert gradient == pytest.approx([-w * a for w in ws], abs=1e-6)
    expected = step_mean(ROWS, cfg, lambda row, t: math.exp(row.logprobs[t]))
    assert found.metrics["pg_likelihood"] == pytest.approx(expected, abs=1e-6)


FRESH = """
weights = ((terms.version - terms.versions) <= 1).to(terms.behaviour.dtype)
return Correction(weights, {"fresh": weights})
"""


@pytest.mark.parametrize("names", [[], ["tis"]])
def test_a_correction_alone_and_beside_a_built_in(tmp_path: Path, names: list[str]):
    cfg = config(correction=[*names, written(tmp_path, "fresh", FRESH)])
    found = step(cfg, ROWS)
    rows = [[float(5 - v <= 1) for v in row.versions] for row in ROWS]
    reference = Reference(ROWS, "ppo_clip", "recompute", cfg.algorithm)
    reference._weights["fresh"] = rows
    expected = reference.step(cfg, [*names, "fresh"])
    assert near(found.loss, expected.loss, 1e-6)
    for mine, other in zip(found.gradient, expected.gradient, strict=True):
        assert mine == pytest.approx(other, abs=1e-6)
    assert 0 < found.metrics["fresh"] < 1


def test_a_correction_of_the_whole_batch_reaches_the_other_ranks(tmp_path: Path):
    file = tmp_path / "halve.py"
    file.write_text(
        textwrap.dedent(
            """
            import torch
            from miles_async.rl.terms import Correction, whole_batch


            @whole_batch(lambda algorithm: True)
            def halve(terms, algorithm):
                everyone = terms.gather(terms.behaviour[terms.mask != 0])
                kept = (terms.behaviour >= everyone.median()).to(terms.behaviour.dtype)
                return Correction(kept, {"kept": kept, "seen": torch.full_like(kept, len(everyone))})
            """
        )
    )
    cfg = config(correction=f"{file}:halve")
    one, three = step(cfg, ROWS), step(cfg, ROWS, ranks=3, max_tokens=8)
    tokens = sum(sum(row.mask) for row in ROWS)
    share = tokens / sum(max(sum(row.mask), 1) for row in ROWS)
    assert one.metrics["seen"] == pytest.approx(tokens * share) == three.metrics["seen"]
    assert one.metrics["kept"] == pytest.approx(three.metrics["kept"]) and one.loss == pytest.approx(three.loss)


def test_a_reducer(tmp_path: Path):
    takes = "mask, sample_index, rollout_index, totals, config"
    path = written(tmp_path, "thousandth", "return mask.double() / 1000.0", takes=takes)
    found = step(config(correction="tis", loss_aggregation=path), ROWS)
    constant = step(config(correction="tis", loss_aggregation="constant", loss_constant=1000.0), ROWS)
    rollouts = len({(row.group, row.rollout) for row in ROWS})
    assert found.loss == pytest.approx(constant.loss * rollouts)
    # it is the policy loss's alone
    of_loss = ("loss", "pg_loss")
    assert {k: v for k, v in found.metrics.items() if k not in of_loss} == pytest.approx(
        {k: v for k, v in constant.metrics.items() if k not in of_loss}
    )


WRONG = {
    "advantage_estimator": ("return terms.rewards", "shape (1,)"),
    "policy_loss": ("return terms.logprobs.sum(), {}", "shape ()"),
    "correction": ("return Correction(torch.ones(terms.n_samples), {})", "shape (1,)"),
    "loss_aggregation": ("return torch.ones(1, dtype=torch.float64)", "shape (1,)"),
}
ODD = {
    "advantage_estimator": "return terms.rewards.tolist()",
    "policy_loss": "return terms.logprobs",
    "correction": "return torch.ones_like(terms.behaviour)",
    "loss_aggregation": "return 1.0",
}


def named(tmp_path: Path, key: str, body: str) -> dict[str, object]:
    function = written(tmp_path, f"my_{key}", body, takes=", ".join(KEYS[key].parameters))
    return {"correction": "uncorrected", key: function}


def one_line(error: pytest.ExceptionInfo[ConfigError], *words: str) -> None:
    message = str(error.value)
    assert "\n" not in message and all(word in message for word in words), message


@pytest.mark.parametrize("key", WRONG)
def test_a_result_of_another_shape_is_refused_before_the_first_step(tmp_path: Path, key: str):
    body, what = WRONG[key]
    with pytest.raises(ConfigError) as error:
        Objective(config(**named(tmp_path, key, body)))
    one_line(error, f"algorithm.{key}", what, "(2,)")


@pytest.mark.parametrize("more", [{"normalize_advantages": True}, {"use_opd": True}], ids=["whitened", "taught"])
def test_an_estimator_that_gives_one_number_a_sample_is_refused_whatever_follows_it(tmp_path: Path, more: dict):
    chosen = named(tmp_path, "advantage_estimator", WRONG["advantage_estimator"][0])
    with pytest.raises(ConfigError, match="shape"):
        Objective(config(**chosen, **more))


@pytest.mark.parametrize("key", ODD)
def test_a_result_of_another_type_is_refused_in_one_line_too(tmp_path: Path, key: str):
    with pytest.raises(ConfigError) as error:
        Objective(config(**named(tmp_path, key, ODD[key])))
    one_line(error, f"algorithm.{key}")


@pytest.mark.parametrize("key", KEYS)
def test_a_name_that_leads_nowhere_is_refused_with_what_there_is(key: str):
    hook, built_in = KEYS[key], next(iter(KEYS[key].built_in))
    with pytest.raises(HookError) as error:
        hook.load(built_in + "x")
    one_line(error, f"algorithm.{key}", f'"{built_in}x"', f'did you mean "{built_in}"?', *hook.built_in)


@pytest.mark.parametrize("key", KEYS)
def test_a_function_that_takes_something_else_is_refused_with_what_it_must_take(tmp_path: Path, key: str):
    path = written(tmp_path, "lonely", "return None", takes="alone")
    with pytest.raises(HookError) as error:
        KEYS[key].load(path)
    one_line(error, f"algorithm.{key}", f"it must take ({', '.join(KEYS[key].parameters)})", "(alone)")


@pytest.mark.parametrize("key", KEYS)
def test_every_built_in_is_there_and_takes_what_one_of_the_users_would(key: str):
    hook = KEYS[key]
    for name, path in hook.built_in.items():
        hook._check_signature(name, hook.load(path))
