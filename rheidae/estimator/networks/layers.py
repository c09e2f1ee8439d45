"""What the networks are made of."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
    "elu": nn.ELU,
}


def activation_of(name: str) -> type[nn.Module]:
    """Return the layer of that name.

    Raises
    ------
    ValueError
        If there is none.
    """
    if name not in ACTIVATIONS:
        raise ValueError(f"activation={name!r} is not one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def perceptron(
    n_features: int, n_outputs: int, hidden_dim: int, hidden_layers: int, activation: str, dropout: float = 0.0
) -> nn.Sequential:
    """Linear layers with activations, and dropout where it is not 0, in between."""
    act = activation_of(activation)
    layers: list[nn.Module] = []
    width = n_features
    for _ in range(hidden_layers):
        layers += [nn.Linear(width, hidden_dim), act()]
        layers += [nn.Dropout(dropout)] if dropout > 0 else []
        width = hidden_dim
    return nn.Sequential(*layers, nn.Linear(width, n_outputs))


def start_at_zero(head: Any) -> None:
    """Make an untrained network return zero, and so its base state."""
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)


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
