"""A network that corrects Box3D by a combination of the state's own vectors."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from rheidae.estimator.networks.layers import SkipBlock, activation_of
from rheidae.fourflux import FLAT, INPUT, TARGET

EXCHANGE = 0.02
"""``|int G|``, over the total density, from which on neutrinos and antineutrinos are exchanged wholly or not at all."""


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
            return torch.stack([electron, heavy, heavy], dim=2).reshape(n, FLAT)
        moved_vector = coefficients[:, 1:].reshape(n, 2, 6) @ vectors
        moved_number = coefficients[:, :1, None].expand(n, 2, 1)
        moved = size[:, :, None] * torch.cat([moved_vector, moved_number], dim=2)
        return torch.stack([moved, -0.5 * moved, -0.5 * moved], dim=2).reshape(n, FLAT)


def conserving_part(change: Tensor) -> Tensor:
    """The part of a change ``(n, 24)`` that keeps flavor sums and the lepton number of every flavor.

    The orthogonal projection: the mean over flavors is taken off each component, and neutrinos and antineutrinos of a
    flavor take the mean of their changes of density.
    """
    change = change.reshape(-1, 2, 3, 4)
    change = change - change.mean(dim=2, keepdim=True)
    number = change[..., 3:].mean(dim=1, keepdim=True).expand(-1, 2, -1, -1)
    return torch.cat([change[..., :3], number], dim=3).reshape(-1, FLAT)


def exchange_antineutrinos(x: Tensor) -> Tensor:
    """Exchange neutrinos and antineutrinos of ``(n, 24 k)`` four-fluxes."""
    return x.reshape(len(x), -1, 2, 12).flip(2).reshape(x.shape)


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
    and exchanged back afterwards, so that both cases are one to the network. In prediction the answer goes over
    from one to the other while ``|int G|`` is below `EXCHANGE` of the total density.
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
        act = activation_of(activation)
        if frame not in ("invariant", "lab"):
            raise ValueError(f"frame={frame!r} is neither 'invariant' nor 'lab'")
        self.conserve = conserve
        self.frame = InvariantFrame(conserve) if frame == "invariant" else None
        n_in, n_out = INPUT.width, TARGET.width
        if self.frame is not None:
            n_in, n_out = self.frame.n_features, self.frame.n_coefficients
        first: list[nn.Module] = [nn.Linear(n_in, hidden_dim)]
        if use_batch_norm:
            # Features differ in scale by orders of magnitude.
            first = [nn.BatchNorm1d(n_in), *first, nn.BatchNorm1d(hidden_dim)]
        self.input_block = nn.Sequential(*first, act())
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
        net = x[:, INPUT["F_init"]].reshape(-1, 2, 3, 4)[..., 3] @ x.new_tensor([1.0, -0.5, -0.5])
        net = net[:, :1] - net[:, 1:]
        state = torch.where(net < 0.0, exchange_antineutrinos(x), x)
        change = self._change(state)
        if not self.training:  # where a jump would not matter, and the statistics of batch norm would be those of both
            other = exchange_antineutrinos(self._change(exchange_antineutrinos(state)))
            t = (0.5 + 0.5 * net.abs() / EXCHANGE).clamp(max=1.0)
            change = other + t * t * (3.0 - 2.0 * t) * (change - other)
        return torch.where(net < 0.0, exchange_antineutrinos(change), change)

    def _change(self, x: Tensor) -> Tensor:
        assert self.frame is not None
        features, vectors, size = self.frame.describe(x)
        return self.frame.rebuild(self.head(self.blocks(self.input_block(features))), vectors, size)
