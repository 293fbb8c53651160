"""Muon: momentum whose update is orthogonalised, for the matrices of small Transformers."""

from __future__ import annotations

from collections.abc import Iterable

import torch

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def orthogonalise(stack: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """Newton-Schulz iteration of Muon: bring all singular values of some matrices near 1.

    ``torch.optim.Muon`` iterates in bfloat16, one matrix at a time: many times slower on a CPU without bfloat16 units.

    Args:
        stack: (N, rows, columns) float32, rows <= columns.
        steps: iterations; five suffice for an optimizer's update.

    Returns:
        (N, rows, columns) float32.
    """
    a, b, c = _COEFFICIENTS
    x: torch.Tensor = stack / (stack.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


class Muon(torch.optim.Optimizer):
    """Keller Jordan's Muon with Nesterov momentum, for 2-D parameters.

    Args:
        params: matrices; embeddings and vectors belong to another optimizer.
        lr: learning rate, scaled by sqrt(max(1, rows / columns)) for each matrix.
        momentum: of the moving average of gradients.
    """

    def __init__(self, params: Iterable[torch.nn.Parameter], lr: float, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every matrix; those of one shape are orthogonalised as one batch."""
        for group in self.param_groups:
            stacks: dict[tuple[int, ...], list[tuple[torch.nn.Parameter, torch.Tensor]]] = {}
            for p in group["params"]:
                if p.grad is None:
                    continue
                buffer = self.state[p].setdefault("momentum", torch.zeros_like(p))
                buffer.lerp_(p.grad, 1 - group["momentum"])
                update = p.grad.lerp(buffer, group["momentum"])
                update = update.T if p.shape[0] > p.shape[1] else update
                stacks.setdefault(tuple(update.shape), []).append((p, update))
            for members in stacks.values():
                updates = orthogonalise(torch.stack([update for _, update in members]))
                for (p, _), update in zip(members, updates, strict=True):
                    tall = p.shape[0] > p.shape[1]
                    p.sub_(update.T if tall else update, alpha=group["lr"] * max(1, p.shape[0] / p.shape[1]) ** 0.5)
