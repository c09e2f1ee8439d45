"""The continuous mixing scheme with parameters that a small network sets, from rotation invariants of the state."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from rheidae.estimator.networks.layers import perceptron, start_at_zero
from rheidae.fourflux import INPUT

# Of the mixing model, in the order of rheidae.mixing.power.PARAMETERS: log c, log p, log a, logit of the axial weight,
# log p and log a of the axial component.
N_INVARIANTS, N_PARAMETERS = 5, 6
_CENTRE = (0.0, -1.0, math.log(2), 0.0, 0.0, math.log(2))
_REACH = (0.15, 1.5, 0.7, 1.5, 1.5, 0.7)
_SLOPE = (0.3, 1.5, 1.0, 1.0, 1.5, 1.0)
CUT = 3.0


def _as_states(x: Tensor) -> Any:
    """Initial states ``(n, 6, 4)`` of ``x (n, 24 or 48)`` as a float64 array."""
    return x[:, INPUT["F_init"]].detach().cpu().double().reshape(-1, 6, 4).contiguous().numpy()


class _PowerMixing(torch.autograd.Function):
    """Continuous mixing: `rheidae.mixing.power.power_change` gives the value and the derivative in one pass."""

    @staticmethod
    def forward(ctx: Any, theta: Tensor, F: Any, order: int) -> Tensor:
        from rheidae.mixing.power import power_change

        wanted = ctx.needs_input_grad[0]
        change = power_change(
            F, theta.detach().cpu().double().numpy(), derivatives=wanted, order=order, tolerance=1e-7, threads=1
        )
        if change.jacobian is not None:
            ctx.save_for_backward(torch.from_numpy(change.jacobian).to(theta))
        return torch.from_numpy(change.D).to(theta)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (jacobian,) = ctx.saved_tensors
        # A product of matrices, since einsum does not take the gradients of several tasks at once.
        return (jacobian @ gradients[0].unsqueeze(-1)).squeeze(-1), None, None


class MixingModel(nn.Module):
    """Network from invariants of a state to the parameters of the continuous mixing scheme.

    The network sees the five numbers of `rheidae.mixing.power.power_invariants` and sets the six parameters of
    `rheidae.mixing.power.power_change` for the row. What comes out is a mixture of the initial distributions: it turns
    with the state, conserves what the instability conserves, and leaves a state without a crossing alone, whatever the
    weights are. At its initial weights the module is the analytic scheme with an axial component of half the weight,
    times `axial_share`.

    Parameters
    ----------
    hidden_dim : int
        Width of the hidden layers.
    hidden_layers : int
        How many of them.
    activation : {"silu", "relu", "gelu", "tanh", "elu"}
        Nonlinearity.
    order : int
        Of the Lebedev rule. The network learns around its error; a higher one costs time and gains next to nothing.
    axial_share : float
        Part, 0 to 1, of the axial component's learned weight that counts outside training. Waves in a one-dimensional
        box all run along its axis, and what they leave depends on the angle to that axis alone; in three dimensions
        they run in every direction, and this component is weaker than simulations of one dimension teach. The default
        lies between the two; choose 1 to predict one-dimensional boxes, or after training on three dimensions.

    Notes
    -----
    The parameters stay within bounds around the analytic scheme, ``centre + reach tanh(slope output/reach)``.
    Features are standardised by the training rows (`prepare`). Beyond three standard deviations they are cut, and
    the parameters fall back to the analytic ones with the distance, so that far from the training data the answer is
    the scheme's.
    """

    adds_to = "initial"
    needs_box3d = False
    mean: Tensor
    deviation: Tensor
    prepared: Tensor
    centre: Tensor
    reach: Tensor
    slope: Tensor

    def __init__(
        self,
        hidden_dim: int = 32,
        hidden_layers: int = 2,
        activation: str = "silu",
        order: int = 17,
        axial_share: float = 0.8,
    ) -> None:
        super().__init__()
        if not 0 <= axial_share <= 1:
            raise ValueError(f"axial_share={axial_share!r} is not between 0 and 1")
        self.order = order
        self.axial_share = axial_share
        self.whole = False
        self.net = perceptron(N_INVARIANTS, N_PARAMETERS, hidden_dim, hidden_layers, activation)
        start_at_zero(self.net[-1])
        self.register_buffer("mean", torch.zeros(N_INVARIANTS))
        self.register_buffer("deviation", torch.ones(N_INVARIANTS))
        self.register_buffer("prepared", torch.tensor(False))
        for name, values in (("centre", _CENTRE), ("reach", _REACH), ("slope", _SLOPE)):
            self.register_buffer(name, torch.tensor(values), persistent=False)

    def export_graph(self) -> nn.Module:
        """Return the network as tensor operations alone, from ``x (n, 24)``; `rheidae.export` asks for it."""
        from rheidae.estimator.tensors.power import MixingGraph

        return MixingGraph(self)

    def prepare(self, x: Tensor) -> None:
        """Take means and deviations of the features from training rows ``x (n, 48)``, once in a model's life."""
        if not self.prepared:
            features = self._features(x)
            self.mean.copy_(features.mean(dim=0))
            self.deviation.copy_(features.std(dim=0, correction=0) + 1e-6)
            self.prepared.fill_(True)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(n, 48)``, in units of the total density, to the change of the initial state ``(n, 24)``."""
        state = _as_states(x)
        theta = self._theta(self._invariants(state, x))
        D = _PowerMixing.apply(theta, state, self.order).reshape(-1, 2, 1, 4)
        return torch.cat([-D, 0.5 * D, 0.5 * D], dim=2).reshape(-1, 24)

    def parameters_of(self, x: Tensor) -> Tensor:
        """Parameters ``(n, 6)`` of the scheme, in the order of `rheidae.mixing.power.PARAMETERS`."""
        return self._theta(self._features(x))

    def _features(self, x: Tensor) -> Tensor:
        return self._invariants(_as_states(x), x)

    def _invariants(self, state: Any, like: Tensor) -> Tensor:
        from rheidae.mixing.power import power_invariants

        return torch.from_numpy(power_invariants(state, order=self.order, threads=1)).to(like)

    def _theta(self, features: Tensor) -> Tensor:
        inside, near = self._nearby(features)
        theta = self.centre + near * self.reach * torch.tanh(self.slope * self.net(inside) / self.reach)
        # The weight of the axial component is a probability, the others are logarithms.
        axial = self._share() * torch.sigmoid(theta[:, 3:4])
        return torch.cat([theta[:, :3], axial, theta[:, 4:]], dim=1)

    @contextmanager
    def as_trained(self) -> Iterator[None]:
        """Within this, count the whole axial component: a validation loss has to judge what is trained."""
        self.whole = True
        try:
            yield
        finally:
            self.whole = False

    def _share(self) -> float:
        return 1.0 if self.training or self.whole else self.axial_share

    def _nearby(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Features standardised and cut, and how near the row is to the training rows, ``(n, 1)``."""
        z = (features - self.mean) / self.deviation
        inside = z.clamp(-CUT, CUT)
        return inside, torch.exp(-0.5 * (z - inside).square().sum(dim=1, keepdim=True))
