"""The KL estimators: their formulas by hand, and what they estimate, summed exactly over a small vocabulary."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from miles_async.rl.kl import KlType, approx_kl, reverse_k3

KINDS: tuple[KlType, ...] = ("k1", "k2", "k3", "low_var_kl")
FORMULAS: dict[str, Callable[[float], float]] = {
    "k1": lambda d: d,
    "k2": lambda d: d * d / 2,
    "k3": lambda d: math.exp(-d) - 1 + d,
    "low_var_kl": lambda d: min(math.exp(-d) - 1 + d, 10.0),
}
# d log-ratio -> d kl / d logprob, where no clamp holds
SLOPES: dict[str, Callable[[float], float]] = {
    "k1": lambda d: 1.0,
    "k2": lambda d: d,
    "k3": lambda d: 1 - math.exp(-d),
    "low_var_kl": lambda d: 1 - math.exp(-d) if math.exp(-d) - 1 + d < 10 else 0.0,
}
DIFFERENCES = [-3.0, -1.0, -0.1, -1e-4, 0.0, 1e-4, 0.2, 1.5, 9.0, 12.0]


def parameter(values: list[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


def gradient(of: torch.Tensor, by: torch.Tensor) -> list[float]:
    return torch.autograd.grad(of.sum(), by)[0].tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_value_and_gradient_are_those_of_the_formula(kind: KlType):
    logprobs = parameter([d - 2.0 for d in DIFFERENCES])
    kl = approx_kl(logprobs, torch.full((len(DIFFERENCES),), -2.0, dtype=torch.float64), kind)
    assert kl.tolist() == pytest.approx([FORMULAS[kind](d) for d in DIFFERENCES], rel=1e-9, abs=1e-12)
    assert gradient(kl, logprobs) == pytest.approx([SLOPES[kind](d) for d in DIFFERENCES], rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_autograd_agrees_with_finite_differences(kind: KlType):
    base = torch.zeros(4, dtype=torch.float64)
    old = torch.tensor([0.3, -0.2, 0.1, -0.4], dtype=torch.float64)

    def unbiased(logprobs: torch.Tensor) -> torch.Tensor:
        return approx_kl(logprobs, base, kind, importance_ratio=(logprobs - old).exp())

    logprobs = parameter([0.5, -0.7, 1.2, -0.05])
    assert torch.autograd.gradcheck(lambda lp: approx_kl(lp, base, kind), (logprobs,))
    assert torch.autograd.gradcheck(unbiased, (logprobs,))


def policies() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits (with gradient) of the policy, log-probs of a base and of a behaviour policy, over 5 tokens."""
    generator = torch.Generator().manual_seed(0)
    logits, base, behaviour = (0.5 * torch.randn(5, generator=generator, dtype=torch.float64) for _ in range(3))
    return logits.requires_grad_(True), base.log_softmax(0), behaviour.log_softmax(0)


@pytest.mark.parametrize("kind", ["k1", "k3", "low_var_kl"])
def test_the_mean_over_the_policys_tokens_is_the_kl(kind: KlType):
    logits, base, _ = policies()
    policy = logits.log_softmax(0)
    exact = (policy.exp() * (policy - base)).sum()
    assert (policy.exp() * approx_kl(policy, base, kind)).sum().item() == pytest.approx(exact.item(), abs=1e-12)


@pytest.mark.parametrize("kind", ["k1", "k3"])
def test_with_the_ratio_mean_and_gradient_are_those_of_the_kl_under_any_behaviour_policy(kind: KlType):
    logits, base, behaviour = policies()
    policy = logits.log_softmax(0)
    exact = (policy.exp() * (policy - base)).sum()
    expected = torch.autograd.grad(exact, logits, retain_graph=True)[0]
    estimate = behaviour.exp() * approx_kl(policy, base, kind, importance_ratio=(policy - behaviour).exp())
    assert estimate.sum().item() == pytest.approx(exact.item(), abs=1e-12)
    torch.testing.assert_close(torch.autograd.grad(estimate.sum(), logits)[0], expected, atol=1e-12, rtol=0)


def test_without_the_ratio_only_k2_has_the_gradient_of_the_kl():
    logits, base, _ = policies()
    policy = logits.log_softmax(0)
    expected = torch.autograd.grad((policy.exp() * (policy - base)).sum(), logits, retain_graph=True)[0]
    found = torch.autograd.grad((policy.exp().detach() * approx_kl(policy, base, "k2")).sum(), logits)[0]
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)


def test_the_ratio_is_a_factor_before_the_last_clamp():
    logprobs, base, ratio = (
        parameter([-1.0, -1.0]),
        torch.tensor([1.5, 2.0]).double(),
        torch.tensor([0.5, 3.0]).double(),
    )
    raw = [r * (math.exp(x) - 1 - x) for x, r in ((2.5, 0.5), (3.0, 3.0))]  # 4.34, 48.3
    kl = approx_kl(logprobs, base, "low_var_kl", importance_ratio=ratio)
    assert kl.tolist() == pytest.approx([raw[0], 10.0])
    assert gradient(kl, logprobs)[1] == 0
    assert approx_kl(logprobs, base, "k3", importance_ratio=ratio).tolist() == pytest.approx(raw)
    # k1 may be negative, and no clamp holds it
    assert approx_kl(base, logprobs, "k1", importance_ratio=-10 * ratio).tolist() == pytest.approx([-12.5, -90.0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_any_finite_log_probs_give_finite_values_and_gradients(kind: KlType, dtype: torch.dtype):
    differences = [0.0, 20.0, -20.0, 20.1, -20.1, 100.0, -100.0, 1e4, -1e4]
    logprobs = torch.tensor(differences, dtype=dtype, requires_grad=True)
    kl = approx_kl(logprobs, torch.zeros(len(differences), dtype=dtype), kind)
    assert kl.isfinite().all()
    assert all(math.isfinite(g) for g in gradient(kl, logprobs))
    assert kl[5].item() == pytest.approx({"k1": 100.0, "k2": 5000.0, "k3": 99.0, "low_var_kl": 10.0}[kind])
    if kind == "low_var_kl":
        assert kl.abs().max().item() <= 10
        assert gradient(approx_kl(logprobs, torch.zeros_like(logprobs), kind), logprobs)[1:] == [0.0] * 8


def test_k3_of_what_the_base_finds_too_likely_is_held_at_a_log_ratio_of_20():
    logprobs = torch.tensor([-19.0, -21.0, -100.0], requires_grad=True)
    kl = approx_kl(logprobs, torch.zeros(3), "k3", importance_ratio=torch.full((3,), math.exp(20)))
    held = math.exp(20) * (math.exp(20) - 21)
    assert kl.tolist() == pytest.approx([math.exp(20) * (math.exp(19) - 20), held, held], rel=1e-5)
    assert gradient(kl, logprobs) == pytest.approx([-math.exp(20) * (math.exp(19) - 1), 0, 0], rel=1e-5)


@pytest.mark.parametrize("ratio", [None, math.exp(20)])
@pytest.mark.parametrize("kind", KINDS)
def test_the_norm_of_the_gradient_is_a_float32_whatever_the_log_probs_differ_by(kind: KlType, ratio: float | None):
    """Megatron adds up the squares in float32: of a thousand tokens at each distance, all of them at their steepest."""
    apart = torch.tensor([float(d) for d in (0, 1, 19, 20, 21, 59, 60, 61, 88, 1e3, 1e4)])
    logprobs = torch.cat([apart, -apart]).requires_grad_(True)
    weights = None if ratio is None else torch.full_like(logprobs, ratio)
    kl = approx_kl(logprobs, torch.zeros_like(logprobs), kind, importance_ratio=weights)
    squares = torch.tensor(gradient(kl, logprobs)).square()
    assert math.isfinite(float(1000 * squares.sum()))


def test_small_differences_do_not_cancel_in_float32():
    found = approx_kl(torch.tensor([1e-4]), torch.tensor([0.0]), "k3").item()
    assert found == pytest.approx(5e-9, rel=1e-2)  # exp(-d) - 1 + d in float32 is 0 or 6e-8


def test_the_base_gets_no_say_where_it_equals_the_policy():
    same = torch.tensor([-0.5, -3.0, 0.0])
    for kind in KINDS:
        assert approx_kl(same, same, kind).tolist() == [0, 0, 0]
        assert approx_kl(torch.zeros(0), torch.zeros(0), kind).shape == (0,)


def test_another_kind_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match=r'kl_loss_type = "k4": one of "k1", "k2", "k3", "low_var_kl"'):
        approx_kl(torch.zeros(1), torch.zeros(1), "k4")  # pyright: ignore[reportArgumentType]


def test_reverse_k3_estimates_the_kl_of_the_behaviour_policy_to_the_policy():
    logits, _, behaviour = policies()
    policy = logits.detach().log_softmax(0)
    exact = (behaviour.exp() * (behaviour - policy)).sum().item()
    assert (behaviour.exp() * reverse_k3(policy, behaviour)).sum().item() == pytest.approx(exact, abs=1e-12)
    found = reverse_k3(torch.tensor([-1.0, 2.0]).double(), torch.tensor([0.5, 0.5]).double())
    assert found.tolist() == pytest.approx([math.exp(-1.5) + 0.5, math.exp(1.5) - 2.5])


def test_reverse_k3_is_held_at_10_as_in_miles():
    assert reverse_k3(torch.tensor([4.0, 30.0, -1e4]), torch.zeros(3)).tolist() == [10.0, 10.0, 10.0]
