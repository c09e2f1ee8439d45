"""A bound on the gradient of a step."""

from __future__ import annotations

from typing import Any

from skorch.callbacks import Callback
from torch.nn.utils import clip_grad_norm_


class GradientClipping(Callback):
    """Scale the network's gradient down to a norm that it must not exceed.

    Trained loss weights are left alone: their gradients have a scale of their own, and in a common norm a weight
    that is far from its place would slow the network down.

    Parameters
    ----------
    max_norm : float
        Largest norm.
    """

    def __init__(self, max_norm: float = 1.0) -> None:
        self.max_norm = max_norm

    def on_grad_computed(self, net: Any, **kwargs: Any) -> None:
        """Clip."""
        clip_grad_norm_(net.module_.parameters(), self.max_norm)
