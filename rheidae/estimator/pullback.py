"""Derivatives of several tasks by the parameters of a network, without autograd's graph.

Projecting the gradients of tasks needs each of them. Autograd takes a pass over its graph per task, and for networks of
this size most of such a pass is overhead, or work that all tasks share. Here a forward pass keeps what the
pullbacks need, one pass carries the cotangents of all tasks back, and the gradients are written straight into the rows
of the Jacobian.

A layer is known by its exact type, because a subclass may compute something else. A network takes part by a method
``linearise(x)`` that returns `Linearised`; see `is_known`. Any other goes by
`rheidae.estimator.callbacks.gradients.jacobian`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import takewhile
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from rheidae.estimator.products import product


class TaskGradients:
    """The Jacobian ``(T, P)`` of several tasks, in memory that is used again for every batch.

    Parameters
    ----------
    parameters : list of Tensor
        By which to differentiate; P numbers together.
    tasks : int
        T.
    """

    def __init__(self, parameters: list[Tensor], tasks: int) -> None:
        sizes = [parameter.numel() for parameter in parameters]
        self.table = parameters[0].new_zeros(tasks, sum(sizes))
        self.columns = dict(zip(parameters, self.table.split(sizes, dim=1), strict=True))
        self.active = torch.arange(tasks)
        self.is_zero = torch.ones(tasks, dtype=torch.bool)

    @torch.no_grad()
    def fill(self, network: Linearised, cotangents: Tensor) -> Tensor:
        """Return the Jacobian from the derivatives ``(T, n, m)`` of the tasks by the network's output.

        It is overwritten by the next call, and not to be written to: rows of zeros are left as they are. Tasks whose
        derivative is zero in the whole batch (a constraint that is kept) get theirs without taking part.
        """
        if len(self.table) > 1:
            is_active = torch.from_numpy(cotangents.numpy().any(axis=(1, 2)))
            self.active = is_active.nonzero()[:, 0]
            if len(self.active) < len(self.table):
                self.table.index_fill_(0, (~is_active & ~self.is_zero).nonzero()[:, 0], 0)
                cotangents = cotangents.index_select(0, self.active)
            self.is_zero = ~is_active
        if len(self.active):
            # Rows outside, tasks inside: then one product of matrices serves all tasks.
            network.pullback(network.to_layers(cotangents).transpose(0, 1).contiguous(), self)
        return self.table

    def put(self, parameter: Tensor, values: Tensor) -> None:
        """Write the gradients ``(active tasks, numel)`` by a parameter; one that is frozen has no place."""
        if parameter in self.columns:
            self.columns[parameter].index_copy_(0, self.active, values)

    def put_products(self, parameter: Tensor, c: Tensor, x: Tensor) -> None:
        """Write ``c[:, t].T @ x`` for the cotangents ``c (n, T, out)`` of the active tasks and ``x (n, in)``."""
        if parameter in self.columns:
            self.put(parameter, product(c.flatten(1).T, x).view(c.shape[1], -1))


Pullback = Callable[[Tensor, TaskGradients], Tensor]
"""From cotangents ``(n, T, out)`` of a layer's output to those ``(n, T, in)`` of its input, in memory of their own."""

Rule = Callable[[Any, Tensor], tuple[Tensor, Pullback]]

RULES: dict[type[nn.Module], Rule] = {}


class Linearised(NamedTuple):
    """A network at one batch: layers, and around them what has no parameters."""

    output: Tensor
    """``(n, m)``, without a graph."""
    to_layers: Callable[[Tensor], Tensor]
    """From cotangents ``(T, n, m)`` of the output to those ``(T, n, k)`` of what the last layer returned."""
    pullback: Pullback
    """Of the layers. It reads their parameters: call it before they change."""


def rule(*kinds: type[nn.Module]) -> Callable[[Rule], Rule]:
    """Register how layers of these types are linearised: a function of layer and input."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(kinds, function))
        return function

    return register


def is_known(network: nn.Module) -> bool:
    """Whether ``network.linearise`` is there, and does what calling the network does."""
    kind = type(network)
    owner = next((k for k in kind.__mro__ if "linearise" in vars(k)), None)
    # A subclass that changes `forward` has to bring its own.
    if owner is None or kind.forward is not owner.forward:  # type: ignore[attr-defined]
        return False
    layers = list(network.modules())
    return not any(map(_has_hooks, layers)) and all(type(layer) in RULES and _is_plain(layer) for layer in layers[1:])


def _is_plain(layer: nn.Module) -> bool:
    return type(layer) is not nn.BatchNorm1d or (
        layer.affine and layer.track_running_stats and layer.momentum is not None
    )


def _has_hooks(layer: nn.Module) -> bool:
    return bool(layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks)


# --- layers ----------------------------------------------------------------------------------------------


@rule(nn.Sequential)
def chain(layers: Iterable[nn.Module], x: Tensor) -> tuple[Tensor, Pullback]:
    """Linearise one layer after the other; a batch norm and the elementwise layers behind it together."""
    pullbacks = []
    waiting = list(layers)
    while waiting:
        layer = waiting.pop(0)
        if type(layer) is nn.BatchNorm1d:
            behind = list(takewhile(lambda layer: type(layer) in ELEMENTWISE, waiting))
            del waiting[: len(behind)]
            x, pullback = _normalised(layer, behind, x)
        else:
            x, pullback = RULES[type(layer)](layer, x)
        pullbacks.append(pullback)
    pullbacks.reverse()

    def through_all(c: Tensor, gradients: TaskGradients) -> Tensor:
        for pullback in pullbacks:
            c = pullback(c, gradients)
        return c

    return x, through_all


@rule(nn.Linear)
def _linear(layer: nn.Linear, x: Tensor) -> tuple[Tensor, Pullback]:
    def pullback(c: Tensor, gradients: TaskGradients) -> Tensor:
        gradients.put_products(layer.weight, c, x)
        if layer.bias is not None:
            gradients.put(layer.bias, c.sum(dim=0))
        return product(c.flatten(0, 1), layer.weight).view(*c.shape[:2], -1)

    return product(x, layer.weight.T, layer.bias), pullback


def _normalised(norm: nn.BatchNorm1d, behind: Sequence[nn.Module], x: Tensor) -> tuple[Tensor, Pullback]:
    from rheidae.estimator._pullback_kernels import pull_normalised

    moving = norm.training
    weight, mean, variance = norm.weight, norm.running_mean, norm.running_var
    assert mean is not None
    assert variance is not None
    y, batch_mean, inverse = torch.native_batch_norm(
        x, weight, norm.bias, mean, variance, moving, norm.momentum or 0.0, norm.eps
    )
    if moving:
        norm.num_batches_tracked.add_(1)  # type: ignore[union-attr]
        mean = batch_mean
    else:
        inverse = (variance + norm.eps).rsqrt()
    y, slope = _value_and_slope(behind, y)

    def pullback(c: Tensor, gradients: TaskGradients) -> Tensor:
        out = torch.empty_like(c)
        by_bias, by_weight = torch.zeros_like(c[0]), torch.zeros_like(c[0])
        pull_normalised(
            *(tensor.detach().numpy() for tensor in (c, slope, x, mean, inverse, weight)), moving,
            *(tensor.numpy() for tensor in (out, by_bias, by_weight)),
        )  # fmt: skip
        gradients.put(norm.bias, by_bias)
        gradients.put(weight, by_weight)
        return out

    return y, pullback


@rule(nn.BatchNorm1d)
def _batch_norm(norm: nn.BatchNorm1d, x: Tensor) -> tuple[Tensor, Pullback]:
    return _normalised(norm, (), x)


ELEMENTWISE = (nn.SiLU, nn.ReLU, nn.GELU, nn.Tanh, nn.ELU, nn.Dropout)


@rule(*ELEMENTWISE)
def _elementwise(layer: nn.Module, x: Tensor) -> tuple[Tensor, Pullback]:
    y, slope = _value_and_slope((layer,), x)
    return y, lambda c, gradients: c * slope[:, None]


def _value_and_slope(layers: Sequence[nn.Module], x: Tensor) -> tuple[Tensor, Tensor]:
    """Value and derivative of elementwise layers one after the other."""
    if not layers:
        return x, torch.ones_like(x)
    if len(layers) == 1 and type(layers[0]) is nn.SiLU:
        # The default, in a third of the time.
        sigmoid = torch.sigmoid(x)
        y = x * sigmoid
        return y, torch.addcmul(sigmoid, y, 1 - sigmoid)
    with torch.enable_grad():
        leaf = y = x.detach().requires_grad_()
        for layer in layers:
            y = layer(y)
    return y.detach(), torch.autograd.grad(y, leaf, torch.ones_like(y))[0]
