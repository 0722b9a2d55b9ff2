"""One optimizer step of a split model beside a float64 loop: what the ranks run, and the loop.

A step is plain gradient descent with a rate of 1, so that what it moves is the gradient. The loop: ``rl_reference.py``
and ``rl_estimators.py`` over transformers' model: log-probs, entropies and gradients of each sequence alone.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import torch
from rl_estimators import WITH_KL, raw, token_advantages
from rl_reference import Reference, mean_weights
from rl_step import Row
from safetensors.torch import save_file
from train_layouts import DENSE
from train_ranks import share
from train_support import make_checkpoint, make_config

from bus.codec import LOGPROBS, MASK, TOKENS, VERSIONS, unpack
from bus.messages import Group
from miles_async.config.layout import layout_of
from miles_async.config.schema import RunConfig
from miles_async.train.ranks import Ranks
from miles_async.train.value_head import HEAD

LAYOUTS = {name: DENSE[name] for name in ("tp2 sp", "cp2")}
# bounds within the spread of the ratios, so that each holds some tokens and not others
_BOUNDS = {"eps_clip": 0.1, "dppo_tv_threshold": 0.02, "gamma": 0.9, "lambd": 0.8, "correction": "behaviour"}
_KL = {"use_kl_loss": True, "kl_loss_type": "k2"}


# every estimator, and every policy loss with one of them; None: the estimator's own
CHOSEN = (
    ("grpo", "ppo_clip"),
    ("dr_grpo", "cispo"),
    ("rloo", "truncated_reinforce"),
    ("reinforce_plus_plus", "dppo"),
    ("reinforce_plus_plus_baseline", "gspo"),
    ("ppo", None),
    ("gspo", None),
)


def _cases() -> dict[str, dict[str, Any]]:
    found = {}
    for (estimator, loss), aggregation in zip(CHOSEN, itertools.cycle(("token", "sample", "constant")), strict=False):
        kl = {"kl_coef": 0.05} if estimator in WITH_KL else {"kl_loss_coef": 0.1}
        section = {"advantage_estimator": estimator, "loss_aggregation": aggregation, "entropy_coef": 0.01}
        bounds = {"eps_clip": 0.03} if "gspo" in (estimator, loss) else {}
        found[f"{estimator}, {loss or 'its own loss'}"] = _BOUNDS | bounds | _KL | kl | section | {"policy_loss": loss}
    return found


CASES = _cases()


def configuration(root: Path | str, case: str, layout: dict[str, Any]) -> RunConfig:
    algorithm = {**CASES[case], "ref_load": f"{root}/reference"}
    learner = {"lr": 1.0, "clip_grad": 0.0, "max_tokens_per_micro_batch": 60, "grad_reduce_timeout_s": 60.0}
    descent = {"optimizer": "sgd", "megatron_args": {"sgd_momentum": 0.0}}
    critic = {"critic_load": f"{root}/critic"} if algorithm["advantage_estimator"] == "ppo" else {}
    return make_config(f"{root}/model", algorithm=algorithm, learner={**learner, **descent, **layout}, critic=critic)


def make_models(root: Path) -> dict[str, Any]:
    """The policy, its reference, and a critic whose head is not zero, in transformers."""
    found = {}
    for name, scale in {"model": 1.0, "reference": 0.9, "critic": 1.1}.items():
        found[name] = make_checkpoint(root / name, tied=False, head_dim=16)
        with torch.no_grad():
            for parameter in found[name].parameters():
                parameter.mul_(scale)
        found[name].save_pretrained(root / name)
    generator = torch.Generator().manual_seed(5)
    head = {"weight": torch.randn(1, 32, generator=generator) * 0.2, "bias": torch.tensor([0.3])}
    save_file({f"{HEAD}{part}": tensor for part, tensor in head.items()}, root / "critic" / "head.safetensors")
    return {**found, "head": head}


def step_everywhere(rank: int, root: str, groups: list[Group]) -> None:
    """Each case in each layout: metrics, and on rank 0 the gradient by the names of the checkpoint."""
    from miles_async.train.trainer import MegatronTrainer

    seen: dict[tuple[str, str], Any] = {}
    for number, (layout, case) in enumerate(itertools.product(LAYOUTS, CASES)):
        config = configuration(root, case, LAYOUTS[layout])
        ranks = Ranks(rank, 2, f"file://{root}/meeting-{number}", layout_of(config.learner))
        trainer = MegatronTrainer(config, f"{root}/model", ranks)
        before = trainer.export()
        metrics = trainer.step(share(groups, ranks.dp_rank, ranks.dp_size))
        after = trainer.export()
        seen[layout, case] = metrics, {name: before[name] - after[name] for name in before}
        trainer.close()
    torch.save(seen, Path(root) / f"oracle-rank-{rank}.pt")


class Oracle:
    """All samples of ``groups`` under the ``models``, in float64, with the graph of the policy and of the critic."""

    def __init__(self, models: dict[str, Any], groups: list[Group]) -> None:
        self.policy, reference, self.critic = (models[name].double() for name in ("model", "reference", "critic"))
        self.head = {part: tensor.double().requires_grad_() for part, tensor in models["head"].items()}
        self.rows = list[Row]()
        self.logprobs, self.entropies, self.values = list[torch.Tensor](), list[torch.Tensor](), list[torch.Tensor]()
        for number, sample in ((number, sample) for number, group in enumerate(groups) for sample in group.samples):
            prompt, response = unpack(groups[number].prompt_tokens, TOKENS), unpack(sample.tokens, TOKENS)
            ids = torch.tensor([*prompt, *response], dtype=torch.int64)[None]
            where = slice(len(prompt) - 1, ids.shape[1] - 1)
            logprobs, entropy = _of_tokens(self.policy(input_ids=ids).logits[0, where], ids[0, len(prompt) :])
            with torch.no_grad():
                of_reference, _ = _of_tokens(reference(input_ids=ids).logits[0, where], ids[0, len(prompt) :])
            hidden = self.critic.model(input_ids=ids).last_hidden_state[0, where]
            values = (hidden @ self.head["weight"].t() + self.head["bias"])[:, 0]
            self.logprobs.append(logprobs)
            self.entropies.append(entropy)
            self.values.append(values)
            said = {"before": logprobs, "logprobs": logprobs, "reference": of_reference, "values": values}
            self.rows.append(
                Row(
                    group=number,
                    rollout=sample.index,
                    reward=sample.reward,
                    mask=tuple(bool(m) for m in unpack(sample.loss_mask, MASK)),
                    versions=tuple(unpack(sample.versions, VERSIONS).tolist()),
                    behaviour=tuple(unpack(sample.logprobs, LOGPROBS).tolist()),
                    teacher=(),
                    entropy=(),
                    **{name: tuple(tensor.tolist()) for name, tensor in said.items()},
                )
            )

    def step(self, config: RunConfig) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
        """The metrics that are losses, and the gradient of the whole loss by parameter."""
        algorithm = config.algorithm
        name = algorithm.policy_loss or ("gspo" if algorithm.advantage_estimator == "gspo" else "ppo_clip")
        loop = Reference(self.rows, name, "rollout", algorithm, token_advantages(config, self.rows))
        of_policy = loop.step(config, ())
        weights = mean_weights(self.rows, config)
        entropy = _weighed(self.entropies, weights)
        away = [
            lp - torch.tensor(row.reference, dtype=torch.float64)
            for lp, row in zip(self.logprobs, self.rows, strict=True)
        ]
        kl = _weighed([difference**2 / 2 for difference in away], weights)
        rest = algorithm.kl_loss_coef * kl - algorithm.entropy_coef * entropy
        slope = sum(
            (lp * torch.tensor(g, dtype=torch.float64)).sum()
            for lp, g in zip(self.logprobs, of_policy.gradient, strict=True)
        )
        parameters = dict(self.policy.named_parameters())
        gradient = torch.autograd.grad(slope + rest, [*parameters.values()], retain_graph=True)
        metrics = {
            "loss": of_policy.loss + float(rest.detach()),
            "pg_loss": of_policy.loss,
            "entropy_loss": float(entropy.detach()),
            "kl_loss": float(kl.detach()),
        }
        if algorithm.advantage_estimator == "ppo":
            metrics |= self._of_critic(config, weights)
        return metrics, dict(zip(parameters, gradient, strict=True))

    def _of_critic(self, config: RunConfig, weights: list[list[float]]) -> dict[str, float]:
        gains = raw(config.algorithm, self.rows, "rollout")
        returns = [
            torch.tensor([a + v for a, v in zip(of_row, row.values, strict=True)], dtype=torch.float64)
            for of_row, row in zip(gains, self.rows, strict=True)
        ]
        loss = _weighed([(v - r) ** 2 for v, r in zip(self.values, returns, strict=True)], weights)
        parameters = [*self.critic.model.parameters(), *self.head.values()]
        gradient = torch.autograd.grad(loss, parameters, retain_graph=True)
        norm = float(torch.linalg.vector_norm(torch.stack([part.norm() for part in gradient])))
        return {"critic-value_loss": float(loss.detach()), "critic-grad_norm": norm}


def _of_tokens(logits: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probs of ``tokens`` [n] and entropies [n] from logits [n, vocabulary]."""
    every = logits.log_softmax(-1)
    return every.gather(-1, tokens[:, None])[:, 0], -(every.exp() * every).sum(-1)


def _weighed(values: list[torch.Tensor], weights: list[list[float]]) -> torch.Tensor:
    return torch.stack(
        [(v * torch.tensor(w, dtype=torch.float64)).sum() for v, w in zip(values, weights, strict=True)]
    ).sum()
