"""Exact statistics for batch norms."""

from __future__ import annotations

from typing import Any

import torch
from skorch.callbacks import Callback
from torch import nn

BATCH_NORM = nn.modules.batchnorm._BatchNorm


class BatchNormRecalibration(Callback):
    """Replace the running statistics of batch norms by exact means under the present weights.

    Running averages trail behind weights that move quickly. After the training batches of an epoch, and before its
    validation, the training rows go through the network once more, without gradients, and the statistics become the
    plain mean over their batches.

    Parameters
    ----------
    warmup_epochs : int
        First epochs in which nothing is done.
    max_batches : int or None
        Batches to use; None for all. Fewer are quicker and noisier.
    """

    def __init__(self, warmup_epochs: int = 0, max_batches: int | None = None) -> None:
        self.warmup_epochs = warmup_epochs
        self.max_batches = max_batches

    def on_epoch_begin(self, net: Any, dataset_train: Any = None, **kwargs: Any) -> None:
        """Remember the training rows, and that this epoch is not yet recalibrated."""
        self.dataset_train_ = dataset_train
        self.done_ = False

    def on_batch_begin(self, net: Any, batch: Any = None, training: bool = False, **kwargs: Any) -> None:
        """Recalibrate before the first validation batch."""
        if not training:
            self._recalibrate(net)

    def on_epoch_end(self, net: Any, **kwargs: Any) -> None:
        """Recalibrate where no validation batch came by."""
        self._recalibrate(net)
        self.dataset_train_ = None

    def _recalibrate(self, net: Any) -> None:
        if self.done_ or len(net.history) <= self.warmup_epochs:
            return
        self.done_ = True
        norms = [module for module in net.module_.modules() if isinstance(module, BATCH_NORM)]
        if not norms:
            return
        momenta = [norm.momentum for norm in norms]
        net.module_.eval()  # dropout stays off; only the norms collect
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # torch's sign for a plain mean
            norm.train()
        with torch.no_grad():
            for index, (x, *_) in enumerate(net.get_iterator(self.dataset_train_, training=False)):
                if index == self.max_batches:
                    break
                net.infer(x)
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        net.module_.eval()
