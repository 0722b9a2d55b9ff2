"""PPO's critic: its weights as the learner has them, and a policy with a critic in plain PyTorch."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from bus.codec import LOGPROBS, MASK, TOKENS, unpack
from bus.messages import Group
from miles_async.train.trainer import MegatronTrainer

PPO = {"advantage_estimator": "ppo"}


def critic_weights(trainer: MegatronTrainer) -> dict[str, torch.Tensor]:
    """By their Hugging Face names, as copies; the value head as "head.weight" and "head.bias"."""
    assert trainer._critic is not None
    module = trainer._critic.model.modules[0]
    head = module.output_layer
    module.output_layer = torch.nn.Identity()  # the bridge has no name for it
    found = {name: tensor.clone() for name, tensor in trainer._bridge.hf_tensors(module)}
    module.output_layer = head
    return found | {f"head.{name}": tensor.detach().clone() for name, tensor in head.named_parameters()}


class PlainPpo:
    """A transformers policy and a critic of a transformers body and a linear head, one sequence at a time."""

    def __init__(self, policy: Any, body: Any, config: Any) -> None:
        self.policy, self.body, self.config = policy, body, config
        self.head = torch.nn.Linear(body.config.hidden_size, 1)
        torch.nn.init.zeros_(self.head.weight)
        torch.nn.init.zeros_(self.head.bias)
        critic_lr = config.critic.critic_lr or config.learner.lr
        self.optimizers = [self.adam([policy], config.learner.lr), self.adam([body.model, self.head], critic_lr)]

    def adam(self, modules: list[Any], lr: float) -> torch.optim.Optimizer:
        learner = self.config.learner
        parameters = [p for module in modules for p in module.parameters()]
        groups = [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": learner.weight_decay},
            {"params": [p for p in parameters if p.ndim == 1], "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98), eps=learner.adam_eps)

    def tokens(self, group: Group, sample: Any) -> tuple[torch.Tensor, slice]:
        """Prompt and response, and where the hidden states lie that predict the response."""
        prompt, response = unpack(group.prompt_tokens, TOKENS), unpack(sample.tokens, TOKENS)
        ids = torch.tensor([*prompt, *response], dtype=torch.int64)[None]
        return ids, slice(len(prompt) - 1, ids.shape[1] - 1)

    def values(self, group: Group, sample: Any) -> torch.Tensor:
        ids, where = self.tokens(group, sample)
        return self.head(self.body.model(input_ids=ids).last_hidden_state)[0, where, 0]

    def advantages(self, values: torch.Tensor, mask: np.ndarray, reward: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Generalized advantage estimation by the book, over the places where ``mask`` is set; and the returns."""
        gamma, lambd = self.config.algorithm.gamma, self.config.algorithm.lambd
        kept = np.flatnonzero(mask)
        found, carry = torch.zeros(len(mask)), 0.0
        for i in reversed(range(len(kept))):
            last = i == len(kept) - 1
            following = 0.0 if last else values[kept[i + 1]].item()
            delta = (reward if last else 0.0) + gamma * following - values[kept[i]].item()
            carry = delta + gamma * lambd * carry
            found[kept[i]] = carry
        return found, found + values.detach()

    def step(self, groups: list[Group]) -> dict[str, float]:
        samples = [(group, sample) for group in groups for sample in group.samples]
        masks = [unpack(sample.loss_mask, MASK) != 0 for _, sample in samples]
        n_tokens = sum(max(int(mask.sum()), 1) for mask in masks)
        values = [self.values(*pair) for pair in samples]
        judged = [self.advantages(v, m, s.reward) for v, m, (_, s) in zip(values, masks, samples, strict=True)]
        advantages = [advantage for advantage, _ in judged]
        if self.config.algorithm.normalize_advantages:
            flat = torch.cat([a[torch.from_numpy(m)] for a, m in zip(advantages, masks, strict=True)])
            advantages = [(a - flat.mean()) / (flat.var() + 1e-8).sqrt() for a in advantages]
        policy_loss, value_loss, mean_value, mean_return = (torch.zeros(()) for _ in range(4))
        for (group, sample), v, (_, returns), advantage, m in zip(
            samples, values, judged, advantages, masks, strict=True
        ):
            mask = torch.from_numpy(m.astype(np.float32))
            ids, where = self.tokens(group, sample)
            logp = self.policy(input_ids=ids).logits[0, where].log_softmax(-1)
            logp = logp.gather(-1, ids[0, where.start + 1 :, None])[:, 0]
            ratio = (logp - torch.from_numpy(unpack(sample.logprobs, LOGPROBS).copy())).exp()
            surrogate = torch.maximum(-ratio * advantage, -ratio.clamp(0.8, 1.2) * advantage)
            policy_loss = policy_loss + (surrogate * mask).sum() / n_tokens
            value_loss = value_loss + ((v - returns).square() * mask).sum() / n_tokens
            mean_value = mean_value + (v.detach() * mask).sum() / n_tokens
            mean_return = mean_return + (returns * mask).sum() / n_tokens
        metrics = {"pg_loss": policy_loss, "critic-value_loss": value_loss}
        metrics |= {"values": mean_value, "returns": mean_return, "critic-value_clipfrac": torch.zeros(())}
        for name, optimizer, loss in zip(
            ("grad_norm", "critic-grad_norm"), self.optimizers, (policy_loss, value_loss), strict=True
        ):
            optimizer.zero_grad()
            loss.backward()
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            metrics[name] = torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
        return {name: value.item() for name, value in metrics.items()}
