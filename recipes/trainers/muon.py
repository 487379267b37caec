"""Muon for the matrices of a transformer, AdamW for everything else, as one optimizer.

Muon (Jordan 2024, https://kellerjordan.github.io/posts/muon/) replaces a matrix's momentum by the nearest orthogonal
matrix, so that every direction moves equally far. `torch.optim.Muon` does it in bf16 whatever the machine, which is 100
times slower than fp32 on a processor without bf16 instructions, one matrix at a time, and knows nothing of the
AdamW that embeddings, norms and biases need beside it: hence this one.
"""

import math
from collections import defaultdict

import torch
from torch import nn

from data_prep.common.machine import bf16_is_fast

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # Jordan 2024: the steepest quintic at zero that still converges


@torch.no_grad()
def orthogonalize(matrices: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """The nearest (semi-)orthogonal matrices to a stack of them, by Newton-Schulz iterations.

    Args:
        matrices: (number, rows, columns).
        steps: iterations; five leave the singular values within about 0.7 to 1.2, which does as well as exactly 1.

    Returns a stack of the same shape and dtype.
    """
    a, b, c = COEFFICIENTS
    x = matrices.to(torch.bfloat16 if bf16_is_fast() else torch.float32)
    wide = x.size(1) <= x.size(2)
    x = x if wide else x.mT
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)  # the iteration needs singular values of at most 1
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x if wide else x.mT).to(matrices.dtype)


class MuonWithAdamW(torch.optim.Optimizer):
    """Muon on the 2-D weights inside the blocks of `model`, AdamW on embeddings, head, norms and biases.

    Args:
        model: the model to train.
        muon_lr: step length of Muon, on AdamW's scale: the update is scaled by 0.2·sqrt(max(rows, columns)) so that its
            root mean square is AdamW's (Liu 2025, arXiv:2502.16982, section 2.2).
        lr: learning rate of AdamW.
        weight_decay: decoupled, on matrices and embeddings; not on norms and biases.
        momentum: of Muon (Nesterov).
        betas, eps: of AdamW.
    """

    def __init__(
        self,
        model: nn.Module,
        muon_lr: float,
        lr: float,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
    ) -> None:
        embeddings = [module for module in model.modules() if isinstance(module, nn.Embedding)]
        in_tables = {id(weight) for module in embeddings for weight in module.parameters()}
        matrices, tables, vectors = [], [], []
        for name, weight in model.named_parameters():
            if not weight.requires_grad:
                continue
            if weight.ndim < 2:
                vectors.append(weight)
            elif id(weight) in in_tables or "lm_head" in name or "score" in name:
                tables.append(weight)
            else:
                matrices.append(weight)
                # GPT-2 keeps query, key and value in one matrix; they are three, and are orthogonalized as three.
                weight.muon_parts = 3 if "c_attn" in name else 1
        adamw = {"muon": False, "lr": lr, "betas": betas, "eps": eps}
        groups = [
            {"params": matrices, "muon": True, "lr": muon_lr, "momentum": momentum, "weight_decay": weight_decay},
            {"params": tables, **adamw, "weight_decay": weight_decay},
            {"params": vectors, **adamw, "weight_decay": 0.0},
        ]
        super().__init__([group for group in groups if group["params"]], {})

    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            self._step_muon(group) if group["muon"] else self._step_adamw(group)
        return loss

    def _step_muon(self, group: dict) -> None:
        by_shape = defaultdict(list)  # matrices of one shape are orthogonalized in one batch
        for weight in group["params"]:
            if weight.grad is None:
                continue
            state = self.state[weight]
            if not state:
                state["momentum"] = torch.zeros_like(weight)
            state["momentum"].lerp_(weight.grad, 1 - group["momentum"])
            update = weight.grad.lerp(state["momentum"], group["momentum"])  # Nesterov
            weight.mul_(1 - group["lr"] * group["weight_decay"])
            for part, piece in zip(
                weight.chunk(weight.muon_parts, dim=-1), update.chunk(weight.muon_parts, dim=-1), strict=True
            ):
                flip = piece.size(0) > piece.size(1)
                by_shape[tuple(sorted(piece.shape))].append((part, piece.mT if flip else piece, flip))
        for shape, entries in by_shape.items():
            scale = group["lr"] * 0.2 * math.sqrt(max(shape))
            directions = orthogonalize(torch.stack([piece for _, piece, _ in entries]))
            for (part, _, flip), direction in zip(entries, directions, strict=True):
                part.add_(direction.mT if flip else direction, alpha=-scale)

    def _step_adamw(self, group: dict) -> None:
        beta1, beta2 = group["betas"]
        for weight in group["params"]:
            if weight.grad is None:
                continue
            state = self.state[weight]
            if not state:
                state.update(step=0, exp_avg=torch.zeros_like(weight), exp_avg_sq=torch.zeros_like(weight))
            state["step"] += 1
            state["exp_avg"].lerp_(weight.grad, 1 - beta1)
            state["exp_avg_sq"].mul_(beta2).addcmul_(weight.grad, weight.grad, value=1 - beta2)
            weight.mul_(1 - group["lr"] * group["weight_decay"])
            denominator = (state["exp_avg_sq"] / (1 - beta2 ** state["step"])).sqrt_().add_(group["eps"])
            weight.addcdiv_(state["exp_avg"], denominator, value=-group["lr"] / (1 - beta1 ** state["step"]))
