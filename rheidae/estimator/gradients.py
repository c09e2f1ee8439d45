"""The gradients of several tasks, and where they go."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def jacobian(outputs: Tensor, cotangents: Tensor, parameters: list[Tensor], together: bool = True) -> Tensor:
    """Derivatives ``(T, P)`` of T tasks by P `parameters`, from those by `outputs`, ``cotangents (T, ...)``.

    The graph of the outputs is kept. Not `together`: a pass a task, for networks with operations that torch has no
    batching rule for; else all are carried back in one.
    """
    if not parameters:
        return outputs.new_zeros(len(cotangents), 0)
    if len(cotangents) == 1 or not together:
        rows = (torch.autograd.grad(outputs, parameters, c, retain_graph=True, allow_unused=True) for c in cotangents)
        return torch.stack([torch.cat([_flat(g, p) for g, p in zip(row, parameters, strict=True)]) for row in rows])
    if outputs.device.type == "cpu":
        active = torch.from_numpy(cotangents.flatten(1).numpy().any(axis=1))
        if not active.all():
            # A constraint that is kept needs no pass. Elsewhere it would cost more to ask.
            table = outputs.new_zeros(len(cotangents), sum(p.numel() for p in parameters))
            if active.any():
                table[active] = jacobian(outputs, cotangents[active], parameters)
            return table
    parts = torch.autograd.grad(
        outputs, parameters, cotangents, retain_graph=True, allow_unused=True, is_grads_batched=True
    )
    tasks = len(cotangents)
    columns = [
        p.new_zeros(tasks, p.numel()) if g is None else g.reshape(tasks, -1)
        for g, p in zip(parts, parameters, strict=True)
    ]
    return torch.cat(columns, dim=1)


def _flat(gradient: Tensor | None, parameter: Tensor) -> Tensor:
    """A gradient as a vector; zeros where nothing depends on the parameter."""
    return parameter.new_zeros(parameter.numel()) if gradient is None else gradient.reshape(-1)


def conflicts(gramian: Tensor) -> Tensor:
    """Return the number of task pairs whose gradients point against each other, as a scalar tensor."""
    return (gramian < 0).sum() / 2


def set_gradients(parameters: list[Tensor], flat: Tensor) -> bool:
    """Cut a flat vector into the ``.grad`` of `parameters`, and return True; add it to those that are there already."""
    start, fresh = 0, True
    for parameter in parameters:
        stop = start + parameter.numel()
        part = flat[start:stop].view_as(parameter)
        fresh &= parameter.grad is None
        parameter.grad = part if parameter.grad is None else parameter.grad + part
        start = stop
    return fresh


def last_shared_parameters(module: Any) -> list[Tensor]:
    """Parameters of the last layer that all tasks share, of those that are trained.

    A module says it by a method of this name; otherwise it is the weight of the module's last `torch.nn.Linear`, in the
    order of registration, since every task reads the same outputs. Where that is frozen, the last parameter that is not
    takes its place. Raises `ValueError` if the module does neither.
    """
    if hasattr(module, "last_shared_parameters"):
        shared = list(module.last_shared_parameters())
    else:
        linear = [layer for layer in module.modules() if isinstance(layer, torch.nn.Linear)]
        if not linear:
            raise ValueError(
                f"{type(module).__name__} has no torch.nn.Linear: give it last_shared_parameters() for GradNorm"
            )
        shared = [linear[-1].weight]
    trained = [p for p in shared if p.requires_grad]
    return trained or [p for p in module.parameters() if p.requires_grad and p.ndim > 1][-1:]
