"""Linear stability: how fast the fast flavor instability grows, and at which wave vector."""

from rheidae.linear.rates import growth_rate
from rheidae.linear.stability import FastestMode, discrete_mode, fastest_mode

__all__ = ["FastestMode", "discrete_mode", "fastest_mode", "growth_rate"]
