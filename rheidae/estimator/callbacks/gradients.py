"""One direction from the gradients of several tasks."""

from __future__ import annotations

import operator
from collections.abc import Callable

import torch
from skorch.callbacks import Callback
from torch import Tensor


class GradientCombiner(Callback):
    """Replace the summed gradient of the network by a combination of the gradients of its tasks.

    The tasks are the weighted loss terms and, where there are constraints, their penalty as one more.

    Parameters
    ----------
    aggregator : callable
        From the Jacobian ``(tasks, parameters)`` to a direction ``(parameters,)``, the one that takes the place of
        the gradient; an aggregator of torchjd (``UPGrad()``, ``CAGrad(c=0.5)``) fits as it is.
    active_only : bool
        Leave out the tasks whose gradient is zero in the batch, such as a constraint that is kept. Aggregators that
        look for a direction which serves every task (``CAGrad``, ``MGDA``) find none that serves such a task, and
        training would stand still. False for an aggregator with a number of its own for each task (``Constant``).

    Notes
    -----
    Trained loss weights take no part: their gradients are those of the total weighted loss, because they belong to no
    task and a projection among tasks says nothing about them.
    """

    def __init__(self, aggregator: Callable[[Tensor], Tensor], active_only: bool = True) -> None:
        self.aggregator = aggregator
        self.active_only = active_only

    def combine(self, jacobian: Tensor, gramian: Tensor) -> Tensor:
        """Return the direction ``(parameters,)``; `gramian` is ``jacobian @ jacobian.T``, already there."""
        if self.active_only:
            jacobian = jacobian[gramian.diagonal() > 0]
        return self.aggregator(jacobian) if len(jacobian) else jacobian.new_zeros(jacobian.shape[1])


class PCGrad(GradientCombiner):
    """Projecting conflicting gradients (Yu et al. 2020, arXiv:2001.06782, algorithm 1).

    For each task i, over the other tasks j in random order: where ``g_i . g_j < 0``, ``g_i`` loses its part along the
    *original* ``g_j``. The results are summed.

    Each projected gradient stays a combination of the original ones, so only coefficients are projected, with the
    Gramian of the tasks; parameters are touched twice, to form the Gramian and the sum. This changes nothing but
    rounding. The orders come from torch's global generator, which the estimator seeds by `random_state`.
    """

    def __init__(self) -> None:
        pass

    def combine(self, jacobian: Tensor, gramian: Tensor) -> Tensor:
        """Return the sum of the projected gradients."""
        return pcgrad_coefficients(gramian).sum(dim=0) @ jacobian


def pcgrad_coefficients(gramian: Tensor, orders: Tensor | None = None) -> Tensor:
    """Projected gradients as combinations of the original ones, ``(T, T)``, row i that of task i, from their Gramian.

    ``orders (T, T)``, row i: the tasks in the order in which task i meets them; i itself is passed over. Drawn at
    random if not given.
    """
    tasks = len(gramian)
    if orders is None:
        orders = torch.rand(tasks, tasks, dtype=torch.float32).argsort(dim=1)
    # On Python's numbers: for a handful of tasks quicker than any tensor.
    inner = gramian.tolist()
    table = []
    for i, order in enumerate(orders.tolist()):
        row = [0.0] * len(inner)
        row[i] = 1.0
        for j in order:
            if j != i:
                product = sum(map(operator.mul, row, inner[j]))
                # A conflict needs two gradients that are not zero, to rounding too.
                if product < 0 and inner[j][j] > 0:
                    row[j] -= product / inner[j][j]
        table.append(row)
    return torch.tensor(table, dtype=gramian.dtype, device=gramian.device)
