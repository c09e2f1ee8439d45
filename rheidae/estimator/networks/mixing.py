"""The asymptotic scheme with parameters that small networks set, from rotation invariants of the state."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rheidae.estimator.networks.layers import activation_of
from rheidae.fourflux import ALIKE, FLAT, INPUT
from rheidae.mixing.survival import PARAMETERS

N_INVARIANTS, N_PARAMETERS = 5, 8
# Of log 1.5 q0, log p, log a, 1 - b, rho, beta, log p_axial, log a_axial: largest value, and slope of the network's
# output at zero.
_REACH = (0.15, 1.5, 1.0, 1.0, 2.0, 1.0, 1.5, 1.0)
_SLOPE = (0.3, 1.0, 0.7, 0.5, 1.0, 0.5, 1.0, 0.7)
# Theta is this and that times the output; two outputs count from zero on.
_OFFSET = (0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0)
_SIGN = (1.0, 1.0, 1.0, -1.0, 1.0, 1.0, 1.0, 1.0)
_LEAST = tuple(0.0 if name in ("rise", "axial") else -math.inf for name in PARAMETERS)
# What of the electrons' loss goes to each flavor.
_SHARES = np.array([-1.0, 0.5, 0.5])[:, None]
_BOUNDS = np.array([_REACH, np.divide(_SLOPE, _REACH), _LEAST, _OFFSET, _SIGN], dtype=np.float32)
CUT, WIDTH = 3.0, 3.0
# Of lepton number, before it is made exact.
_TOLERANCE = 1e-7
Array = NDArray[Any]


class _Mixing(torch.autograd.Function):
    """The change of all six species by `rheidae.mixing.survival.mixing_change`, with its derivative in one pass."""

    @staticmethod
    def forward(ctx: Any, theta: Tensor, F: Any, order: int, dtype: torch.dtype) -> Tensor:
        from rheidae.mixing.survival import mixing_change

        change = mixing_change(
            F, theta.detach().cpu().double().numpy(), derivatives=ctx.needs_input_grad[0], order=order,
            tolerance=_TOLERANCE, beams=False, threads=1,
        )  # fmt: skip
        if change.jacobian is not None:
            ctx.save_for_backward(torch.from_numpy(change.jacobian).to(theta))
        return torch.from_numpy(_of_species(change.D)).to(theta.device, dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (jacobian,) = ctx.saved_tensors
        electron, mu, tau = gradients[0].reshape(-1, 2, 3, 4).unbind(dim=2)
        by_D = (0.5 * (mu + tau) - electron).reshape(-1, 8, 1).to(jacobian.dtype)
        # A product of matrices, since einsum does not take the gradients of several tasks at once.
        return (jacobian @ by_D).squeeze(-1), None, None, None


class Members(nn.Module):
    """Several perceptrons of one shape side by side: ``(members, n, inputs)`` to ``(members, n, outputs)``."""

    def __init__(
        self, members: int, inputs: int, outputs: int, hidden_dim: int, hidden_layers: int, activation: str
    ) -> None:
        super().__init__()
        self.activation = activation_of(activation)()
        widths = [inputs, *[hidden_dim] * hidden_layers, outputs]
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for n_in, n_out in pairwise(widths):
            bound = 1 / math.sqrt(n_in) if len(self.weights) < hidden_layers else 0.0  # the last layer starts at zero
            self.weights.append(torch.empty(members, n_in, n_out).uniform_(-bound, bound))
            self.biases.append(torch.empty(members, 1, n_out).uniform_(-bound, bound))
        # Both once more: a list of parameters takes as long to look into as a layer to evaluate.
        self._layers = tuple(self.weights), tuple(self.biases)
        self._places: list[int] | None = None
        self._arrays: tuple[tuple[Array, ...], ...] = ()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_places": None, "_arrays": ()}

    def arrays(self) -> tuple[tuple[Array, ...], ...]:
        """Weights and biases by layer, as arrays that share their memory."""
        places = [tensor.data_ptr() for tensors in self._layers for tensor in tensors]
        if places != self._places:
            self._arrays = tuple(tuple(tensor.detach().numpy() for tensor in tensors) for tensors in self._layers)
            self._places = places
        return self._arrays

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(members, n, inputs)`` to ``(members, n, outputs)``."""
        last = len(self.weights) - 1
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = torch.baddbmm(bias, x, weight)
            x = x if layer == last else self.activation(x)
        return x


class MixingModel(nn.Module):
    """Networks from invariants of a state to the parameters of the asymptotic scheme.

    They see the five numbers of `rheidae.mixing.survival.invariants` and set the eight parameters of
    `rheidae.mixing.survival.mixing_change` for the row. What comes out is a mixture of the initial distributions: it
    turns with the state, conserves what the instability conserves, and leaves a state without a crossing alone,
    whatever the weights are. At its initial weights the module is the scheme without parameters,
    ``mix(F, "asymptotic")``.

    Parameters
    ----------
    hidden_dim : int
        Width of the hidden layers.
    hidden_layers : int
        How many of them.
    activation : {"silu", "relu", "gelu", "tanh", "elu"}
        Nonlinearity.
    members : int
        Networks, of whose parameters the mean counts. In training they take turns with the rows of a batch, so that
        they learn as if each were alone.
    order : int
        Of the Lebedev rule. The networks learn around its error; a higher one costs time and gains next to nothing.

    Notes
    -----
    The parameters stay within bounds around the scheme's, ``reach tanh(slope output/reach)``. Features are standardised
    by the training rows (`prepare`). Beyond three standard deviations they are cut, and the parameters fall back to the
    scheme's with the distance, so that far from the training data the answer is the scheme's.

    The networks know mu and tau by their mean, and order 17 knows no beams. Where mu and tau differ, or a flux factor
    is above 0.8, which no simulation trained on has, the answer is the scheme's, plus what the networks change on the
    mean heavy flavor, times `rheidae.mixing.survival.likeness` and `rheidae.mixing.survival.calm`.
    """

    adds_to = "initial"
    #: Beams want every digit of the state, and give a change that does.
    takes_doubles = True
    needs_box3d = False
    falls_back_to_scheme = True
    mean: Tensor
    deviation: Tensor
    prepared: Tensor
    reach: Tensor
    steepness: Tensor
    offset: Tensor
    sign: Tensor
    least: Tensor

    def __init__(
        self,
        hidden_dim: int = 16,
        hidden_layers: int = 2,
        activation: str = "silu",
        members: int = 2,
        order: int = 17,
    ) -> None:
        super().__init__()
        self.order = order
        self.members = members
        self.first_row = 0  # where the rows that are seen begin in the batch
        self.net = Members(members, N_INVARIANTS, N_PARAMETERS, hidden_dim, hidden_layers, activation)
        self.register_buffer("mean", torch.zeros(N_INVARIANTS))
        self.register_buffer("deviation", torch.ones(N_INVARIANTS))
        self.register_buffer("prepared", torch.tensor(False))
        for name, values in zip(("reach", "steepness", "least", "offset", "sign"), _BOUNDS, strict=True):
            self.register_buffer(name, torch.tensor(values), persistent=False)

    def export_graph(self, full: bool = False) -> nn.Module:
        """Return the network as tensor operations alone, from ``x (n, 24)``; `rheidae.export` asks for it.

        `full`: with what else full exports need.
        """
        from rheidae.estimator.tensors.mixing import MixingGraph

        return MixingGraph(self, full)

    def export_kernel(self) -> tuple[Any, tuple[Any, ...]] | None:
        """Return the kernel of the change and its arguments, None without one; `rheidae.export` asks for it."""
        from rheidae.estimator.networks._mixing_kernels import change_rows

        return (change_rows, (self._network(), self._scheme())) if self.has_kernel else None

    def prepare(self, x: Tensor) -> None:
        """Take means and deviations of the features from training rows ``x (n, 48)``, once in a model's life."""
        if not self.prepared:
            features = self._features(x)
            self.mean.copy_(features.mean(dim=0))
            self.deviation.copy_(features.std(dim=0, correction=0) + 1e-6)
            self.prepared.fill_(True)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(n, 48)``, in units of the total density, to the change of the initial state ``(n, 24)``."""
        from rheidae.estimator.networks._mixing_kernels import mend_rows
        from rheidae.mixing.survival import calm

        state = _as_states(x)
        change = _Mixing.apply(self._theta(self._invariants(state)), state, self.order, x.dtype)
        unlike = np.abs(state[:, 1::3] - state[:, 2::3]).max(axis=(1, 2), initial=0.0) > ALIKE
        trust = calm(state)
        apart = unlike | (trust < 1.0)
        if not apart.any():
            return change
        # The scheme's answer, and how far the network's counts beside it.
        weight, scheme = trust[apart], np.zeros((apart.sum(), 6, 4))
        mend_rows(state[apart], scheme, weight, unlike[apart], None, bool(unlike.any()) or None, *self._scheme())
        rows = torch.from_numpy(apart).to(change.device)
        without, share = (torch.from_numpy(table).to(change) for table in (scheme.reshape(-1, FLAT), weight[:, None]))
        out = change.clone()
        out[rows] = without + share * change[rows]
        return out

    @property
    def has_kernel(self) -> bool:
        """Whether `answer` knows the activation."""
        return isinstance(self.net.activation, nn.SiLU)

    def answer(self, x: Array) -> Array:
        """As `forward` in evaluation, of arrays and without torch, whose calls are most of the time of a row."""
        from rheidae.estimator.networks._mixing_kernels import answer_rows, mend_rows

        state = np.ascontiguousarray(x[:, INPUT["F_init"]], dtype=np.float64).reshape(-1, 6, 4)
        change, trust, unlike = np.empty(state.shape), np.empty(len(state)), np.empty(len(state), dtype=np.bool_)
        answer_rows(state, change, trust, unlike, None, *self._network())
        three = bool(unlike.any()) or None
        if three or (trust < 1.0).any():
            mend_rows(state, change, trust, unlike, None, three, *self._scheme())
        return change.reshape(-1, FLAT)

    def _network(self) -> tuple[Any, ...]:
        """What the kernels have to know of the module; arrays share its memory."""
        from rheidae.mixing.survival import rules

        return (
            self.mean.numpy(), self.deviation.numpy(), CUT, WIDTH, *self.net.arrays(), _BOUNDS, *rules(self.order),
            _TOLERANCE, ALIKE,
        )  # fmt: skip

    def _scheme(self) -> tuple[Any, ...]:
        """Likewise where the scheme counts."""
        from rheidae.mixing.asymptotic import levels_of
        from rheidae.mixing.survival import rules

        return rules(self.order)[0], *levels_of(levels=1)

    def last_shared_parameters(self) -> list[Tensor]:
        """For GradNorm."""
        return [self.net.weights[-1]]

    def parameters_of(self, x: Tensor) -> Tensor:
        """Parameters ``(n, 8)`` of the scheme, in the order of `rheidae.mixing.survival.PARAMETERS`."""
        return self._theta(self._features(x))

    def _features(self, x: Tensor) -> Tensor:
        return self._invariants(_as_states(x))

    def _invariants(self, state: Any) -> Tensor:
        from rheidae.mixing.survival import invariants

        return torch.from_numpy(invariants(state, order=self.order, threads=1)).to(self.mean)

    def _theta(self, features: Tensor) -> Tensor:
        inside, near = self._nearby(features)
        if not self.training:
            return self._bounded(self.net(inside.expand(self.members, -1, -1)), near).mean(dim=0)
        # Each row goes to one member; rows of zeros fill the first and the last turn.
        before, rows = self.first_row % self.members, len(inside)
        after = -(before + rows) % self.members
        turns = nn.functional.pad(inside, (0, 0, before, after)).reshape(-1, self.members, N_INVARIANTS)
        output = self.net(turns.transpose(0, 1)).transpose(0, 1).reshape(-1, N_PARAMETERS)
        return self._bounded(output[before : before + rows], near)

    def _bounded(self, output: Tensor, near: Tensor) -> Tensor:
        value = near * self.reach * torch.tanh(self.steepness * output)
        if self.training:
            # The derivative is 1 on both sides: at zero, where training begins, and below it, the value can rise.
            now = value.detach()
            value = value + (torch.maximum(now, self.least) - now)
        else:
            value = torch.maximum(value, self.least)
        return self.offset + self.sign * value

    def _nearby(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Features standardised and cut, and how near the row is to the training rows, ``(n, 1)``."""
        z = (features - self.mean) / self.deviation
        inside = z.clamp(-CUT, CUT)
        return inside, torch.exp(-0.5 * ((z - inside) / WIDTH).square().sum(dim=1, keepdim=True))


def _of_species(D: Array) -> Array:
    """Changes ``(n, 24)`` from what nu_e and nubar_e lose, ``(n, 8)``."""
    return (D.reshape(-1, 2, 1, 4) * _SHARES).reshape(-1, FLAT)


def _as_states(x: Tensor) -> Any:
    """Initial states ``(n, 6, 4)`` of ``x (n, 24 or 48)`` as a float64 array."""
    return x[:, INPUT["F_init"]].detach().cpu().double().reshape(-1, 6, 4).contiguous().numpy()
