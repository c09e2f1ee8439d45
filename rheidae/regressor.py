"""The estimator: scikit-learn outside, torch inside."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from sklearn.utils import check_random_state
from skorch import NeuralNetRegressor
from skorch.callbacks import EpochTimer, GradientNormClipping, LRScheduler, PrintLog
from skorch.dataset import unpack_data
from torch import Tensor

from rheidae import fourflux
from rheidae.batches import BatchSlicer, FourFluxDataset
from rheidae.exceptions import FourFluxError
from rheidae.losses import FourFluxLoss
from rheidae.modules import ResidualFFIModel


class FluxRegressor(NeuralNetRegressor):
    """Final four-fluxes of the fast flavor instability, learned from simulations on top of Box3D.

    ``X (n, 48)`` holds the initial four-fluxes of six species and Box3D's answer, ``y (n, 24)`` the simulated final
    four-fluxes, both flat (``4 * species + component``) and in one common unit, any unit: each row is divided by
    its total number density before the network sees it, and `predict` returns the unit of its input.

    Parameters
    ----------
    module : class or instance
        Network from 48 numbers to a correction of 24; its arguments go by ``module__``.
    criterion : class or instance
        Named loss terms on the final four-flux; its weights go by ``criterion__``.
    predict_residual : bool
        True: the network predicts what Box3D leaves unexplained, and one that outputs zero is Box3D. False: it predicts
        the change from the initial state and has to learn what Box3D knows. `predict` and `score` return and
        compare final four-fluxes either way.
    average_heavy : bool
        Average the targets over mu and tau in rows whose initial state has them alike. Their difference is
        chance there; left in, it is noise in the gradients and hides small errors from the L1 term.
    random_state : int, RandomState or None
        Seed of initial weights, order of batches and dropout. The global generators are left as they were.
        None draws from torch's global generator.
    lr, max_epochs, batch_size : float, int, int
        Of AdamW; the learning rate falls to zero along half a cosine over `max_epochs` (the callback
        ``lr_schedule``: ``callbacks__lr_schedule=None`` keeps it constant). Too few epochs leave skill behind, too
        many cost time only.
    grad_clip : float or None
        Largest norm of the gradient of a step.
    train_split : callable or None
        None trains on all rows. ``skorch.dataset.ValidSplit`` or ``predefined_split`` give a validation loss.
    **kwargs
        Everything else that `skorch.NeuralNet` takes.

    Attributes
    ----------
    module_, criterion_, optimizer_ : objects
        Made by `initialize`, trained by `fit`.
    history : skorch.history.History
        Per epoch: ``train_loss``, ``valid_loss`` and each unweighted term, such as ``train_density``.

    Examples
    --------
    >>> from rheidae import FluxRegressor, load_dataset
    >>> data = load_dataset(".pdata/preprocessed_all.h5")              # doctest: +SKIP
    >>> model = FluxRegressor(random_state=0).fit(data.data, data.target)  # doctest: +SKIP
    >>> F_final = model.predict(data.data)                             # doctest: +SKIP
    """

    rng_state_: Tensor

    def __init__(
        self,
        module: Any = ResidualFFIModel,
        *,
        criterion: Any = FourFluxLoss,
        predict_residual: bool = True,
        average_heavy: bool = True,
        random_state: Any = None,
        optimizer: Any = torch.optim.AdamW,
        lr: float = 2e-3,
        max_epochs: int = 200,
        batch_size: int = 64,
        grad_clip: float | None = 1.0,
        iterator_train: Any = BatchSlicer,
        iterator_valid: Any = BatchSlicer,
        train_split: Any = None,
        verbose: int = 0,
        **kwargs: Any,
    ) -> None:
        self.predict_residual = predict_residual
        self.average_heavy = average_heavy
        self.random_state = random_state
        self.grad_clip = grad_clip
        kwargs.setdefault("iterator_train__shuffle", True)
        super().__init__(
            module,
            criterion=criterion,
            optimizer=optimizer,
            lr=lr,
            max_epochs=max_epochs,
            batch_size=batch_size,
            iterator_train=iterator_train,
            iterator_valid=iterator_valid,
            train_split=train_split,
            verbose=verbose,
            **kwargs,
        )

    # --- what skorch asks for ------------------------------------------------------------------------------

    @property
    def _default_callbacks(self) -> list[tuple[str, Any]]:
        callbacks: list[tuple[str, Any]] = [("epoch_timer", EpochTimer())]
        if self.grad_clip is not None:
            callbacks.append(("grad_clip", GradientNormClipping(self.grad_clip)))
        schedule = LRScheduler("CosineAnnealingLR", T_max=self.max_epochs)
        return [*callbacks, ("lr_schedule", schedule), ("print_log", PrintLog())]

    def get_dataset(self, X: Any, y: Any = None) -> Any:
        """Rows in units of their total density, as float32 tensors; see `FourFluxDataset`."""
        if isinstance(X, torch.utils.data.Dataset):
            return X
        x, total = _normalised_input(X)
        if y is None:
            return FourFluxDataset(torch.from_numpy(x), torch.zeros(len(x), 0))
        target = _table(y, 24, "y")
        if len(target) != len(x):
            raise FourFluxError(f"X has {len(x)} rows, y has {len(target)}; both need one row per sample")
        target = target / total[:, None]
        if self.average_heavy:
            target = fourflux.average_heavy(fourflux.unflatten(target), fourflux.unflatten(x[:, :24]))
        target = np.ascontiguousarray(target.reshape(-1, 24), dtype=np.float32)
        return FourFluxDataset(torch.from_numpy(x), torch.from_numpy(target))

    def infer(self, x: Tensor, **_fit_params: Any) -> Tensor:
        """Return final four-fluxes ``(n, 24)`` in units of the total density: base state plus correction."""
        x = x.to(self.device)
        base = x[:, 24:] if self.predict_residual else x[:, :24]
        return base + self.module_(x)

    def get_loss(self, y_pred: Tensor, y_true: Tensor, X: Any = None, training: bool = False) -> Tensor:
        """Return the criterion's weighted sum, and keep its terms for the history."""
        terms = self.criterion_.terms(y_pred, y_true.to(y_pred.device))
        self._terms = {name: value.detach() for name, value in terms.items()}
        return self.criterion_.combine(terms)

    def run_single_epoch(self, iterator: Any, training: bool, prefix: str, step_fn: Any, **fit_params: Any) -> None:
        """One pass over the batches; loss and terms go to the history as row-weighted means of the epoch.

        Nothing is recorded per batch: reading a number out of a tensor stops an accelerator, and a history of
        every batch grows without bound.
        """
        if iterator is None:
            return
        sums: dict[str, Tensor] = {}
        rows = 0
        for batch in iterator:
            self.notify("on_batch_begin", batch=batch, training=training)
            step = step_fn(batch, **fit_params)
            n = len(batch[0])
            for name, value in {"loss": step["loss"].detach(), **self._terms}.items():
                sums[name] = sums.get(name, torch.zeros_like(value)) + n * value
            rows += n
            self.notify("on_batch_end", batch=batch, training=training, **step)
        for name, value in sums.items():
            self.history.record(f"{prefix}_{name}", float(value) / rows)
        self.history.record(f"{prefix}_batch_count", len(iterator))

    # --- what scikit-learn's users call --------------------------------------------------------------------

    def fit(self, X: Any, y: Any, **fit_params: Any) -> FluxRegressor:
        """Train on ``X (n, 48)`` and ``y (n, 24)``, starting anew.

        Raises
        ------
        FourFluxError
            If a shape is another, a number is not finite, or a row has no neutrinos.
        """
        with self._random(fresh=True):
            return super().fit(X, y, **fit_params)

    def partial_fit(self, X: Any, y: Any = None, classes: Any = None, **fit_params: Any) -> FluxRegressor:
        """Train on, from the present weights, for `max_epochs` more."""
        with self._random(fresh=not self.initialized_):
            return super().partial_fit(X, y, classes, **fit_params)

    def predict(self, X: Any) -> np.ndarray:
        """Return final four-fluxes.

        Parameters
        ----------
        X : array_like, shape (n, 48)
            Initial four-fluxes and Box3D's answer, one common unit.

        Returns
        -------
        ndarray, shape (n, 24)
            In the unit and the float type of `X`; never the residual. The correction is added to the base
            state in that type, so that a zero correction returns the base state bit for bit.
        """
        self.check_is_fitted()
        x = _table(X, 48, "X")
        normalised, total = _normalised_input(x)
        dataset = FourFluxDataset(torch.from_numpy(normalised), torch.zeros(len(x), 0))
        self._set_training(False)
        parts = []
        with torch.no_grad():
            for batch in self.get_iterator(dataset, training=False):
                rows, _ = unpack_data(batch)
                parts.append(self.module_(rows.to(self.device)).cpu().numpy())
        base = x[:, 24:] if self.predict_residual else x[:, :24]
        correction = np.concatenate(parts) if parts else np.empty((0, 24), np.float32)
        return (base + total[:, None] * correction).astype(x.dtype)

    @contextmanager
    def _random(self, fresh: bool) -> Iterator[None]:
        """Run with the estimator's own random numbers, and give the global generator back as it was."""
        if self.random_state is None or getattr(self, "_seeded", False):
            yield
            return
        self._seeded = True
        try:
            with torch.random.fork_rng(devices=_cuda_devices(self.device)):
                if fresh or not hasattr(self, "rng_state_"):
                    torch.manual_seed(int(check_random_state(self.random_state).randint(2**31 - 1)))
                else:
                    torch.set_rng_state(self.rng_state_)
                yield
                self.rng_state_ = torch.get_rng_state()
        finally:
            self._seeded = False


def _cuda_devices(device: Any) -> list[Any]:
    return [torch.device(device)] if str(device).startswith("cuda") else []


def _table(values: Any, columns: int, name: str) -> np.ndarray:
    """A finite ``(n, columns)`` array, float32 if it was, else float64."""
    if isinstance(values, Tensor):
        values = values.detach().cpu().numpy()
    table = np.asarray(values)
    if table.ndim != 2 or table.shape[1] != columns:
        raise FourFluxError(f"{name} has shape {table.shape}; expected (n, {columns})")
    if table.dtype != np.float32:
        table = table.astype(np.float64)
    finite = np.isfinite(table).all(axis=1)
    if not finite.all():
        raise FourFluxError(f"{name}, row {int(np.argmin(finite))}: a number is not finite; remove or mend the row")
    return table


def _normalised_input(X: Any) -> tuple[np.ndarray, np.ndarray]:
    """``X (n, 48)`` in units of each row's total density (float32), and these totals (float64)."""
    x = _table(X, 48, "X")
    total = fourflux.total_density(x[:, :24])
    if not (total > 0).all():
        row = int(np.argmin(total > 0))
        raise FourFluxError(f"X, row {row}: the total number density is {total[row]:g}; it must be positive")
    return np.ascontiguousarray(x / total[:, None], dtype=np.float32), total
