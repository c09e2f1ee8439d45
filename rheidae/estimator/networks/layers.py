"""What the networks are made of."""

from __future__ import annotations

from torch import Tensor, nn

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
    "elu": nn.ELU,
}


def activation_of(name: str) -> type[nn.Module]:
    """Return the layer of that name; raise `ValueError` if there is none."""
    if name not in ACTIVATIONS:
        raise ValueError(f"activation={name!r} is not one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


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
