"""Muon for the matrices of a transformer, AdamW for everything else, as one optimizer.

Muon (Jordan 2024, https://kellerjordan.github.io/posts/muon/) replaces a matrix's momentum by the nearest orthogonal
matrix, so that every direction moves equally far. `torch.optim.Muon` does it in bf16 whatever the machine, which is 100
times slower than fp32 on a processor without bf16 instructions, one matrix at a time, and knows nothing of the
AdamW that embeddings, norms and biases need beside it: hence this one.

Several processes share the work: each orthogonalizes some of the matrices, and one all-gather gives all of them to all
(Liu 2025, arXiv:2502.16982, section 2.3, whose parts are slices of ZeRO-1). Momenta are whole on every process, or, under
FSDP2, in parts like the weights.
"""

import math
from collections import defaultdict

import torch
from torch import distributed, nn

from data_prep.common.machine import bf16_is_fast

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # Jordan 2024: the steepest quintic at zero that still converges
SMALLEST = 1e-7  # norm that a matrix is divided by


def computed_in(device: torch.device) -> torch.dtype:
    """The precision of the iterations."""
    return torch.bfloat16 if bf16_is_fast(device.type) else torch.float32


@torch.no_grad()
def orthogonalize(matrices: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """The nearest (semi-)orthogonal matrices to a stack of them, by Newton-Schulz iterations.

    Args:
        matrices: (number, rows, columns).
        steps: iterations; five leave the singular values within about 0.7 to 1.2, which does as well as exactly 1.

    Returns a stack of the same shape and dtype.
    """
    a, b, c = COEFFICIENTS
    x = matrices.to(computed_in(matrices.device))
    if x.dtype == torch.float32 and max(x.shape[1:]) >= 2 * min(x.shape[1:]):
        return _orthogonalize_by_gram(x, steps).to(matrices.dtype)
    wide = x.size(1) <= x.size(2)
    x = x if wide else x.mT
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=SMALLEST)  # the iteration needs singular values of at most 1
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x if wide else x.mT).to(matrices.dtype)


def _orthogonalize_by_gram(x: torch.Tensor, steps: int) -> torch.Tensor:
    """The same for matrices that are not square: the iterations on the smaller of x xᵀ and xᵀ x, then one product with x.

    In half the time for matrices four times as wide as high. Not in bf16: what rounding leaves of singular values near
    zero would grow with every iteration.
    """
    a, b, c = COEFFICIENTS
    wide = x.size(1) <= x.size(2)
    gram = x @ x.mT if wide else x.mT @ x
    # The trace is the squared norm of x.
    norm = gram.diagonal(dim1=1, dim2=2).sum(1).sqrt().clamp(min=SMALLEST)[:, None, None]
    gram, product = gram / norm**2, None
    for step in range(steps):
        factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        factor.diagonal(dim1=1, dim2=2).add_(a)
        product = factor / norm if product is None else factor @ product
        if step < steps - 1:
            gram = factor @ (gram @ factor)
    return product @ x if wide else x @ product


def shares(costs: list[int], processes: int) -> list[int]:
    """Which process does each piece of work, so that all have about the same to do: the dearest first, to the idlest."""
    owners, loads = [0] * len(costs), [0] * processes
    for piece in sorted(range(len(costs)), key=lambda piece: -costs[piece]):
        owners[piece] = loads.index(min(loads))
        loads[owners[piece]] += costs[piece]
    return owners


def orthogonalize_together(pieces: list[torch.Tensor]) -> list[torch.Tensor]:
    """`orthogonalize` of matrices of any shapes that all processes hold, each of which does its share of them."""
    processes, rank = (
        (distributed.get_world_size(), distributed.get_rank()) if distributed.is_initialized() else (1, 0)
    )
    owners = shares([piece.numel() * min(piece.shape) for piece in pieces], processes)
    by_shape = defaultdict(list)  # matrices of one shape are orthogonalized in one batch
    for number, piece in enumerate(pieces):
        if owners[number] == rank:
            by_shape[tuple(piece.shape)].append(number)
    found = {}
    for numbers in by_shape.values():
        directions = orthogonalize(torch.stack([pieces[number] for number in numbers]))
        found.update(zip(numbers, directions, strict=True))
    if processes == 1:
        return [found[number] for number in range(len(pieces))]
    sizes = [0] * processes
    for piece, owner in zip(pieces, owners, strict=True):
        sizes[owner] += piece.numel()
    # Sent as precise as they were computed.
    device = pieces[0].device
    sent = torch.zeros(max(sizes), dtype=computed_in(device), device=device)
    if found:
        sent[: sizes[rank]] = torch.cat([found[number].flatten() for number in sorted(found)])
    gathered = torch.empty(processes * max(sizes), dtype=sent.dtype, device=device)
    distributed.all_gather_into_tensor(gathered, sent)
    places, directions = [owner * max(sizes) for owner in range(processes)], []
    for piece, owner in zip(pieces, owners, strict=True):
        direction = gathered[places[owner] : places[owner] + piece.numel()]
        directions.append(direction.view(piece.shape).to(piece.dtype))
        places[owner] += piece.numel()
    return directions


def is_sharded(tensor: torch.Tensor) -> bool:
    """Whether this is a DTensor, of which each process holds a part; asked without the class, which is slow to import."""
    return hasattr(tensor, "full_tensor")


def part_of(whole: torch.Tensor, sharded: torch.Tensor) -> torch.Tensor:
    """What each process holds of a tensor that all have whole, cut as `sharded` is; nothing is sent."""
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(whole, sharded.device_mesh, sharded.placements, src_data_rank=None)


class MuonWithAdamW(torch.optim.Optimizer):
    """Muon on the 2-D weights inside the blocks of `model`, AdamW on embeddings, head, norms, biases and weights of more
    dimensions, such as convolutions and experts that lie in one.

    Args:
        model: the model to train.
        muon_lr: step length of Muon, on AdamW's scale: the update is scaled by 0.2·sqrt(max(rows, columns)) so that its
            root mean square is AdamW's (Liu 2025, arXiv:2502.16982, section 2.2).
        lr: learning rate of AdamW.
        weight_decay: decoupled, on matrices, embeddings and weights of more dimensions; not on norms and biases.
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
        self.parts = []  # how many matrices lie side by side in each
        for name, weight in model.named_parameters():
            if not weight.requires_grad:
                continue
            if weight.ndim < 2:
                vectors.append(weight)
            elif weight.ndim > 2 or id(weight) in in_tables or "lm_head" in name or "score" in name:
                tables.append(weight)
            else:
                matrices.append(weight)
                # GPT-2 keeps query, key and value in one matrix; they are three, and are orthogonalized as three.
                self.parts.append(3 if "c_attn" in name else 1)
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
        updates = []  # (weight, how many matrices it holds, their momentum after Nesterov)
        for weight, parts in zip(group["params"], self.parts, strict=True):
            if weight.grad is None:
                continue
            state = self.state[weight]
            if not state:
                state["momentum"] = torch.zeros_like(weight)
            state["momentum"].lerp_(weight.grad, 1 - group["momentum"])
            updates.append((weight, parts, weight.grad.lerp(state["momentum"], group["momentum"])))
            weight.mul_(1 - group["lr"] * group["weight_decay"])
        if not updates:  # after PPO's own steps the Trainer takes one, for which no gradient is left
            return
        at_once = len(updates)
        if any(is_sharded(weight) for weight, *_ in updates):
            # Whole matrices, one for each process at a time, of one shape where possible: all at once have no room.
            at_once = distributed.get_world_size()
            updates.sort(key=lambda update: update[0].shape)
        for start in range(0, len(updates), at_once):
            some = updates[start : start + at_once]
            whole = [update.full_tensor() if is_sharded(update) else update for *_, update in some]
            pieces = [matrix.chunk(parts, dim=-1) for (_, parts, _), matrix in zip(some, whole, strict=True)]
            directions = iter(orthogonalize_together([piece for of_weight in pieces for piece in of_weight]))
            for (weight, parts, _), of_weight in zip(some, pieces, strict=True):
                found = [next(directions) for _ in range(parts)]
                direction = torch.cat(found, dim=-1) if parts > 1 else found[0]
                if is_sharded(weight):
                    direction = part_of(direction, weight)
                weight.add_(direction, alpha=-group["lr"] * 0.2 * math.sqrt(max(of_weight[0].shape)))

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
