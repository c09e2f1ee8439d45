"""Exact statistics for batch norms."""

from __future__ import annotations

from itertools import islice
from typing import Any

from skorch.callbacks import Callback
from torch.optim.swa_utils import update_bn


class BatchNormRecalibration(Callback):
    """Replace the running statistics of batch norms by exact means under the present weights.

    Running averages trail behind weights that move quickly. After the training batches of an epoch, and before its
    validation, the training rows go through the network once more, without gradients, and the statistics become the
    plain mean over their batches (`torch.optim.swa_utils.update_bn`; dropout is on, as it is in training).

    Parameters
    ----------
    warmup_epochs : int
        First epochs in which nothing is done.
    max_batches : int or None
        Training batches to use; None for all. Fewer are quicker and noisier.
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
        if not self.done_ and len(net.history) > self.warmup_epochs:
            size = net.get_params_for("iterator_train").get("batch_size", net.batch_size)
            options = net.get_params_for("iterator_valid")  # in order
            options["batch_size"] = len(self.dataset_train_) if size == -1 else size
            batches = net.iterator_valid(self.dataset_train_, **options)
            update_bn(islice(batches, self.max_batches), net.module_, net._device)
        self.done_ = True
