"""The estimator: networks, losses, training step, callbacks."""
