"""Training algorithms and schedules as skorch callbacks: constructors store, ``on_*`` methods act.

`KendallGal`, `DynamicWeightAverage` and `GradNorm` weigh the loss terms, `PCGrad` (or any `GradientCombiner`) makes one
direction of the gradients of several tasks, `LagrangianConstraints` keeps predictions physical. `FluxRegressor` takes
them by short names, or as instances, in any combination.
"""

from rheidae.estimator.callbacks.batch_norm import BatchNormRecalibration
from rheidae.estimator.callbacks.constraints import LagrangianConstraints
from rheidae.estimator.callbacks.gradients import GradientCombiner, PCGrad
from rheidae.estimator.callbacks.progress import EpochProgress
from rheidae.estimator.callbacks.saving import (
    BestWeights,
    HistoryLog,
    RunCheckpoint,
    StopRequest,
    save_history,
    save_weights,
)
from rheidae.estimator.callbacks.schedule import OneCycle
from rheidae.estimator.callbacks.weighting import DynamicWeightAverage, GradNorm, KendallGal, WeightingCallback

__all__ = [
    "BatchNormRecalibration",
    "BestWeights",
    "DynamicWeightAverage",
    "EpochProgress",
    "GradNorm",
    "GradientCombiner",
    "HistoryLog",
    "KendallGal",
    "LagrangianConstraints",
    "OneCycle",
    "PCGrad",
    "RunCheckpoint",
    "StopRequest",
    "WeightingCallback",
    "save_history",
    "save_weights",
]
