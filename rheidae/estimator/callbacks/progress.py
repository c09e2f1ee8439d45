"""What a person who watches sees."""

from __future__ import annotations

import logging
from typing import Any

from skorch.callbacks import Callback
from tqdm import tqdm

from rheidae.system import commands

log = logging.getLogger(__name__)


class EpochProgress(Callback):
    """A progress bar on a terminal, plain lines in a log.

    Parameters
    ----------
    epochs : int
        Length of the bar.
    lines : int
        About how many lines a log gets.
    """

    def __init__(self, epochs: int, lines: int = 10) -> None:
        self.epochs = epochs
        self.lines = lines

    def on_train_begin(self, net: Any, **kwargs: Any) -> None:
        """Open the bar."""
        self.bar_ = tqdm(total=self.epochs, desc="training", unit="epoch", disable=not commands.on_terminal())

    def on_epoch_end(self, net: Any, **kwargs: Any) -> None:
        """Show the losses."""
        last = net.history[-1]
        shown = ("train_loss", "valid_loss", "box3d_valid_loss")
        losses = {name: f"{last[name]:.3e}" for name in shown if name in last}
        if not self.bar_.disable:
            self.bar_.set_postfix(losses)
            self.bar_.update()
        elif last["epoch"] == 1 or last["epoch"] % max(1, self.epochs // self.lines) == 0:
            log.info("epoch %4d  %s", last["epoch"], "  ".join(f"{name} {value}" for name, value in losses.items()))

    def on_train_end(self, net: Any, **kwargs: Any) -> None:
        """Close the bar."""
        self.bar_.close()
