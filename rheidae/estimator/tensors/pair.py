"""The scale of one pair of flavors, as tensor operations; the derivation is in `rheidae.mixing._asymptotic_kernels`."""

from __future__ import annotations

import torch
from torch import Tensor

from rheidae.estimator.tensors.control import newton_in_bracket, repeat, unfinished
from rheidae.mixing._box3d_kernels import FADE, NOISE

_TINY = 1e-30
_LOW, _HIGH = -80.0, 140.0
_LN_2 = 0.6931471805599453


def fade(small: Tensor) -> Tensor:
    """Share of a crossing with this ``I_small``."""
    return torch.where(small > NOISE, 1.0 - torch.exp2(-(small / FADE).clamp(max=1000.0)), 0.0)


def larger_side(G: Tensor, w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``u = G / sqrt(G^2 + s^2)`` with s of two flavors, and the larger and the smaller side ``(..., 1)``; w weighs."""
    size = G.abs()
    large, small = (0.5 * (w * side).sum(dim=-1, keepdim=True) for side in (size + G, size - G))
    s = solve_scale(w * (0.5 * size + G * (1.0 / 6.0)), G, small, (2.0 / 3.0) * large + (1.0 / 3.0) * small)
    return G / (G * G + torch.exp(2.0 * s)).sqrt(), large, small


def solve_scale(part: Tensor, G: Tensor, goal: Tensor, limit: Tensor) -> Tensor:
    """Log of s ``(..., 1)`` with ``sum part (1 - u) = goal``; ``limit = sum part``."""
    crossing = goal > NOISE
    odds = torch.where(crossing, goal.clamp(min=_TINY).log() - (limit - goal).clamp(min=_TINY).log(), 0.0)
    mean = (part * G.abs()).sum(dim=-1, keepdim=True) / limit.clamp(min=_TINY)
    # The logarithm to base e of the scale; the kernels' is to base 2.
    start = (mean.clamp(min=_TINY).log() + 0.64 * _LN_2 + 0.79 * odds).clamp(_LOW, _HIGH)
    low, high = 0.0 * start + _LOW, 0.0 * start + _HIGH
    return repeat(unfinished, _step, (start, low, high, high - low), (odds, limit, part, G))


def _step(s: Tensor, low: Tensor, high: Tensor, before: Tensor, *given: Tensor) -> tuple[Tensor, ...]:
    """Newton's on the logarithm of what is reached over what is missing."""
    odds, limit, part, G = given
    level = G.abs() / (G * G + torch.exp(2.0 * s)).sqrt()
    missing = part * (1.0 - level)
    reached = missing.sum(dim=-1, keepdim=True).clamp(min=_TINY)
    slope = (missing * (level * (1.0 + level))).sum(dim=-1, keepdim=True)
    rest = (limit - reached).clamp(min=_TINY)
    length = (odds - (reached.log() - rest.log())) * reached * rest / (slope * limit).clamp(min=_TINY)
    return newton_in_bracket(s, length, low, high, before)
