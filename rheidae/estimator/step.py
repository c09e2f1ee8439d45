"""One batch, and one pass over all of them: terms, weights, gradients, and the numbers for the history.

Nothing is read out of an accelerator's tensors batch by batch: that would stop it.
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from torch import Tensor

from rheidae.estimator.batches import unpack
from rheidae.estimator.callbacks.constraints import VIOLATIONS
from rheidae.estimator.callbacks.gradients import GradientCombiner
from rheidae.estimator.gradients import conflicts, jacobian, last_shared_parameters, set_gradients
from rheidae.estimator.losses import values_and_gradients
from rheidae.exceptions import RunError

# Batches after which an accelerator's numbers are read; on a CPU they are read at once.
LOOK_EVERY = 64


class TrainingStep:
    """What a batch of a training is put through, by a net whose criterion carries the weighting and the constraints."""

    def __init__(self, net: Any) -> None:
        self.net = net
        self.processes = net._processes
        self.combiner = net._only(GradientCombiner)
        # Whether torch carries all tasks back in one pass; not where processes meet within it, one task at a time.
        self.together = not self.processes.meet_in(net.module_)
        self.gradient: Tensor | None = None

    def clip(self, largest: float) -> None:
        """Scale the network's gradient down to a norm that it must not exceed."""
        if self.gradient is None:
            torch.nn.utils.clip_grad_norm_(self.net.module_.parameters(), largest)
        else:  # one vector, which every parameter's is a part of
            self.gradient.mul_((largest / (self.gradient.norm() + 1e-6)).clamp(max=1.0))

    def train(self, batch: Any, **fit_params: Any) -> dict[str, Any]:
        """Set all gradients.

        The record holds ``objective``, the terms, violations and conflicts (see `train_names`), as one tensor.
        """
        net, criterion = self.net, self.net.criterion_
        # Now, since callbacks freeze parameters and unfreeze them.
        parameters = [p for p in net.module_.parameters() if p.requires_grad]
        weighting, constraints = criterion.weighting, criterion.constraints
        x, y, weight = unpack(batch)
        own = self.processes.own(len(x))
        if hasattr(net.module_, "first_row"):
            net.module_.first_row = own.start
        with self.processes.step(net, len(x)):
            y_own = net.infer(own.rows(x), **fit_params)
        # All processes compute the same on the whole batch; each carries the derivatives of its rows back.
        y_pred = self.processes.together(own.counted(y_own), len(x))
        values, by_pred = values_and_gradients(criterion, y_pred, *_on(y_pred, y, weight))
        scale = values.new_tensor(list(criterion.weights.values()))
        losses = scale * values
        objective = losses.sum()
        if weighting is not None:
            weighting.start(losses)
            factors = weighting.factors()
            scale, objective = scale * factors, (factors * losses).sum() + weighting.extra()
        by_pred *= scale[:, None, None]
        record = [values]
        norms = None
        if weighting is not None and weighting.needs_norms:
            shared = last_shared_parameters(net.module_)
            norms = self._pull(own, y_own, by_pred, shared).norm(dim=1)
        if constraints is not None:
            violations, by_violation = constraints.values_and_gradients(y_pred)
            by_penalty = torch.tensordot(constraints.slopes(violations), by_violation, dims=1)
            by_pred = torch.cat([by_pred, by_penalty[None]])
            objective = objective + constraints.penalty(violations)
            record.append(violations)
        if self.combiner is None:
            direction = self._pull(own, y_own, by_pred.sum(dim=0, keepdim=True), parameters)[0]
        else:
            table = self._pull(own, y_own, by_pred, parameters)
            gramian = table @ table.T
            direction = self.combiner.combine(table, gramian)
            record.append(conflicts(gramian)[None])
        self.gradient = direction if set_gradients(parameters, direction) else None
        if weighting is not None:
            weighting.backward(losses, norms)
        if constraints is not None:
            constraints.ascend(violations)
        return {"loss": objective, "y_pred": y_pred, "record": torch.cat([objective[None], *record])}

    def _pull(self, own: Any, y_own: Tensor, by_pred: Tensor, parameters: list[Tensor]) -> Tensor:
        """Gradients ``(T, P)`` of tasks by `parameters` from those ``(T, n, m)`` by the predictions of the batch."""
        return self.processes.sum(self._jacobian(own.counted(y_own), by_pred[:, own.slice], parameters))

    def _jacobian(self, outputs: Tensor, cotangents: Tensor, parameters: list[Tensor]) -> Tensor:
        """All tasks in one pass, or one by one for a network that torch cannot take so."""
        if self.together and len(cotangents) > 1:
            try:
                return jacobian(outputs, cotangents, parameters)
            except RuntimeError as error:
                if not any(words in str(error) for words in ("Batching rule not implemented", "vmap")):
                    raise
                name = type(self.net.module_).__name__
                warnings.warn(
                    f"{name}: one backward pass a task, since torch cannot batch them ({error})", stacklevel=2
                )
                self.together = False
        return jacobian(outputs, cotangents, parameters, together=False)


def validate(net: Any, batch: Any, **fit_params: Any) -> dict[str, Any]:
    """Loss with fixed weights, terms and error of a batch."""
    x, y, weight = unpack(batch)
    own = net._processes.own(len(x))
    with torch.no_grad():
        y_own = net.infer(own.rows(x), **fit_params)
        y_pred = net._processes.together(own.counted(y_own), len(x))
        return {"loss": net.get_loss(y_pred, y), "y_pred": y_pred, "record": compare(net, y_pred, y, weight)}


def compare(net: Any, y_pred: Tensor, y: Tensor, weight: Tensor | None) -> Tensor:
    """The terms and, last, the layout's measure of error."""
    truth = _on(y_pred, y, weight)
    terms = net.criterion_.terms(y_pred, *truth).values()
    return torch.stack([*terms, net._layout.error(y_pred, truth[0])])


def _on(y_pred: Tensor, y: Tensor, weight: Tensor | None) -> tuple[Tensor, ...]:
    """Targets and, if there are any, weights where the predictions are."""
    y = y.to(y_pred.device, non_blocking=True)
    return (y,) if weight is None else (y, weight.to(y_pred.device))


# --- an epoch --------------------------------------------------------------------------------------------


def train_names(net: Any) -> list[str]:
    """What the numbers of a training record are."""
    criterion = net.criterion_
    names = ["train_objective", *(f"train_{name}" for name in criterion.weights)]
    if criterion.constraints is not None:
        names += [f"violation_{name}" for name in VIOLATIONS]
    return names + ["conflicts"] * (net._only(GradientCombiner) is not None)


def run_epoch(
    net: Any, iterator: Any, training: bool, prefix: str, step_fn: Any, **fit_params: Any
) -> dict[str, float]:
    """One pass over the batches; return the means over the rows, and the state of what is trained, by name.

    Raises `RunError` if a loss is not finite.
    """
    weights, history = net.criterion_.weights, net.history
    names = train_names(net) if training else [*(f"{prefix}_{name}" for name in weights), "error"]
    weights = {f"{prefix}_{name}": weight for name, weight in weights.items()}
    means = EpochMeans(names, weights, len(history), f"{prefix}_loss")
    for batch in iterator:
        seen, rows = batch[:2], len(batch[0])  # skorch's callbacks know no third part, the weights of rows
        net.notify("on_batch_begin", batch=seen, training=training)
        step = step_fn(batch, **fit_params)
        history.record_batch(f"{prefix}_batch_size", rows)
        means.add(rows, step.pop("record"), net.last_checkpoint_, history[-1]["batches"][-1])
        net.notify("on_batch_end", batch=seen, training=training, **step)
    numbers = means.finish(net.last_checkpoint_)
    numbers[f"{prefix}_loss"] = means.loss(list(numbers.values()))
    if training:
        return numbers | _trained_numbers(net)
    error = numbers.pop("error")
    return numbers | _reference_numbers(net, iterator, error)


def _trained_numbers(net: Any) -> dict[str, float]:
    """Learning rate, weights and multipliers at the end of an epoch."""
    numbers = {"lr": float(net.optimizer_.param_groups[0]["lr"])}
    weighting, constraints = net.criterion_.weighting, net.criterion_.constraints
    if weighting is not None:
        factors = weighting.factors().tolist()
        numbers |= {f"weight_{name}": w for name, w in zip(net.criterion_.weights, factors, strict=True)}
    if constraints is not None:
        multipliers = constraints.multipliers.tolist()
        numbers |= {f"multiplier_{name}": m for name, m in zip(VIOLATIONS, multipliers, strict=True)}
    return numbers


def _reference_numbers(net: Any, iterator: Any, error: float) -> dict[str, float]:
    """Box3D's loss on the validation rows, computed once a training, and the skill over it."""
    if net.box3d_valid_ is None:
        weights = net.criterion_.weights
        means = EpochMeans([*weights, "error"], weights, 0)
        for batch in iterator:
            x, y, weight = unpack(batch)
            reference = net._layout.reference(x)
            if reference is None:
                return {}
            means.add(len(x), compare(net, reference.to(net._device), y, weight), None)
        numbers = means.finish(None)
        net.box3d_valid_ = {"loss": means.loss(list(numbers.values())), "error": numbers["error"]}
    box3d = net.box3d_valid_
    skill = {"skill": 1 - error / box3d["error"]} if box3d["error"] > 0 else {}
    return {"box3d_valid_loss": box3d["loss"], **skill}


class EpochMeans:
    """Means over the rows of an epoch of records, whose numbers have `names`.

    `weights`: of those that make up the loss. `epoch`: for the message if one is not finite. `loss`: name of a batch's
    loss in its entry.
    """

    def __init__(self, names: list[str], weights: dict[str, float], epoch: int, loss: str = "loss") -> None:
        self.names = names
        self.weights = [(names.index(name), weight) for name, weight in weights.items()]
        self.epoch = epoch
        self.loss_name = loss
        self.waiting: list[tuple[int, Tensor, dict[str, Any]]] = []
        self.sums = [0.0] * len(names)
        self.rows = 0
        self.batches = 0

    def add(self, rows: int, record: Tensor, checkpoint: str | None, entry: dict[str, Any] | None = None) -> None:
        """Take the record ``(len(names),)`` of a batch; its loss goes to `entry`, once it is read.

        Raises `RunError` if a number is not finite, here or in `finish`; `checkpoint` is named then.
        """
        self.waiting.append((rows, record, {} if entry is None else entry))
        if record.device.type == "cpu" or len(self.waiting) == LOOK_EVERY:
            self._look(checkpoint)

    def finish(self, checkpoint: str | None) -> dict[str, float]:
        """Return the means by name."""
        self._look(checkpoint)
        return {name: total / self.rows for name, total in zip(self.names, self.sums, strict=True)}

    def loss(self, numbers: list[float]) -> float:
        """Return the weighted sum of a record's terms."""
        return sum(weight * numbers[place] for place, weight in self.weights)

    def _look(self, checkpoint: str | None) -> None:
        if not self.waiting:
            return
        records = torch.stack([record for _, record, _ in self.waiting]).tolist()
        for (rows, _, entry), numbers in zip(self.waiting, records, strict=True):
            self.batches += 1
            if not all(map(math.isfinite, numbers)):
                text = ", ".join(f"{name}={value:g}" for name, value in zip(self.names, numbers, strict=True))
                raise RunError(
                    f"epoch {self.epoch}, batch {self.batches}: the loss is not finite ({text}); last good checkpoint: "
                    f"{checkpoint or 'none'}. A smaller learning rate or grad_clip may help"
                )
            self.sums = [total + rows * value for total, value in zip(self.sums, numbers, strict=True)]
            self.rows += rows
            entry[self.loss_name] = self.loss(numbers)
        self.waiting.clear()
