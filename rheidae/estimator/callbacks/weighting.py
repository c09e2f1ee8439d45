"""Weights of the loss terms that change while the network is trained.

A scheme is a callback and a module: the module holds what is trained or remembered, sits in the criterion as
``criterion_.weighting``, and so reaches the optimizer (without weight decay) and the checkpoints. It multiplies the
loss terms, their fixed weights included, by `factors`. Gradients of trained weights are written down here in closed
form, so that nothing of them can reach the network.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from skorch.callbacks import Callback
from torch import Tensor, nn

from rheidae.estimator.gradients import last_shared_parameters


class LossWeights(nn.Module):
    """Factors of the loss terms; this base keeps them at one."""

    needs_norms = False
    """Whether `backward` wants the gradient norms of the weighted tasks on the last shared layer."""

    def __init__(self, tasks: int) -> None:
        super().__init__()
        self.tasks = tasks

    def start(self, losses: Tensor) -> None:
        """Look at the losses ``(tasks,)`` of a batch before `factors` are asked for."""

    def factors(self) -> Tensor:
        """Return the present factors ``(tasks,)``, without a graph."""
        raise NotImplementedError

    def extra(self) -> Tensor | float:
        """Return what the scheme adds to the objective besides the weighted terms, without a graph."""
        return 0.0

    def backward(self, losses: Tensor, norms: Tensor | None) -> None:
        """Set the gradients of the trained weights from the losses ``(tasks,)`` of a batch."""


class WeightingCallback(Callback):
    """Base of the weighting schemes."""

    lr: float | None = None

    def make_module(self, tasks: int) -> LossWeights:
        """Return the module that goes into the criterion."""
        raise NotImplementedError


# --- Kendall and Gal -------------------------------------------------------------------------------------


class LogSigmas(LossWeights):
    """``s`` of `KendallGal`: logarithms of the tasks' noise levels."""

    def __init__(self, tasks: int, initial: float | str, floor: float) -> None:
        super().__init__(tasks)
        self.floor = floor
        by_number = not isinstance(initial, str)
        self.s = nn.Parameter(torch.full((tasks,), float(initial) if by_number else 0.0))
        # The buffer travels in checkpoints; the flag saves looking at it, which would stop an accelerator.
        self.register_buffer("started", torch.tensor(by_number))
        self.started: Tensor
        self._looked = by_number

    @torch.no_grad()
    def start(self, losses: Tensor) -> None:
        """Put ``s`` at its optimum for the first batch, unless it has a start already."""
        if self._looked:
            return
        self._looked = True
        # A term that is zero starts neutral: the weight of its optimum would shatter the first violation.
        optimum = torch.where(losses > 0, 0.5 * (losses + self.floor).log(), 0.0)
        self.s.copy_(torch.where(self.started, self.s, optimum))
        self.started.fill_(True)

    def factors(self) -> Tensor:
        """``exp(-2 s) / 2``."""
        return 0.5 * torch.exp(-2 * self.s.detach())

    def extra(self) -> Tensor:
        """``sum s``."""
        return self.s.detach().sum()

    def backward(self, losses: Tensor, norms: Tensor | None) -> None:
        """``d/ds (exp(-2 s) (L + floor) / 2 + s)``."""
        self.s.grad = (1 - torch.exp(-2 * self.s.detach()) * (losses + self.floor)).to(self.s.dtype)


class KendallGal(WeightingCallback):
    """Weights from trained noise levels (Kendall, Gal and Cipolla, arXiv:1705.07115).

    The objective is ``sum_i exp(-2 s_i) L_i / 2 + s_i`` over network and ``s``; at its minimum ``exp(s_i)`` is the
    noise level of task i, ``sqrt(L_i)`` for a mean squared error.

    Parameters
    ----------
    initial : float or "first_batch"
        Start of every ``s_i``. "first_batch" puts each at its optimum for the losses of the first batch (0 for a loss
        of zero). From 0, losses much smaller than one take ``|ln L_i| / (2 lr)`` steps to gain their weight.
    lr : float or None
        Learning rate of ``s``; None for the network's.
    floor : float
        Smallest noise variance.

    Notes
    -----
    Deviations from the paper: the start at the first batch (the paper leaves it open), and the floor. A term that
    reaches exactly zero, such as ``unphysical`` on physical predictions, has its minimum at ``s = -inf``, and its
    weight would grow without end. In the gradient of ``s``, and nowhere else, ``L_i + floor`` stands for ``L_i``,
    which bounds ``exp(s_i)`` from below by ``sqrt(floor)``.
    """

    def __init__(self, initial: float | str = "first_batch", lr: float | None = None, floor: float = 1e-8) -> None:
        self.initial = initial
        self.lr = lr
        self.floor = floor

    def make_module(self, tasks: int) -> LogSigmas:
        """Return the ``s``."""
        if isinstance(self.initial, str) and self.initial != "first_batch":
            raise ValueError(f"KendallGal: initial={self.initial!r} is neither a number nor 'first_batch'")
        if not self.floor > 0:
            raise ValueError(f"KendallGal: floor={self.floor!r} must be positive")
        return LogSigmas(tasks, self.initial, self.floor)


# --- dynamic weight average ------------------------------------------------------------------------------


class AveragedWeights(LossWeights):
    """Weights of `DynamicWeightAverage` and the losses of the last epoch."""

    def __init__(self, tasks: int) -> None:
        super().__init__(tasks)
        self.register_buffer("weights", torch.ones(tasks))
        self.register_buffer("previous", torch.full((tasks,), math.nan, dtype=torch.float64))
        self.weights: Tensor
        self.previous: Tensor

    def factors(self) -> Tensor:
        """Return the weights of this epoch."""
        return self.weights

    @torch.no_grad()
    def update(self, losses: Tensor, temperature: float) -> None:
        """Set the weights of the next epoch from the mean losses of this one."""
        losses = losses.to(self.previous)
        rate = losses / self.previous
        # Before the second epoch, and for a term that was zero, there is no rate.
        rate = torch.where(torch.isfinite(rate), rate, 1.0)
        self.weights.copy_(self.tasks * torch.softmax(rate / temperature, dim=0))
        self.previous.copy_(losses)


class DynamicWeightAverage(WeightingCallback):
    """Weights from the rates at which the terms fall (Liu, Johns and Davison 2019, arXiv:1803.10704).

    Once an epoch: ``w = T softmax(r / temperature)`` with ``r_i = L_i(t-1) / L_i(t-2)``, the L being means of the
    training loss over an epoch. In the first two epochs the weights are one; always they sum to the number of tasks T.

    Parameters
    ----------
    temperature : float
        Larger: more alike.

    Notes
    -----
    A term that was exactly zero has no rate; it counts as 1, a term that neither falls nor rises.
    """

    def __init__(self, temperature: float = 2.0) -> None:
        self.temperature = temperature

    def make_module(self, tasks: int) -> AveragedWeights:
        """Return the weights and the memory."""
        if not self.temperature > 0:
            raise ValueError(f"DynamicWeightAverage: temperature={self.temperature!r} must be positive")
        return AveragedWeights(tasks)

    def on_epoch_end(self, net: Any, **kwargs: Any) -> None:
        """Set the weights of the next epoch."""
        means = [weight * net.history[-1, f"train_{name}"] for name, weight in net.criterion_.weights.items()]
        net.criterion_.weighting.update(torch.tensor(means, dtype=torch.float64), self.temperature)


# --- GradNorm --------------------------------------------------------------------------------------------


class NormedWeights(LossWeights):
    """Logarithms of the weights of `GradNorm`, and the losses of the first batch."""

    needs_norms = True

    def __init__(self, tasks: int, alpha: float) -> None:
        super().__init__(tasks)
        self.alpha = alpha
        self.log_w = nn.Parameter(torch.zeros(tasks))
        self.register_buffer("first", torch.zeros(tasks))
        self.first: Tensor

    def factors(self) -> Tensor:
        """Return the weights."""
        return self.log_w.detach().exp()

    def targets(self, losses: Tensor, norms: Tensor) -> Tensor:
        """Norms to aim at, ``mean(G) r^alpha``; they count as constants."""
        self.first.copy_(torch.where(self.first > 0, self.first, losses))
        rate = torch.where(self.first > 0, losses / self.first, 1.0)
        inverse_rate = rate / rate.mean().clamp(min=torch.finfo(rate.dtype).tiny)
        return norms.mean() * inverse_rate**self.alpha

    @torch.no_grad()
    def backward(self, losses: Tensor, norms: Tensor | None) -> None:
        """Gradient of ``sum_i |G_i - target_i| / mean(G)`` by ``log w``; ``G_i`` is proportional to ``w_i``."""
        assert norms is not None
        mean = norms.mean().clamp(min=torch.finfo(norms.dtype).tiny)
        self.log_w.grad = (torch.sign(norms - self.targets(losses, norms)) * (norms / mean)).to(self.log_w.dtype)

    @torch.no_grad()
    def renormalise(self) -> None:
        """Make the weights sum to the number of tasks."""
        self.log_w.sub_(torch.logsumexp(self.log_w, dim=0) - math.log(self.tasks))


class GradNorm(WeightingCallback):
    """Weights that bring the gradient norms of the tasks together (Chen et al. 2018, arXiv:1711.02257).

    The weights are trained on a loss of their own, ``sum_i |G_i - mean(G) r_i^alpha|`` with ``G_i`` the norm of the
    gradient of ``w_i L_i`` on the last shared layer and ``r_i`` the inverse training rate, ``L_i / L_i(0)`` over its
    mean; the targets count as constants. After each step they are scaled to sum to the number of tasks. The
    network's gradient is that of ``sum_i w_i L_i`` with the weights kept fixed.

    Parameters
    ----------
    alpha : float
        Larger: tasks that fall behind gain more weight. 0 makes all norms equal.
    lr : float or None
        Learning rate of the weights; None for the network's.

    Notes
    -----
    Deviations from the paper: the weights are trained through their logarithm, so that they stay positive and move by
    factors where tasks differ by factors; their loss is divided by ``mean(G)``, a constant like the targets, because
    Adam would remember the large gradients of the beginning for a thousand steps; and a term that is zero in the first
    batch takes its ``L(0)`` from the first batch in which it is not, with an inverse rate of 1 until then.

    The last shared layer: see `rheidae.estimator.gradients.last_shared_parameters`.
    """

    def __init__(self, alpha: float = 1.5, lr: float | None = 0.025) -> None:
        self.alpha = alpha
        self.lr = lr

    def make_module(self, tasks: int) -> NormedWeights:
        """Return the weights."""
        return NormedWeights(tasks, self.alpha)

    def on_train_begin(self, net: Any, **kwargs: Any) -> None:
        """Find the last shared layer before the first batch, or say that there is none."""
        last_shared_parameters(net.module_)

    def on_batch_end(self, net: Any, training: bool = False, **kwargs: Any) -> None:
        """Renormalise the weights that the optimizer has moved."""
        if training:
            net.criterion_.weighting.renormalise()


WEIGHTINGS: dict[str, type[WeightingCallback]] = {
    "kendall_gal": KendallGal,
    "dwa": DynamicWeightAverage,
    "gradnorm": GradNorm,
}
