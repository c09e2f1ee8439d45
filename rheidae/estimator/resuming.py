"""Training that stops and goes on, to the same end as if it had not stopped."""

from __future__ import annotations

from typing import Any

from skorch import NeuralNetRegressor
from skorch.callbacks import EarlyStopping
from skorch.history import History
from torch import Tensor

from rheidae.estimator.callbacks.saving import callback_state, copy_state, plain_history, restore_callback
from rheidae.estimator.randomness import OwnRandomness, get_rng, set_rng
from rheidae.exceptions import RunError

STATE_FORMAT = 1

NOT_A_STATE = (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError)
"""What a state raises that is data, but not a training state."""


class Resumable(OwnRandomness, NeuralNetRegressor):
    """A net whose state at the end of an epoch can be taken out, and put back into another of the same parameters."""

    state_: dict[str, Any] | None = None
    interrupted_: bool = False
    last_checkpoint_: str | None = None
    box3d_valid_: dict[str, float] | None = None
    rng_to_restore_: dict[str, Tensor] | None = None
    planned_epochs_: int = 1

    def _forget_batches(self) -> None:
        """Let go of what is of use during a training alone."""

    def on_train_begin(self, net: Any, X: Any = None, y: Any = None, **kwargs: Any) -> None:
        """Forget what belongs to the last training."""
        super().on_train_begin(net, X, y, **kwargs)
        self.box3d_valid_ = None
        self.interrupted_ = False
        self.rng_to_restore_ = None

    def on_epoch_begin(self, net: Any, **kwargs: Any) -> None:
        """Open the epoch in the history; after a resume, continue with the random numbers of then.

        Batches are kept of the present epoch alone, where skorch keeps all.
        """
        if self.history:
            self.history.record("batches", [])
        super().on_epoch_begin(net, **kwargs)
        self.in_epoch_ = True
        if self.rng_to_restore_ is not None:
            set_rng(self.rng_to_restore_, self._device)
            self.rng_to_restore_ = None

    def on_epoch_end(self, net: Any, **kwargs: Any) -> None:
        """Close it."""
        super().on_epoch_end(net, **kwargs)
        self.in_epoch_ = False

    def fit_loop(self, X: Any, y: Any = None, epochs: int | None = None, **fit_params: Any) -> Any:
        """Train for `epochs`, or for what is left of them in a resumed run."""
        self.in_epoch_ = False
        self.planned_epochs_ = epochs or self.max_epochs
        try:
            if self.state_ is not None:
                epochs = self._restore(self.state_)
            return super().fit_loop(X, y, epochs, **fit_params)
        except KeyboardInterrupt:
            if self.in_epoch_:
                del self.history_[-1:]  # an epoch that is not complete has no numbers
            # skorch's early stopping uses the same way out.
            early = [cb for _, cb in self.callbacks_ if isinstance(cb, EarlyStopping)]
            self.interrupted_ = self.in_epoch_ or not any(cb.misses_ >= cb.patience for cb in early)
            raise
        finally:
            self.state_ = None
            self._forget_batches()

    def training_state(self, history: bool = True) -> dict[str, Any]:
        """Return everything that training needs to go on exactly, at the end of an epoch.

        Tensors and plain data alone: ``torch.load(..., weights_only=True)`` reads it back. Without its `history` it
        takes as long after many epochs as after few.
        """
        state = {
            "format": STATE_FORMAT,
            "epoch": len(self.history),
            "module": copy_state(self.module_.state_dict()),
            "criterion": copy_state(self.criterion_.state_dict()),
            "optimizer": copy_state(self.optimizer_.state_dict()),
            "callbacks": {name: callback_state(callback) for name, callback in self.callbacks_},
            "rng": get_rng(self._device),
            "box3d_valid": self.box3d_valid_,
        }
        return state | {"history": plain_history(self.history)} if history else state

    def _restore(self, state: dict[str, Any]) -> int:
        """Put the state back; return how many epochs are left."""
        try:
            self.module_.load_state_dict(state["module"])
            self.criterion_.load_state_dict(state["criterion"])
            self.optimizer_.load_state_dict(state["optimizer"])
            for name, callback in self.callbacks_:
                restore_callback(callback, state["callbacks"].get(name, {}))
            self.history_ = History({"batches": [], **row} for row in state["history"])
            self.box3d_valid_ = state["box3d_valid"]
            set_rng(state["rng"], self._device)  # once more when the epoch begins; now, to see whether it is one
            self.rng_to_restore_ = state["rng"]
            return max(0, self.max_epochs - state["epoch"])
        except NOT_A_STATE as error:
            raise RunError(
                f"the training state does not fit the estimator ({type(error).__name__}: {error})"
            ) from error
