"""Three flavors of the asymptotic scheme, as tensor operations.

Derivation and arithmetic are those of `rheidae.mixing._asymptotic_kernels`, on the first of its levels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rheidae.estimator.tensors.control import FOUND, newton_in_bracket, repeat
from rheidae.estimator.tensors.nodes import StateNodes
from rheidae.estimator.tensors.pair import fade, solve_scale
from rheidae.mixing._box3d_kernels import NOISE

_TINY = 1e-30
# Logarithms of alpha and beta lie between.
_FAR = 40.0


def mix_unlike(nodes: StateNodes, full: bool) -> Tensor:
    """Change of the six species in the frame, ``(n, 24)``, and what `full` adds: see `AsymptoticMixing`."""
    g, w = nodes.g, nodes.w[:, None]
    L = g[:, :3] - g[:, 3:]
    plus, minus, G = _sides(L, w)
    p = _probabilities(L, plus, minus, G, w)
    mixed = torch.cat([(p * nu[:, None]).sum(dim=2) for nu in g.split(3, dim=1)], dim=1)
    change = _four_fluxes(nodes, w * (mixed - g))
    # Conservation, which holds to the error of the scales, to rounding.
    nu, nubar = change.split(3, dim=1)
    number = 0.5 * (nu[..., 3:] + nubar[..., 3:])
    parts = [torch.cat([part[..., :3], number], dim=2) for part in (nu, nubar)]
    change = torch.cat([part - part.mean(dim=1, keepdim=True) for part in parts], dim=1).reshape(-1, 24)
    if not full:
        return change
    return torch.cat([change, _matrices(p, w * g, nodes.along)], dim=1)


def _four_fluxes(nodes: StateNodes, parts: Tensor) -> Tensor:
    """Sums ``(..., n, k, 4)`` of ``(..., n, k, nodes)`` over directions and over one."""
    along = [(parts * n[:, None]).sum(dim=-1, keepdim=True) for n in (nodes.x, nodes.y, nodes.z)]
    return torch.cat([*along, parts.sum(dim=-1, keepdim=True)], dim=-1)


def _matrices(p: Tensor, weighted: Tensor, along: Tensor) -> Tensor:
    """Matrices ``(n, 72)`` of `rheidae.mixing.transition`: kind, species out, in."""
    density = weighted.sum(dim=2)[:, None]
    kinds: list[Tensor] = []
    for weights in (weighted, weighted * along):
        found = weights.sum(dim=2)[:, None]
        known = found > 1e-6 * density
        blocks = []
        for first in (0, 3):
            here = slice(first, first + 3)
            over = (p * weights[:, None, here]).sum(dim=3)
            block = over / torch.where(known[..., here], found[..., here], 1.0)
            otherwise = torch.eye(3, dtype=p.dtype)[None] if not kinds else kinds[0][:, here, here]
            blocks.append(torch.where(known[..., here], block, otherwise))
        none = torch.zeros_like(blocks[0])
        kinds.append(torch.cat([torch.cat([blocks[0], none], dim=2), torch.cat([none, blocks[1]], dim=2)], dim=1))
    return torch.stack(kinds, dim=1).reshape(-1, 72)


# Transition probabilities
# ------------------------
def _probabilities(L: Tensor, plus: Tensor, minus: Tensor, G: Tensor, w: Tensor) -> Tensor:
    """``p (n, 3, 3, nodes)``, flavor out and in, of lepton numbers ``(n, 3, nodes)``: one pair first, then all."""
    small = torch.minimum(plus, minus)
    pick, first, second = _largest(torch.where(small > NOISE, (plus * minus).sqrt(), 0.0))
    crossing, both = first > 0.0, second > 0.0
    ahead = torch.where(crossing, 1.0 - second / torch.where(crossing, first, 1.0), 0.0)
    one = _exchange(pick, plus, minus, G, w, ahead * fade((pick * small).sum(dim=1, keepdim=True)))
    L = (one * L[:, None]).sum(dim=2)
    plus, minus, G = _sides(L, w)
    pick, first, second = _largest(torch.minimum(plus, minus))
    together = torch.where(both, fade(second), 0.0)
    two = _exchange(pick, plus, minus, G, w, torch.where(both, fade(first) - together, 0.0))
    two = two + together[..., None] * (_permutations(L, w) - _identity(L))
    return (two[:, :, :, None] * one[:, None]).sum(dim=2)


def _identity(like: Tensor) -> Tensor:
    return torch.eye(3, dtype=like.dtype)[None, :, :, None]


def _differences(L: Tensor) -> Tensor:
    """Of the pairs e-mu, e-tau, mu-tau."""
    e, mu, tau = L.split(1, dim=1)
    return torch.cat([e - mu, e - tau, mu - tau], dim=1)


def _sides(L: Tensor, w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """I+ and I- of each pair ``(n, 3, 1)``, and their G ``(n, 3, nodes)``."""
    G = _differences(L)
    size = G.abs()
    return 0.5 * (w * (size + G)).sum(dim=2, keepdim=True), 0.5 * (w * (size - G)).sum(dim=2, keepdim=True), G


def _largest(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Which of three ``(n, 3, 1)`` is the largest, as ones and zeros; it, and the second, ``(n, 1, 1)``."""
    x, y, z = values.split(1, dim=1)
    is_x, is_y = (x >= y) & (x >= z), y >= z
    pick = torch.cat([is_x, ~is_x & is_y, ~is_x & ~is_y], dim=1).to(values.dtype)
    high, low = torch.maximum(x, y), torch.minimum(x, y)
    return pick, torch.maximum(high, z), torch.maximum(low, torch.minimum(high, z))


def _exchange(pick: Tensor, plus: Tensor, minus: Tensor, G: Tensor, w: Tensor, share: Tensor) -> Tensor:
    """Probabilities ``(n, 3, 3, nodes)`` where a pair mixes as two flavors, with this share."""
    plus, minus = ((pick * sides).sum(dim=1, keepdim=True) for sides in (plus, minus))
    G = (pick * G).sum(dim=1, keepdim=True) * torch.where(plus >= minus, 1.0, -1.0)
    s = solve_scale(w * G.abs(), G, 2.0 * torch.minimum(plus, minus), plus + minus)
    q = share * (0.5 - 0.5 * G / (G * G + torch.exp(2.0 * s)).sqrt())
    a, b, c = pick.split(1, dim=1)
    d = torch.cat([a + b, c - a, -b - c], dim=1)
    return _identity(q) - q[:, None] * (d[:, None] * d[:, :, None])


def _permutations(L: Tensor, w: Tensor) -> Tensor:
    """Probabilities ``(n, 3, 3, nodes)`` where all three pairs mix."""
    e, mu, tau = L.split(1, dim=1)
    high, low = torch.maximum(e, mu), torch.minimum(e, mu)
    top, bottom = torch.maximum(high, tau), torch.minimum(low, tau)
    middle = torch.maximum(low, torch.minimum(high, tau))
    A, B = top - middle, middle - bottom
    totals = (w * L).sum(dim=2, keepdim=True)
    first, third = _ranks(totals)
    least = (w * bottom).sum(dim=2)
    largest, smallest = (torch.where(rank, totals, 0.0).sum(dim=1) for rank in (first, third))
    alpha, beta = _two_scales(A, B, w, largest - least, smallest - least)
    costs, first_is_dear, up_is_dear = _costs(A, B, alpha, beta)
    u2, u3, u4, u5, u6 = (costs / (1.0 + costs * costs).sqrt()).split(1, dim=1)
    w6 = (1.0 - u6) / 6.0
    w5 = w6 + (u6 - u5) / 5.0
    w4 = w5 + (u5 - u4) / 4.0
    w3 = w4 + (u4 - u3) / 3.0
    w2 = w3 + (u3 - u2) / 2.0
    w1 = w2 + u2
    s12, s23 = torch.where(first_is_dear, w3, w2), torch.where(first_is_dear, w2, w3)
    up, down = torch.where(up_is_dear, w5, w4), torch.where(up_is_dear, w4, w5)
    # By rank in the totals, out, and by rank in the direction, in.
    rows = (w1 + s23, s12 + down, w6 + up), (s12 + up, w1 + w6, s23 + down), (w6 + down, s23 + up, w1 + s12)
    by_rank = [torch.cat(row, dim=1)[:, None] for row in rows]
    highest, lowest = (rank[:, None] for rank in _ranks(L))
    p = [torch.where(highest, row[:, :, :1], torch.where(lowest, row[:, :, 2:], row[:, :, 1:2])) for row in by_rank]
    return torch.where(first[..., None], p[0], torch.where(third[..., None], p[2], p[1]))


def _ranks(values: Tensor) -> tuple[Tensor, Tensor]:
    """Which of three ``(n, 3, ...)`` is the largest, of equal ones the first, and which the smallest, the last."""
    x, y, z = values.split(1, dim=1)
    largest = ((x >= y) & (x >= z), (z > x) & (z > y))
    smallest = ((y > x) & (z > x), (z <= x) & (z <= y))
    first, last = (torch.cat([is_x, ~is_x & ~is_z, is_z], dim=1) for is_x, is_z in (largest, smallest))
    return first, last


def _costs(A: Tensor, B: Tensor, alpha: Tensor, beta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """All permutations but the cheapest, by cost ``(n, 5, nodes)``; which exchange, and which cycle, is the dearer."""
    c12, c23 = A * alpha, B * beta
    up, down = c12 + c23 + B * alpha, c12 + c23 + A * beta
    costs = [
        torch.minimum(c12, c23), torch.maximum(c12, c23), torch.minimum(up, down), torch.maximum(up, down),
        (A + B) * (alpha + beta),
    ]  # fmt: skip
    return torch.cat(costs, dim=1), c12 > c23, up > down


# Scales of both gaps
# -------------------
def _two_scales(A: Tensor, B: Tensor, w: Tensor, t1: Tensor, t3: Tensor) -> tuple[Tensor, Tensor]:
    """Alpha and beta with ``int L'_1 = t1`` and ``int L'_3 = t3``, both above the lowest of each direction."""
    a, b, a2, b2 = ((w * values).sum(dim=2) for values in (A, B, A * A, B * B))
    most = torch.cat([2.0 * a + b, a + 2.0 * b], dim=1) / 3.0
    goal = _odds(torch.cat([a + b - t1, t3], dim=1), most)
    filled = torch.cat([a2, b2], dim=1) > 0.0
    start = torch.where(filled, torch.cat([a, b], dim=1) / torch.where(filled, torch.cat([a2, b2], dim=1), 1.0), 1.0)
    start = start.log() - 0.44 - 0.79 * goal
    none, one = 0.0 * goal[:, :1], 0.0 * goal[:, :1] + 1.0
    around = torch.cat([-_FAR * one, _FAR * one, 2.0 * _FAR * one], dim=1)
    # Logarithms of both; Newton's: those before, the step, the part of it that is taken, the error before; the bracket
    # of each, and its last step; 0 while Newton gets nearer, 1 for one in the other, 2 if found.
    state = torch.cat([start, start, none, none, one, 1e300 * one, around, around, none], dim=1)
    given = (A, B, w, torch.cat([t1, t3], dim=1), most, goal, a + b)
    alpha, beta = torch.exp(repeat(_searching, _search, (state,), given)[:, :2, None]).split(1, dim=1)
    return alpha, beta


def _odds(part: Tensor, whole: Tensor) -> Tensor:
    """Logarithm of ``part/(whole - part)``, within bounds."""
    rest, least = whole - part, 1e-18 * whole
    inside = (part > least) & (rest > least)
    odds = torch.where(inside, part, 1.0).log() - torch.where(inside, rest, 1.0).log()
    return torch.where(inside, odds, torch.where(part > least, 40.0, -40.0))


def _searching(state: Tensor, *given: Tensor) -> Tensor:
    return (state[:, 14:] < 1.5).any()


def _search(state: Tensor, *given: Tensor) -> tuple[Tensor]:
    """Newton's step from logarithms to those of the odds, shortened until the error falls.

    Where it does not, one in the other, in brackets: what rank 3 gains falls with beta, and with that held right, what
    rank 1 loses falls with alpha.
    """
    A, B, w, goals, most, goal, whole = given
    at, before, step, share, error, of_a, of_b, mode = state.split([2, 2, 2, 1, 1, 3, 3, 1], dim=1)
    a, b = at.split(1, dim=1)
    r1, r3, j11, j12, j31, j32 = _totals(A, B, w, torch.exp(a)[..., None], torch.exp(b)[..., None])
    off, tolerance = torch.cat([r1, r3], dim=1) - goals, 1e-13 * whole
    # Less than rounding leaves of the sums has no derivative.
    part = torch.maximum(torch.cat([whole - r1, r3], dim=1), 0.1 * tolerance)
    y = torch.where(off.abs() > tolerance, _odds(part, most) - goal, 0.0)
    y1, y3 = y.split(1, dim=1)
    # dy = most/(part (most - part)) dpart
    k1, k3 = (part * (1.0 - part / most).clamp(min=1e-14)).split(1, dim=1)
    j11, j12, j31, j32 = j11 / k1, j12 / k1, j31 / k3, j32 / k3
    size = y.abs().amax(dim=1, keepdim=True)
    # A step of Newton's may go where there is no number; in brackets there is none if the row has none.
    right = (off.abs().amax(dim=1, keepdim=True) <= tolerance) | ((mode > 0.5) & ~(size < 1e300))
    good = size < (1.0 - 1e-4 * share) * error
    determinant = j12 * j31 - j11 * j32
    new = torch.cat([-y3 * j12 - y1 * j32, y1 * j31 + y3 * j11], dim=1)
    new = new / torch.where(determinant.abs() > 0.0, determinant, 1.0)
    longest = new.abs().amax(dim=1, keepdim=True)
    share = torch.where(good, 4.0 / longest.clamp(min=4.0), 0.5 * share)
    before, step = torch.where(good, at, before), torch.where(good, new, step)
    lost = (good & (longest > 1e6)) | (~good & (share < 1e-3))
    start = torch.cat([before[:, :1].clamp(-_FAR, _FAR), 0.0 * b], dim=1)
    # Newton's next error is about the square of this step.
    reached = 2.0 * (good & (longest < 1e-7)).to(at.dtype)
    by_newton = torch.cat([
        torch.where(lost, start, before + share * step), before, step, share, torch.where(good, size, error), of_a,
        of_b, torch.where(lost, 1.0, reached),
    ], dim=1)  # fmt: skip
    inner = of_b[:, 2:] > FOUND
    new_b, *of_new_b = newton_in_bracket(b, y3 / (-j32).clamp(min=_TINY), *of_b.split(1, dim=1))
    fall = j11 + j12 * j31 / (-j32).clamp(min=_TINY)
    new_a, *of_new_a = newton_in_bracket(a, y1 / fall.clamp(min=_TINY), *of_a.split(1, dim=1))
    anew = torch.cat([0.0 * b - _FAR, 0.0 * b + _FAR, 0.0 * b + 2.0 * _FAR], dim=1)
    in_brackets = torch.cat([
        torch.where(inner, a, new_a), torch.where(inner, new_b, b), state[:, 2:8],
        torch.where(inner, of_a, torch.cat(of_new_a, dim=1)), torch.where(inner, torch.cat(of_new_b, dim=1), anew),
        2.0 - (inner | (of_new_a[2] > FOUND)).to(at.dtype),
    ], dim=1)  # fmt: skip
    found = torch.cat([state[:, :14], 0.0 * b + 2.0], dim=1)
    after = torch.where(right, found, torch.where(mode < 0.5, by_newton, in_brackets))
    return (torch.where(mode < 1.5, after, state),)


def _totals(A: Tensor, B: Tensor, w: Tensor, alpha: Tensor, beta: Tensor) -> list[Tensor]:
    """Integrals of L'_1 and of L'_3 above each direction's lowest, and their derivatives by log alpha and log beta."""
    costs, first_is_dear, up_is_dear = _costs(A, B, alpha, beta)
    C, none = A + B, torch.zeros_like(A)

    def by_cost(exchanges: tuple[Tensor, Tensor], cycles: tuple[Tensor, Tensor]) -> list[Tensor]:
        pairs = ((first_is_dear, *exchanges), (up_is_dear, *cycles))
        return [torch.where(dear, x, y) for dear, a, b in pairs for x, y in ((b, a), (a, b))]

    h = 1.0 / (1.0 + costs * costs).sqrt()
    u, steep = costs * h, h * h * h
    c12, c23 = A * alpha, B * beta
    slopes = [
        steep * torch.cat([*by_cost((c12, none), (C * alpha, c12)), C * alpha], dim=1),
        steep * torch.cat([*by_cost((none, c23), (c23, C * beta)), C * beta], dim=1),
    ]
    # What each permutation, in the order of cost, brings to rank 1 and to rank 3; less the means of those before.
    sums, derivatives = [], []
    for values in ([C, *by_cost((B, C), (none, B)), none], [none, *by_cost((none, B), (B, C)), C]):
        total = mean = values[0]
        drops = []
        for k in range(1, 6):
            total = total + values[k]
            before, mean = mean, total * (1.0 / (k + 1.0))
            drops.append(before - mean)
        drop = w * torch.cat(drops, dim=1)
        sums.append((w * mean).sum(dim=2) + (u * drop).sum(dim=(1, 2))[:, None])
        derivatives += [(slope * drop).sum(dim=(1, 2))[:, None] for slope in slopes]
    return [*sums, *derivatives]
