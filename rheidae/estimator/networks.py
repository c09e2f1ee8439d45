"""Networks from 48 inputs (initial moments and Box3D's answer) to a correction of 24 moments.

Every module takes ``x (n, 48)`` in units of the row's total number density and returns ``(n, 24)``: what is
to be added to a base state. That is the one that the module names (``adds_to = "initial"`` or ``"box3d"``), else the
one that the estimator chooses. A module that returns zero thus predicts exactly that base state.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from rheidae.estimator.pullback import Linearised, Pullback, TaskGradients, chain, rule

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
    "elu": nn.ELU,
}


# Of the mixing model, in the order of rheidae.mixing.power.PARAMETERS: log c, log p, log a, logit of the axial weight,
# log p and log a of the axial component.
N_INVARIANTS, N_PARAMETERS = 5, 6
_CENTRE = (0.0, -1.0, math.log(2), 0.0, 0.0, math.log(2))
_REACH = (0.15, 1.5, 0.7, 1.5, 1.5, 0.7)
_SLOPE = (0.3, 1.5, 1.0, 1.0, 1.5, 1.0)
CUT = 3.0


def _as_states(x: Tensor) -> Any:
    """Initial states ``(n, 6, 4)`` of ``x (n, 24 or 48)`` as a float64 array."""
    return x[:, :24].detach().cpu().double().reshape(-1, 6, 4).contiguous().numpy()


class SkipBlock(nn.Module):
    """Linear, batch norm, activation, dropout; added to its input."""

    def __init__(self, width: int, activation: str, dropout: float, use_batch_norm: bool) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Linear(width, width)]
        if use_batch_norm:
            layers.append(nn.BatchNorm1d(width))
        layers.append(ACTIVATIONS[activation]())
        if dropout > 0:
            layers.append(nn.Dropout(dropout))
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(n, width)`` to ``(n, width)``."""
        return x + self.layers(x)


@rule(SkipBlock)
def _skip_block(block: SkipBlock, x: Tensor) -> tuple[Tensor, Pullback]:
    y, pullback = chain(block.layers, x)

    def with_skip(c: Tensor, gradients: TaskGradients) -> Tensor:
        return pullback(c, gradients).add_(c)

    return x + y, with_skip


class InvariantFrame:
    """Rotation invariants of a state, and the state's own vectors to rebuild a change from.

    Six vectors describe a row: the initial fluxes of e, x, their antineutrinos (x: the mean of mu and tau),
    and Box3D's change of the fluxes of e and its antineutrino. The features are the densities, Box3D's
    change of them, and the Gram matrix of the vectors; they do not know the frame. A change is a
    combination of the same vectors with learned coefficients, so it turns with the state; it is moved between
    the electron and the two heavy flavors in equal parts, so flavor sums, and by one common number for
    neutrinos and antineutrinos lepton number per flavor, are conserved whatever the coefficients.

    The change is proportional to the size of Box3D's own, which makes a state without a crossing stay
    exactly as it is, and a closing crossing close continuously.
    """

    n_features = 4 + 2 + 3 + 21

    def __init__(self, conserve: bool = True) -> None:
        self.conserve = conserve
        # Conserving: six vectors for each of e, ebar and one common number. Else the same six and a number for each
        # of e, x, ebar, xbar.
        self.n_coefficients = 2 * 6 + 1 if conserve else 4 * (6 + 1)

    def describe(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return features ``(n, 30)``, vectors ``(n, 6, 3)`` of unit order and size ``(n, 1)`` of Box3D's change."""
        state = x.reshape(-1, 2, 2, 3, 4)  # row, (init, box), (nu, nubar), flavor, component
        init = state[:, 0]
        electron, heavy = init[:, :, 0], init[:, :, 1:].mean(dim=2)
        change = electron - state[:, 1, :, 0]  # (n, 2, 4): what Box3D takes from nu_e and nubar_e
        size = change.square().sum(dim=(1, 2)).sqrt()[:, None]
        relative = change / size.clamp(min=1e-12)[:, :, None]
        density = torch.cat([electron[:, :, 3], heavy[:, :, 3]], dim=1)
        flux = torch.cat([electron[:, :, :3], heavy[:, :, :3]], dim=1)
        factor = flux / density.clamp(min=1e-12)[:, :, None]
        vectors = torch.cat([factor, relative[:, :, :3]], dim=1)
        gram = vectors @ vectors.transpose(1, 2)
        upper = torch.triu_indices(6, 6, device=x.device)
        features = torch.cat(
            [
                density,
                relative[:, :, 3],
                size.clamp(min=1e-6).log(),
                (density[:, :2] - density[:, 2:]),
                gram[:, upper[0], upper[1]],
            ],
            dim=1,
        )
        return features, vectors, size

    def rebuild(self, coefficients: Tensor, vectors: Tensor, size: Tensor) -> Tensor:
        """Change of the six four-fluxes, ``(n, 24)``, from ``(n, n_coefficients)`` coefficients."""
        n = len(coefficients)
        if not self.conserve:
            own = coefficients.reshape(n, 4, 7)
            change = size[:, :, None] * torch.cat([own[:, :, :6] @ vectors, own[:, :, 6:]], dim=2)
            electron, heavy = change.reshape(n, 2, 2, 4).unbind(dim=2)
            return torch.stack([electron, heavy, heavy], dim=2).reshape(n, 24)
        moved_vector = coefficients[:, 1:].reshape(n, 2, 6) @ vectors
        moved_number = coefficients[:, :1, None].expand(n, 2, 1)
        moved = size[:, :, None] * torch.cat([moved_vector, moved_number], dim=2)
        return torch.stack([moved, -0.5 * moved, -0.5 * moved], dim=2).reshape(n, 24)

    def at(self, x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
        """Features of rows on the CPU, `rebuild` for them, and its transpose, which takes ``(T, n, 24)``.

        Rows with more antineutrinos come with both exchanged, and changes go back so.
        """
        from rheidae.estimator import _frame_kernels as kernels

        n = len(x)
        features, vectors = x.new_empty(n, self.n_features), x.new_empty(n, 6, 3).numpy()
        size, exchanged = x.new_empty(n).numpy(), np.empty(n, dtype=np.int64)
        kernels.describe(x.contiguous().numpy().reshape(n, 2, 2, 3, 4), features.numpy(), vectors, size, exchanged)

        def rebuild(coefficients: Tensor) -> Tensor:
            change = x.new_empty(n, 24)
            kernels.rebuild(
                coefficients.detach().numpy(),
                vectors,
                size,
                exchanged,
                self.conserve,
                change.numpy().reshape(n, 2, 3, 4),
            )
            return change

        def transposed(c: Tensor) -> Tensor:
            out = c.new_empty(len(c), n, self.n_coefficients)
            states = c.contiguous().numpy().reshape(-1, n, 2, 3, 4)
            kernels.transposed_rebuild(states, vectors, size, exchanged, self.conserve, out.numpy())
            return out

        return features, rebuild, transposed


def conserving_part(change: Tensor) -> Tensor:
    """The part of a change ``(n, 24)`` that keeps flavor sums and the lepton number of every flavor.

    The orthogonal projection: the mean over flavors is taken off each component, and neutrinos and antineutrinos of a
    flavor take the mean of their changes of density.
    """
    change = change.reshape(-1, 2, 3, 4)
    change = change - change.mean(dim=2, keepdim=True)
    number = change[..., 3:].mean(dim=1, keepdim=True).expand(-1, 2, -1, -1)
    return torch.cat([change[..., :3], number], dim=3).reshape(-1, 24)


def exchange_antineutrinos(x: Tensor, rows: Tensor) -> Tensor:
    """Exchange neutrinos and antineutrinos in the marked rows of ``(n, 24 k)`` four-fluxes."""
    states = x.reshape(len(x), -1, 2, 12)
    return torch.where(rows[:, None, None, None], states.flip(2), states).reshape(x.shape)


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
        return torch.einsum("...nk,nqk->...nq", gradients[0], jacobian), None, None


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
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation={activation!r} is not one of {', '.join(ACTIVATIONS)}")
        if not 0 <= axial_share <= 1:
            raise ValueError(f"axial_share={axial_share!r} is not between 0 and 1")
        self.order = order
        self.axial_share = axial_share
        self.whole = False
        layers: list[nn.Module] = []
        width = N_INVARIANTS
        for _ in range(hidden_layers):
            layers += [nn.Linear(width, hidden_dim), ACTIVATIONS[activation]()]
            width = hidden_dim
        head = nn.Linear(width, N_PARAMETERS)
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
        self.net = nn.Sequential(*layers, head)
        self.register_buffer("mean", torch.zeros(N_INVARIANTS))
        self.register_buffer("deviation", torch.ones(N_INVARIANTS))
        self.register_buffer("prepared", torch.tensor(False))
        for name, values in (("centre", _CENTRE), ("reach", _REACH), ("slope", _SLOPE)):
            self.register_buffer(name, torch.tensor(values), persistent=False)

    def prepare(self, x: Tensor) -> None:
        """Take means and deviations of the features from training rows ``x (n, 48)``, once in a model's life."""
        if not self.prepared:
            features = self._features(x[:, :24])
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

    def linearise(self, x: Tensor) -> Linearised:
        """`forward`, with what carries derivatives back."""
        from rheidae.mixing.power import power_change

        state = _as_states(x)
        inside, near = self._nearby(self._invariants(state, x))
        output, pullback = chain((self.net,), inside)
        bounded = torch.tanh(self.slope * output / self.reach)
        theta = self.centre + near * self.reach * bounded
        slope = near * self.slope * (1 - bounded.square())
        sigmoid = torch.sigmoid(theta[:, 3])
        theta[:, 3] = self._share() * sigmoid
        slope[:, 3] *= theta[:, 3] * (1 - sigmoid)
        change = power_change(
            state, theta.double().numpy(), derivatives=True, order=self.order, tolerance=1e-7, threads=1
        )
        assert change.jacobian is not None
        jacobian = torch.from_numpy(change.jacobian).to(x) * slope[:, :, None]
        D = torch.from_numpy(change.D).to(x).reshape(-1, 2, 1, 4)

        def to_layers(c: Tensor) -> Tensor:
            electron, mu, tau = c.reshape(len(c), -1, 2, 3, 4).unbind(dim=3)
            by_D = (0.5 * (mu + tau) - electron).reshape(len(c), -1, 8)
            return torch.einsum("tnk,nqk->tnq", by_D, jacobian).contiguous()

        return Linearised(torch.cat([-D, 0.5 * D, 0.5 * D], dim=2).reshape(-1, 24), to_layers, pullback)


class ResidualFFIModel(nn.Module):
    """Multilayer perceptron with skip connections.

    Parameters
    ----------
    hidden_dim : int
        Width of every hidden layer.
    hidden_layers : int
        Blocks of linear, batch norm, activation, dropout with a skip connection, after the input block.
    activation : {"silu", "relu", "gelu", "tanh", "elu"}
        Nonlinearity.
    dropout : float
        Probability; 0 leaves the layer out.
    use_batch_norm : bool
        Batch norm in the input block and every hidden one. Needs batches of two rows at least.
    frame : {"invariant", "lab"}
        "invariant" feeds rotation invariants and rebuilds a change that turns with the state and conserves
        what the instability conserves (see `InvariantFrame`). "lab" feeds the 48 numbers as they are and
        returns 24 free ones: it has to learn from data what the other has by construction.
    conserve : bool
        Keep flavor sums and the lepton number of every flavor. In the invariant frame the change is only moved between
        flavors; in the lab frame 24 free numbers are projected (`conserving_part`).

    Notes
    -----
    In the invariant frame neutrinos and antineutrinos are exchanged where there are more of the latter (``int G < 0``),
    and exchanged back afterwards, so that both cases are one to the network.
    The linear head starts at zero, so that an untrained model returns its base state.
    """

    def __init__(
        self,
        hidden_dim: int = 128,
        hidden_layers: int = 3,
        activation: str = "silu",
        dropout: float = 0.0,
        use_batch_norm: bool = True,
        frame: Literal["invariant", "lab"] = "invariant",
        conserve: bool = True,
    ) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation={activation!r} is not one of {', '.join(ACTIVATIONS)}")
        if frame not in ("invariant", "lab"):
            raise ValueError(f"frame={frame!r} is neither 'invariant' nor 'lab'")
        self.conserve = conserve
        self.frame = InvariantFrame(conserve) if frame == "invariant" else None
        n_in, n_out = (48, 24) if self.frame is None else (self.frame.n_features, self.frame.n_coefficients)
        first: list[nn.Module] = [nn.Linear(n_in, hidden_dim)]
        if use_batch_norm:
            # Features differ in scale by orders of magnitude.
            first = [nn.BatchNorm1d(n_in), *first, nn.BatchNorm1d(hidden_dim)]
        self.input_block = nn.Sequential(*first, ACTIVATIONS[activation]())
        self.blocks = nn.Sequential(
            *(SkipBlock(hidden_dim, activation, dropout, use_batch_norm) for _ in range(hidden_layers))
        )
        self.head = nn.Linear(hidden_dim, n_out)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(n, 48)``, in units of the total density, to the correction ``(n, 24)``."""
        if self.frame is None:
            change = self.head(self.blocks(self.input_block(x)))
            return conserving_part(change) if self.conserve else change
        more_antineutrinos = x[:, :24].reshape(-1, 2, 3, 4)[..., 3] @ x.new_tensor([1.0, -0.5, -0.5])
        exchanged = more_antineutrinos[:, 0] < more_antineutrinos[:, 1]
        features, vectors, size = self.frame.describe(exchange_antineutrinos(x, exchanged))
        change = self.frame.rebuild(self.head(self.blocks(self.input_block(features))), vectors, size)
        return exchange_antineutrinos(change, exchanged)

    def linearise(self, x: Tensor) -> Linearised:
        """`forward`, with what carries derivatives back; all around the layers is linear in what they return."""
        layers = (self.input_block, self.blocks, self.head)
        if self.frame is None:
            change, pullback = chain(layers, x)
            if not self.conserve:
                return Linearised(change, lambda c: c, pullback)
            # An orthogonal projection is its own transpose.
            return Linearised(conserving_part(change), lambda c: conserving_part(c).reshape(c.shape), pullback)
        features, rebuild, transposed = self.frame.at(x)
        coefficients, pullback = chain(layers, features)
        return Linearised(rebuild(coefficients), transposed, pullback)


class MultilayerPerceptron(nn.Module):
    """Plain network between tables of any width, the default of ``FluxRegressor(layout="generic")``.

    Parameters
    ----------
    n_features, n_outputs : int
        Widths; the estimator takes them from the data.
    hidden_dim : int
        Width of the hidden layers.
    hidden_layers : int
        How many of them.
    activation : {"silu", "relu", "gelu", "tanh", "elu"}
        Nonlinearity.
    dropout : float
        Probability; 0 leaves the layer out.
    double_precision : bool
        Compute in float64, as scikit-learn's own regressors do: a row's answer then does not depend, beyond 1e-15, on
        the rows beside it. False is quicker, and for devices without float64.
    """

    def __init__(
        self,
        n_features: int,
        n_outputs: int,
        hidden_dim: int = 64,
        hidden_layers: int = 2,
        activation: str = "silu",
        dropout: float = 0.0,
        double_precision: bool = True,
    ) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation={activation!r} is not one of {', '.join(ACTIVATIONS)}")
        self.double_precision = double_precision
        layers: list[nn.Module] = []
        width = n_features
        for _ in range(hidden_layers):
            layers += [nn.Linear(width, hidden_dim), ACTIVATIONS[activation]()]
            layers += [nn.Dropout(dropout)] if dropout > 0 else []
            width = hidden_dim
        self.net = nn.Sequential(*layers, nn.Linear(width, n_outputs))
        if double_precision:
            self.double()

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(n, n_features)`` to ``(n, n_outputs)``."""
        return self.net(x.double() if self.double_precision else x)


ARCHITECTURES: dict[str, type[nn.Module]] = {"mixing": MixingModel, "residual": ResidualFFIModel}
"""Networks by their name in the configuration (``model: {architecture: ...}``)."""
