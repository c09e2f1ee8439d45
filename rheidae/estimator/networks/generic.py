"""Regression between tables of any width."""

from __future__ import annotations

from torch import Tensor, nn

from rheidae.estimator.networks.layers import activation_of


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
        self.double_precision = double_precision
        layers: list[nn.Module] = []
        for n_in in [n_features, *[hidden_dim] * hidden_layers][:hidden_layers]:
            layers += [nn.Linear(n_in, hidden_dim), activation_of(activation)()]
            layers += [nn.Dropout(dropout)] if dropout > 0 else []
        self.net = nn.Sequential(*layers, nn.Linear(hidden_dim if layers else n_features, n_outputs))
        if double_precision:
            self.double()

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(n, n_features)`` to ``(n, n_outputs)``."""
        return self.net(x.double() if self.double_precision else x)
