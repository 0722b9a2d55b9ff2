"""The policy losses, value loss and ESS by hand, by plain loops in float64, and at the edge of what floats hold."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from by_hand import f64

from miles_async.rl import losses
from miles_async.rl.losses import PolicyLoss, ess_ratio, sft, value_loss

EPS = {"eps_clip": 0.2, "eps_clip_high": 0.3}


def by_token(name: str, lp: torch.Tensor, old: torch.Tensor, a: torch.Tensor, **more: float) -> PolicyLoss:
    """The loss ``name`` with eps 0.2 and 0.3, where it has them; for gspo every token is a sample."""
    index, mask = torch.arange(len(lp)), torch.ones(len(lp))
    found: dict[str, Callable[[], PolicyLoss]] = {
        "ppo_clip": lambda: losses.ppo_clip(lp, old, a, **EPS, **more),
        "gspo": lambda: losses.gspo(lp, old, a, mask, index, **EPS, **more),
        "cispo": lambda: losses.cispo(lp, old, a, **EPS),
        "truncated_reinforce": lambda: losses.truncated_reinforce(lp, old, a, eps_clip_high=0.3),
        "dppo": lambda: losses.dppo(lp, old, a, tv_threshold=0.2, kl_coef=0.1),
    }
    return found[name]()


NAMES = ("ppo_clip", "gspo", "cispo", "truncated_reinforce", "dppo")


def one(name: str, ratio: float, advantage: float, *, old: float = -1.0, **more: float) -> tuple[float, float, float]:
    """Loss, clip indicator and d loss / d logprob of one token whose ratio is given."""
    logprob = f64(math.log(ratio) + old).requires_grad_(True)
    found = by_token(name, logprob, f64(old), f64(advantage), **more)
    assert found.ppo_kl.tolist() == pytest.approx([-math.log(ratio)])
    assert not found.ppo_kl.requires_grad and not found.clipped.requires_grad
    return found.loss.item(), found.clipped.item(), torch.autograd.grad(found.loss.sum(), logprob)[0].item()


@pytest.mark.parametrize("name", ["ppo_clip", "gspo"])
@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "clipped", "gradient"),
    [
        (1.0, 2.0, -2.0, 0, -2.0),
        (1.1, 2.0, -2.2, 0, -2.2),  # inside: -ratio A, and its derivative is itself
        (1.25, 2.0, -2.5, 0, -2.5),  # above 1 + eps_clip, but the upper bound is eps_clip_high's
        (1.5, 2.0, -2.6, 1, 0.0),  # good token, ratio above 1.3: held
        (0.5, 2.0, -1.0, 0, -1.0),  # good token made less likely: not held
        (0.5, -2.0, 1.6, 1, 0.0),  # bad token already below 0.8: held
        (1.5, -2.0, 3.0, 0, 3.0),  # bad token made more likely: not held
        (1.5, 0.0, 0.0, 0, 0.0),
    ],
)
def test_ppo_clip_by_hand(name: str, ratio: float, advantage: float, loss: float, clipped: float, gradient: float):
    assert one(name, ratio, advantage) == pytest.approx((loss, clipped, gradient))


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient"),
    [
        (5.0, -2.0, 6.0, 0.0),  # -3 A is less than -ratio A: held
        (2.5, -2.0, 5.0, 5.0),  # not yet
        (5.0, 2.0, -2.6, 0.0),  # good tokens have the ordinary clip
        (0.5, -2.0, 1.6, 0.0),
    ],
)
def test_dual_clip_by_hand(ratio: float, advantage: float, loss: float, gradient: float):
    found = one("ppo_clip", ratio, advantage, eps_clip_c=3.0)
    assert (found[0], found[2]) == pytest.approx((loss, gradient))
    assert found[1] == one("ppo_clip", ratio, advantage)[1]  # the dual clip is not counted, as in Miles


@pytest.mark.parametrize(
    ("name", "ratio", "weight"),
    [
        ("cispo", 1.1, 1.1),
        ("cispo", 1.5, 1.3),
        ("cispo", 0.5, 0.8),
        ("truncated_reinforce", 1.1, 1.1),
        ("truncated_reinforce", 1.5, 1.3),
        ("truncated_reinforce", 0.5, 0.5),
    ],
)
@pytest.mark.parametrize("advantage", [2.0, -2.0])
def test_clipped_weights_scale_the_log_likelihoods_gradient(name: str, ratio: float, weight: float, advantage: float):
    loss, clipped, gradient = one(name, ratio, advantage, old=-1.5)
    assert loss == pytest.approx(-weight * advantage * (math.log(ratio) - 1.5))
    assert gradient == pytest.approx(-weight * advantage)  # never zero: a clipped token goes on learning
    assert clipped == (weight != ratio)


@pytest.mark.parametrize(
    ("old", "new", "advantage", "held"),
    [
        (0.1, 0.35, 1.0, 1),  # a good token has risen by 0.25
        (0.1, 0.25, 1.0, 0),  # by 0.15: a ratio of 2.5, which PPO would hold
        (0.5, 0.25, 1.0, 0),  # has fallen
        (0.5, 0.25, -1.0, 1),  # a bad token has fallen by 0.25
        (0.3, 0.15, -1.0, 0),
        (0.1, 0.9, -1.0, 0),
        (0.1, 0.9, 0.0, 0),
    ],
)
def test_dppo_holds_by_the_distance_of_probabilities(old: float, new: float, advantage: float, held: int):
    ratio = new / old
    loss, clipped, gradient = one("dppo", ratio, advantage, old=math.log(old))
    square = 0.1 * math.log(ratio) ** 2
    assert clipped == held
    assert loss == pytest.approx((0 if held else -advantage * ratio) + square)
    assert gradient == pytest.approx((0 if held else -advantage * ratio) + 0.2 * math.log(ratio))


LENGTHS = [3, 1, 4, 2]
INDEX = torch.repeat_interleave(torch.arange(4), torch.tensor(LENGTHS))
MASK = torch.tensor([1, 0, 1, 1, 1, 1, 0, 1, 0, 0])  # the last sample is masked out


@pytest.mark.parametrize("eps", [3e-4, 0.2])
def test_gspo_is_the_papers_loop_over_samples(eps: float):
    generator = torch.Generator().manual_seed(3)
    logprobs = (torch.rand(10, generator=generator, dtype=torch.float64) - 2).requires_grad_(True)
    old = logprobs.detach() + 0.3 * torch.randn(10, generator=generator, dtype=torch.float64)
    a = torch.tensor([1.0, -1.0, -0.5, 2.0], dtype=torch.float64)[INDEX]
    found = losses.gspo(logprobs, old, a, MASK, INDEX, eps_clip=eps, eps_clip_high=2 * eps)
    expected, ratios = [], []
    for sample, (lp, o, m) in enumerate(
        zip(logprobs.split(LENGTHS), old.split(LENGTHS), MASK.split(LENGTHS), strict=True)
    ):
        likelihood, length = ((lp - o) * m).sum(), max(int(m.sum()), 1)
        ratio = (likelihood / length).exp()
        advantage = a[sample == INDEX][0]
        surrogate = torch.min(ratio * advantage, ratio.clamp(1 - eps, 1 + 2 * eps) * advantage)
        expected.append((-surrogate).expand(len(lp)))
        ratios += [float(ratio.detach().log())] * len(lp)
    weight = MASK.double() * torch.arange(10)
    torch.testing.assert_close(found.loss, torch.cat(expected), atol=1e-12, rtol=0)
    assert (-found.ppo_kl).tolist() == pytest.approx(ratios, abs=1e-12)
    ours = torch.autograd.grad((found.loss * weight).sum(), logprobs)[0]
    torch.testing.assert_close(
        ours, torch.autograd.grad((torch.cat(expected) * weight).sum(), logprobs)[0], atol=1e-12, rtol=0
    )
    assert ours[MASK == 0].tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("name", NAMES)
def test_autograd_agrees_with_finite_differences(name: str):
    old, a = f64(-1.0, -2.0, -0.5, -3.0), f64(1.0, -1.0, 0.5, -2.0)
    logprobs = f64(-0.9, -1.7, -0.9, -3.1).requires_grad_(True)
    weight = by_token(name, logprobs, old, a)
    if name in ("cispo", "truncated_reinforce"):  # their weight is a constant, so the slope is the weight's
        ratio = (logprobs - old).exp().detach().clamp(0.8 if name == "cispo" else 0.0, 1.3)
        assert torch.autograd.grad(weight.loss.sum(), logprobs)[0].tolist() == pytest.approx((-ratio * a).tolist())
    else:
        assert torch.autograd.gradcheck(lambda lp: by_token(name, lp, old, a).loss, (logprobs,))


@pytest.mark.parametrize("name", NAMES)
def test_on_policy_the_gradient_is_the_policy_gradients_and_none_flows_into_the_denominator(name: str):
    logprobs = (-torch.rand(5, dtype=torch.float64)).requires_grad_(True)
    a = f64(1.0, -1.0, 0.0, 2.5, -3.0)
    found = by_token(name, logprobs, logprobs, a)
    assert torch.autograd.grad(found.loss.sum(), logprobs)[0].tolist() == pytest.approx((-a).tolist())
    assert found.clipped.tolist() == [0] * 5 and found.ppo_kl.tolist() == [0] * 5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", NAMES)
def test_extreme_ratios_give_finite_losses_and_gradients(name: str, dtype: torch.dtype):
    differences = [20.0, -20.0, 20.5, -20.5, 100.0, -100.0, 1e4, -1e4] * 2
    logprobs = torch.tensor(differences, dtype=dtype, requires_grad=True)
    a = torch.tensor([1.0] * 8 + [-1.0] * 8, dtype=dtype)
    found = by_token(name, logprobs, torch.zeros_like(logprobs), a)
    found.loss.sum().backward()
    assert logprobs.grad is not None
    assert found.loss.isfinite().all() and logprobs.grad.isfinite().all()
    if name in ("ppo_clip", "gspo"):
        assert found.loss[8 + 4].item() == pytest.approx(math.exp(20), rel=1e-5)  # held at exp(20), as in Miles
        assert logprobs.grad[8 + 4].item() == 0
    assert found.ppo_kl[6].item() == -1e4


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("broken", [float("nan"), float("-inf"), float("inf")])
def test_a_denominator_that_is_no_number_is_a_ratio_of_one_without_slope(name: str, broken: float):
    logprobs = f64(-2.0, -2.0).requires_grad_(True)
    found = by_token(name, logprobs, f64(broken, -2.0), f64(1.5, 1.5))
    found.loss.sum().backward()
    weighted = name in ("cispo", "truncated_reinforce")  # the slope of these is not the ratio's
    assert logprobs.grad is not None and logprobs.grad.tolist() == pytest.approx([-1.5 if weighted else 0.0, -1.5])
    assert found.loss.tolist() == pytest.approx([3.0, 3.0] if weighted else [-1.5, -1.5])
    assert found.ppo_kl.tolist() == [0, 0]


@pytest.mark.parametrize("name", NAMES)
def test_nothing_gives_nothing(name: str):
    none = f64()
    assert [part.shape for part in by_token(name, none, none, none)] == [(0,)] * 3
    assert sft(none).shape == (0,) and ess_ratio(none, none, torch.zeros(0, dtype=torch.int64)).shape == (0,)
    assert [part.shape for part in value_loss(none, none, none, value_clip=0.2)] == [(0,), (0,)]


def test_sft_is_the_negative_log_likelihood():
    logprobs = f64(-1.0, -0.25).requires_grad_(True)
    assert sft(logprobs).tolist() == [1.0, 0.25]
    assert torch.autograd.grad(sft(logprobs).sum(), logprobs)[0].tolist() == [-1, -1]


@pytest.mark.parametrize(
    ("value", "old", "target", "loss", "clipped", "gradient"),
    [
        (1.1, 1.0, 2.0, 0.81, 0, -1.8),  # inside: (V - R)^2, no half
        (1.5, 1.0, 2.0, 0.64, 1, 0.0),  # has left towards R: held at 1.2
        (0.5, 1.0, 2.0, 2.25, 1, -3.0),  # has left away from R: not held
        (3.0, 1.0, 2.0, 1.0, 1, 2.0),  # beyond R, further than the held one is below: (1.2 - 2)^2 = 0.64
        (1.0, 1.0, 1.0, 0.0, 0, 0.0),
    ],
)
def test_value_loss_by_hand(value: float, old: float, target: float, loss: float, clipped: int, gradient: float):
    values = f64(value).requires_grad_(True)
    found, held = value_loss(values, f64(old), f64(target), value_clip=0.2)
    assert (found.item(), held.item()) == pytest.approx((loss, clipped))
    assert torch.autograd.grad(found.sum(), values)[0].item() == pytest.approx(gradient)


def test_ess_is_that_of_the_unmasked_tokens_of_each_sample():
    logs = [0.5, float("nan"), -1.0, 0.3, 2.0, 2.0, float("inf"), 2.0, 7.0, 7.0]
    found = ess_ratio(f64(*logs), MASK, INDEX)
    w = [math.exp(0.5), math.exp(-1.0)]
    # of the last sample no token is unmasked
    assert found.tolist() == pytest.approx([sum(w) ** 2 / (2 * (w[0] ** 2 + w[1] ** 2)), 1.0, 1.0, 0.0])
    assert ess_ratio(f64(0, 100), torch.ones(2), torch.zeros(2, dtype=torch.int64)).item() == pytest.approx(0.5)
    assert ess_ratio(f64(-100, -100), torch.ones(2), torch.zeros(2, dtype=torch.int64)).item() == pytest.approx(1.0)
