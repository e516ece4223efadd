"""Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon): momentum made orthogonal, for the matrices of blocks.

PyTorch's own computes in bf16 whatever the machine; where bf16 is not native its products took three quarters of each
step. This one is told the type.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

NEWTON_SCHULZ = (3.4445, -4.775, 2.0315)  # of the quintic iteration; its fixed points are about 1, not exactly
ROUNDS = 5


class Muon(torch.optim.Optimizer):
    """`dtype`: of the products that make the momentum orthogonal; the momentum and the weights stay fp32."""

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
        dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # noqa: ARG002
        for group in self.param_groups:
            lr, momentum = group["lr"], group["momentum"]
            for p in (p for p in group["params"] if p.grad is not None):
                state = self.state[p]
                kept = state.setdefault("momentum_buffer", torch.zeros_like(p.grad))
                kept.lerp_(p.grad, 1 - momentum)
                ahead = orthogonal(p.grad.lerp(kept, momentum).to(self.dtype))  # Nesterov's
                p.mul_(1 - lr * group["weight_decay"])
                p.add_(ahead.to(p.dtype), alpha=-lr * math.sqrt(max(1.0, p.shape[0] / p.shape[1])))


def orthogonal(matrix: Tensor) -> Tensor:
    """A matrix near U V^T of the singular value decomposition, by five Newton-Schulz rounds: M N -> M N."""
    a, b, c = NEWTON_SCHULZ
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(ROUNDS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x
