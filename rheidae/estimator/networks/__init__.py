"""Networks, by their name in the configuration.

A network takes ``x (n, 48)`` (see `rheidae.fourflux.INPUT`) in units of the row's total number density and returns
``(n, 24)``: what is to be added to a base state. That is the one that the network names
(``adds_to = "initial"`` or ``"box3d"``), else the one that the estimator chooses. A network that returns zero thus
predicts exactly that base state. It may offer besides:

- ``prepare(x)``: look at training rows before the first batch;
- ``last_shared_parameters()``: for GradNorm (see `rheidae.estimator.gradients`).
"""

from __future__ import annotations

from torch import nn

from rheidae.estimator.networks.generic import MultilayerPerceptron
from rheidae.estimator.networks.layers import ACTIVATIONS
from rheidae.estimator.networks.mixing import MixingModel
from rheidae.estimator.networks.residual import ResidualFFIModel, conserving_part

ARCHITECTURES: dict[str, type[nn.Module]] = {"mixing": MixingModel, "residual": ResidualFFIModel}
"""Networks of four-fluxes by their name in the configuration (``model: {architecture: ...}``)."""

__all__ = [
    "ACTIVATIONS",
    "ARCHITECTURES",
    "MixingModel",
    "MultilayerPerceptron",
    "ResidualFFIModel",
    "conserving_part",
]
